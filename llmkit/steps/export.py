"""export: MODEL → GGUF files, each published only after llama.cpp has loaded it and reads text as the model does."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from llmkit import progress
from llmkit.artifact import Artifact, Facts, Kind

VERB = "export"
REVISION = 1
KIND = Kind.GGUF
# What the template is rendered on by both sides; the last answer of each is the model's to give.
CONVERSATIONS = (
    [{"role": "user", "content": "你好，你是谁？"}],
    [{"role": "user", "content": "What is 2 + 2? 🙂"}],
    [
        {"role": "user", "content": "Name a colour."},
        {"role": "assistant", "content": "蓝色。"},
        {"role": "user", "content": "再说一个。"},
    ],
)
Type = Literal["f16", "q8_0", "q4_0", "q5_k_m", "q4_k_m"]


class Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    types: tuple[Type, ...] = Field(("q8_0", "q4_k_m"), min_length=1, description="The GGUF types to write, one file each.")


def check(base: Path | None, *, template: str | None) -> None:
    """Refuse before any work what export would refuse after it. `base`: the model's folder, if it is here.

    Raises:
        UsageError: the architecture is not supported (names what is), or the base lacks the `template` it is exported with.
    """
    if base is None:
        return
    from llmkit.engine import templates
    from llmkit.gguf import architectures, tokenizer

    architectures.parse(tokenizer.read_json(base / "config.json"), where=str(base))
    if template:
        templates.check(template, base)


def run(config: Config, inputs: Mapping[str, Artifact], out: Path) -> Facts:
    """Write `model-TYPE.gguf` for each type, tokenizer, template and EOS included.

    Raises:
        UsageError: the architecture or its tokenizer is not supported.
        FidelityError: llmkit's file and the model disagree; nothing is published.
    """
    from llmkit.engine import loading, templates
    from llmkit.gguf import convert, fidelity

    model = inputs["model"]
    template = templates.resolve("model", model.path)
    tokenizer = loading.load_tokenizer(model.path)
    facts: Facts = {}
    with progress.track("exporting", total=len(config.types)) as bar:
        for kind in config.types:
            path = out / f"model-{kind}.gguf"
            written = convert.export(
                model.path,
                path,
                type=kind,
                template=template.text,
                name="llmkit",
                metadata={"llmkit.fingerprint": model.fingerprint},
            )
            proof = fidelity.check_export(
                path, model.path, template=template.text, conversations=CONVERSATIONS, tokenizer=tokenizer
            )
            facts[kind] = {**written, **proof}
            bar.advance(text=kind)
    return {"types": facts}

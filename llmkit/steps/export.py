"""export: MODEL → GGUF files, each published only after llama.cpp has loaded it and speaks as the model does.

Where the recipe has data and a fine-tune, what each file kept of it is measured on held-out dialogues, and `types: auto` takes
the smallest file that kept enough.
"""

import difflib
import heapq
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from llmkit import answers, progress, release
from llmkit.answers import Decoding
from llmkit.artifact import Artifact, Facts, Kind, digest
from llmkit.errors import DataError, GateError, UsageError
from llmkit.report.table import RETENTION_FLOOR
from llmkit.report.table import retention as share_kept

if TYPE_CHECKING:
    from llmkit.gguf.imatrix import Imatrix

VERB = "export"
REVISION = 2
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
# fmt: off
Type = Literal[
    "f32", "f16", "bf16", "q8_0", "q6_k", "q5_1", "q5_k_m", "q5_k_s", "q5_0", "q4_1", "q4_k_m", "q4_k_s", "q4_0",
    "iq4_nl", "iq4_xs", "q3_k_l", "q3_k_m", "q3_k_s", "iq3_m", "iq3_s", "iq3_xxs", "q2_k",
    "iq2_m", "iq2_s", "iq2_xs", "iq2_xxs", "iq1_m", "iq1_s",
]
# fmt: on
# What `auto` chooses from: four bits and more.
CANDIDATES: tuple[Type, ...] = (
    "iq4_xs",
    "iq4_nl",
    "q4_0",
    "q4_k_s",
    "q4_k_m",
    "q4_1",
    "q5_0",
    "q5_k_s",
    "q5_k_m",
    "q5_1",
    "q6_k",
    "q8_0",
)  # fmt: skip
DIALOGUES = 40  # whose answers' tokens give retention
QUESTIONS = 50  # whose answers give ROUGE-L
ANSWER_TOKENS = 64
CALIBRATION_TOKENS = 16_384  # of the training data, for the importance matrix; six thousand did as well
CALIBRATION_RECORDS = 2_048  # to take them from: those of the least digests, which come from all over the data
_IMATRIX_SUFFIXES = (".gguf", ".dat", ".imatrix")  # any other file is text to measure one on
_BYTES_PER_WEIGHT = 5  # of a model that is compared: fp32, and what working with it takes
_SPOKEN = 8  # held-out dialogues in whose answers the next token is compared
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([KMG])B?", re.IGNORECASE)
_POWERS = {"K": 10**3, "M": 10**6, "G": 10**9}


class Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    types: tuple[Type, ...] | Literal["auto"] = Field(
        ("q8_0", "q4_k_m"), description="The GGUF types to write, one file each; auto: the smallest that keeps the fine-tune."
    )
    imatrix: bool | str = Field(
        False,
        description="Weigh rounding errors by what goes into each layer: true measures it on the training data, a path on that "
        "text, or is an importance matrix of llama.cpp.",
    )
    adapter: Type | None = Field(None, description="Also write the LoRA by itself, and the base in this type to lay it over.")
    min_retention: float | None = Field(
        None,
        ge=0,
        le=1,
        description=f"Fail where a file keeps less of the fine-tune; auto: take none below it ({RETENTION_FLOOR}).",
    )
    min_rouge_l: float | None = Field(
        None, ge=0, le=100, description="With auto: the ROUGE-L that its answers to held-out prompts must reach, in points."
    )
    max_shard_size: str | None = Field(None, description="Split longer files into parts of at most so much, such as 4GB.")
    pre: str | None = Field(None, description="llama.cpp's name of the pre-tokenizer, where llmkit cannot tell it.")
    template: str = Field(
        "model", pattern=r"^\w+$", description="Of a model that is exported as it came: its own chat template, or one of ours."
    )

    @field_validator("types", mode="before")
    @classmethod
    def _known(cls, types: object) -> object:
        for one in types if isinstance(types, list | tuple) else [types]:
            if one not in (*get_args(Type), "auto"):
                close = difflib.get_close_matches(str(one), get_args(Type), 3)
                hint = f"did you mean {' or '.join(close)}" if close else "`llmkit explain export.types` lists all"
                raise ValueError(f"no type {one!r}; {hint}")
        return types

    @field_validator("types")
    @classmethod
    def _some(cls, types: tuple[Type, ...] | Literal["auto"]) -> tuple[Type, ...] | Literal["auto"]:
        if not types or (len(set(types)) < len(types) and types != "auto"):
            raise ValueError("name each type once, and at least one")
        return types

    @field_validator("max_shard_size")
    @classmethod
    def _bytes(cls, size: str | None) -> str | None:
        if size is not None and (not (found := _SIZE.fullmatch(size)) or float(found[1]) == 0):
            raise ValueError("give a size such as 500MB or 4GB")
        return size

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.min_rouge_l is not None and self.types != "auto":
            raise ValueError("min_rouge_l goes with types: auto")
        return self

    @property
    def max_shard_bytes(self) -> int | None:
        found = _SIZE.fullmatch(self.max_shard_size) if self.max_shard_size else None
        return int(float(found[1]) * _POWERS[found[2].upper()]) if found else None


def check(
    config: Config,
    base: Path | None,
    *,
    template: str | None,
    tuned: bool,
    data: bool = False,
    lora: bool = False,
    grid: Mapping[str, str] | None = None,
) -> None:
    """Refuse before any work what export would refuse after it, and warn of what it would lose.

    Args:
        base: the model's folder, if it is here.
        template: what it is exported with, where that is to be looked for in the base.
        tuned: a fine-tune comes between base and export.
        data: there is training data.
        lora: the fine-tune is one that a GGUF adapter can hold.
        grid: GGML type of each of the base's weights, by HF name, where it was unpacked from a GGUF file.

    Raises:
        UsageError: the architecture is not supported (names what is), the base lacks the `template` it is exported with, a type
            needs an importance matrix, or what `adapter`, `auto` or `imatrix` builds on is not there.
    """
    _demand_parts(config, tuned=tuned, data=data, lora=lora)
    if base is None:
        return
    from llmkit.engine import templates
    from llmkit.gguf import architectures, tokenizer

    raw = tokenizer.read_json(base / "config.json")
    architectures.parse(raw, where=str(base))
    if "quantization_config" in raw and not tuned:
        raise DataError(
            "this model is quantized already", code="LK0309", where=str(base), next="export the model it was made from"
        )
    if template:
        templates.check(template, base)
    if tuned and grid and config.types != "auto":
        _warn_of_grid(config, base, grid)


def _demand_parts(config: Config, *, tuned: bool, data: bool, lora: bool) -> None:
    """That what `adapter`, `auto` or `imatrix` builds on is there; as `check`."""
    if config.adapter and not lora:
        raise UsageError(
            "export.adapter writes a fine-tune's LoRA, and there is none that a GGUF adapter can hold",
            code="LK0618",
            next="add finetune with method lora or qlora and without dora, or leave adapter out",
        )
    if config.types == "auto" and not tuned:
        raise UsageError(
            "`types: auto` chooses by what a file keeps of a fine-tune", code="LK0620", next="add finetune, or name the types"
        )
    if config.imatrix is True and not data:
        raise UsageError(
            "`imatrix: true` measures on the training data, and there is none",
            code="LK0610",
            next="name a text file, or give data",
        )
    if not config.imatrix:
        _demand_no_imatrix(config)


def run(config: Config, inputs: Mapping[str, Artifact], out: Path) -> Facts:
    """Write `model-TYPE.gguf` for each type, tokenizer, template and EOS included; a Modelfile for each, and a model card.

    Inputs: `model`; with a recipe also `dataset`, `base` (the model before its fine-tune), `adapter` and `imatrix` (a file).

    Raises:
        UsageError: the architecture or its tokenizer is not supported.
        FidelityError: llmkit's file and the model disagree; nothing is published.
        GateError: no type, or not each, keeps what the recipe demands.
    """
    with tempfile.TemporaryDirectory() as scratch:
        export = _Export.begin(config, inputs, out, Path(scratch))
        if config.min_retention is not None and not export.yardstick.base_kl:
            raise UsageError(
                "min_retention cannot be measured",
                code="LK0620",
                next="it takes a fine-tune, held-out dialogues and the memory",
            )
        tried: Facts = {}
        if config.types == "auto":
            kind, tried = export.choose()
            types = {kind: tried.pop(kind)}
        else:
            types = export.write(config.types)
            types = {kind: facts | export.prove(out / facts["files"][0]) for kind, facts in types.items()}
        adapter = export.adapter(config.adapter) if config.adapter else None
    _judge(config, types | ({f"{adapter['base']['type']}+lora": adapter} if adapter else {}))
    release.describe(out, inputs, types, adapter, template=export.template, tokenizer=export.tokenizer)
    facts: Facts = {"types": types, "tried": tried, "yardstick": export.yardstick.facts}
    if adapter:
        facts["adapter"] = adapter
    if export.imatrix:
        facts["imatrix"] = {"tensors": len(export.imatrix.names), "chunks": export.imatrix.chunks}
    return facts


@dataclass(frozen=True)
class _Yardstick:
    """What each file is compared with; no `prompts` where nothing is, for want of memory.

    `reference` and `base_kl` need held-out dialogues, the latter a base as well.
    """

    prompts: Sequence[Sequence[int]]
    reference: Any = None
    base_kl: float | None = None
    split: str = ""

    @property
    def facts(self) -> Facts:
        return (
            {"split": self.split, "dialogues": len(self.reference.samples), "base_kl": self.base_kl} if self.reference else {}
        )


@dataclass(frozen=True)
class _Export:
    """One run: its inputs, loaded once, and what it writes with them."""

    config: Config
    inputs: Mapping[str, Artifact]
    out: Path
    tokenizer_dir: Path
    template: Any
    tokenizer: Any
    imatrix: "Imatrix | None"
    yardstick: _Yardstick

    @staticmethod
    def begin(config: Config, inputs: Mapping[str, Artifact], out: Path, scratch: Path) -> "_Export":
        from llmkit.engine import loading, templates

        folder = inputs["model"].path
        template, tokenizer = templates.resolve(config.template, folder), loading.load_tokenizer(folder)
        imatrix = _imatrix(config, inputs, out, tokenizer, template) if config.imatrix else None
        yardstick = _yardstick(inputs, scratch, tokenizer, template)
        return _Export(config, inputs, out, _as_loaded(tokenizer, folder, scratch), template, tokenizer, imatrix, yardstick)

    @property
    def model(self) -> Path:
        return self.inputs["model"].path

    def write(self, kinds: Sequence[str], *, stem: str = "model", weights: Path | None = None) -> dict[str, Facts]:
        """`STEM-TYPE.gguf` for each of `kinds`, read in one pass; `weights`: another folder than the model's."""
        from llmkit.gguf import convert

        about = {"model": self.inputs["base"]} if weights else self.inputs  # the base itself is not fine-tuned
        written = convert.export_types(
            weights or self.model,
            {kind: self.out / f"{stem}-{kind}.gguf" for kind in kinds},
            tokenizer_dir=self.tokenizer_dir,
            template=self.template.text,
            name=release.title(about),
            metadata=release.provenance(about),
            imatrix=self.imatrix,
            pre=self.config.pre,
            max_shard_bytes=self.config.max_shard_bytes,
        )
        return {kind: dict(facts) for kind, facts in written.items()}

    def prove(self, path: Path, *, adapter: Path | None = None) -> Facts:
        """What the file at `path` kept of the fine-tune; raises FidelityError where llama.cpp does not run it as it should."""
        from llmkit.engine import retention
        from llmkit.gguf import fidelity

        weighed = self._weigh(path, with_adapter=adapter is not None) if self.yardstick.prompts else retention.Weighed(None, ())
        proof = fidelity.check_export(
            path,
            self.model,
            template=self.template.text,
            conversations=CONVERSATIONS,
            tokenizer=self.tokenizer,
            expected=weighed.next_tokens,
            stop=self.template.eos,
            adapter=adapter,
        )
        return {**proof, "kl": weighed.kl, "retention": share_kept(weighed.kl, self.yardstick.base_kl)}

    def choose(self) -> tuple[str, Facts]:
        """The smallest type that keeps the fine-tune, and what was found of it and of those that did not, by type.

        Raises:
            UsageError: there is no fine-tune or no held-out dialogue to choose by.
            GateError: none does.
        """
        from llmkit.gguf import convert

        if not self.yardstick.base_kl:  # 0: the fine-tune changed nothing
            raise UsageError(
                "`types: auto` chooses by what a file keeps of a fine-tune, and there is none to measure",
                code="LK0620",
                next="name the types, or run it in a recipe with data and finetune",
            )
        floor, tried = _floor(self.config), {}
        for kind in convert.by_size(convert.Model.read(self.model), CANDIDATES, self.imatrix):
            found = self.write([kind])[kind]
            path = self.out / found["files"][0]
            tried[kind] = found | self.prove(path)
            if self.config.min_rouge_l is not None:
                tried[kind]["rouge_l"] = self._rouge_l(path)
            if tried[kind]["retention"] >= floor and tried[kind].get("rouge_l", 0.0) >= (self.config.min_rouge_l or 0.0):
                return kind, tried
            scored = f", ROUGE-L {tried[kind]['rouge_l']:.1f}" if "rouge_l" in tried[kind] else ""
            progress.note(f"{kind} keeps {tried[kind]['retention']:.3f} of the fine-tune{scored}: not enough")
            for name in found["files"]:
                (self.out / name).unlink()
        best = max(tried, key=lambda kind: float(tried[kind]["retention"]))
        raise GateError(
            f"no type keeps {floor} of the fine-tune and the ROUGE-L asked for; {best} keeps {tried[best]['retention']:.3f}",
            code="LK0619",
            where="export.types: auto",
            next="train longer or at a higher rate, lower min_retention or min_rouge_l, or name f16",
        )

    def adapter(self, kind: str) -> Facts:
        """`adapter.gguf`, and the base it belongs over as `base-TYPE.gguf`."""
        from llmkit.gguf import lora

        base = self.inputs["base"].path
        path = self.out / "adapter.gguf"
        found = lora.export_adapter(
            self.inputs["adapter"].path,
            base,
            path,
            name=release.title(self.inputs),
            metadata=release.provenance(self.inputs),
        )
        written = self.write([kind], stem="base", weights=base)[kind]
        proof = self.prove(self.out / written["files"][0], adapter=path)
        return {"file": path.name, **found, "base": written, **proof}

    def _weigh(self, path: Path, *, with_adapter: bool) -> Any:
        from llmkit.engine import child, retention
        from llmkit.gguf import read

        against = self.yardstick.reference
        return child.run(
            retention.weigh,
            partial(read.state_dict, path),
            self.inputs["base"].path if with_adapter else self.model,
            self.inputs["adapter"].path if with_adapter else None,
            against,
            self.yardstick.prompts,
            title=f"weighing {path.name}",
            total=1,
        )

    def _rouge_l(self, path: Path) -> float:
        """ROUGE-L of llama.cpp's answers to held-out prompts, in points."""
        from llmkit.gguf import convert, runtime
        from llmkit.metrics import text

        longest = convert.Model.read(self.model).config.max_position_embeddings
        dialogues = _held_out(self.inputs["dataset"].path)[1][:QUESTIONS]
        sizes = [runtime.room(messages[:-1], ANSWER_TOKENS) for messages in dialogues]
        asked = [messages for messages, size in zip(dialogues, sizes, strict=True) if size <= longest]
        if not asked:
            raise DataError(
                f"no held-out prompt is sure to fit {longest} tokens", code="LK0620", where=str(self.inputs["dataset"].path)
            )
        context = max(size for size in sizes if size <= longest)
        with runtime.LlamaServer(path, threads=os.cpu_count() or 1, context=context) as server:
            prompts = [messages[:-1] for messages in asked]
            given = server.answer_many(prompts, decoding=Decoding(ANSWER_TOKENS), keys=answers.keys(prompts))
        scores = text.score([text.clean_output(one.text) for one in given], [messages[-1]["content"] for messages in asked])
        return scores.metrics["rougeL"]


def _as_loaded(tokenizer: Any, folder: Path, scratch: Path) -> Path:
    """A folder with the tokenizer as transformers loaded it, which may be another than tokenizer.json says: Llama 2's is."""
    found = scratch / "tokenizer"
    tokenizer.save_pretrained(found)
    for name in ("config.json", "generation_config.json"):
        if (folder / name).is_file():
            shutil.copy(folder / name, found)
    return found


def _yardstick(inputs: Mapping[str, Artifact], scratch: Path, tokenizer: Any, template: Any) -> _Yardstick:
    from llmkit.engine import child, loading, mask, probe, retention
    from llmkit.gguf import convert, fidelity

    shape = convert.Model.read(inputs["model"].path)
    needed, free = _BYTES_PER_WEIGHT * shape.parameters, loading.free_memory()
    if needed > free:
        progress.note(
            f"warning: comparing the files' weights with the model's takes {needed / 1e9:.0f} GB of memory, and "
            f"{free / 1e9:.0f} GB are free: neither retention nor the next tokens are measured"
        )
        return _Yardstick(())
    fixed = [tokenizer(text)["input_ids"] for text in probe.TEXTS]
    split, dialogues = _held_out(inputs["dataset"].path) if "dataset" in inputs else ("", [])
    if not dialogues:
        return _Yardstick(fixed)
    records = [{"id": str(number), "messages": messages} for number, messages in enumerate(dialogues[:DIALOGUES])]
    longest = min(shape.config.max_position_embeddings, fidelity.CONTEXT) - 1  # one more is asked for
    samples = mask.encode_all(
        records, tokenizer, template, max_length=longest, on_overlong="truncate_left", loss_on="last"
    ).items
    if not samples:
        raise DataError(
            f"no held-out dialogue's answer fits {longest} tokens", code="LK0620", where=str(inputs["dataset"].path)
        )
    # Half-way through an answer, where what was learnt is being said.
    spoken = [one.input_ids[: len(one.input_ids) - sum(one.labels_mask) // 2] for one in samples[:_SPOKEN]]
    base = inputs["base"].path if "base" in inputs else None
    if base and convert.Model.read(base).config.vocab_size != shape.config.vocab_size:
        raise DataError(
            "the model is no fine-tune of this base: their vocabularies differ in size", code="LK0620", where=str(base)
        )
    reference, base_kl = child.run(
        retention.remember, inputs["model"].path, samples, base, scratch, title="measuring the model", total=2
    )
    return _Yardstick([*fixed, *spoken], reference, base_kl, split)


def _held_out(dataset: Path) -> tuple[str, list[Any]]:
    """The split that files are chosen on, and its dialogues that end on an answer. The test split stays for eval, if it can."""
    from llmkit.data import record

    for split in ("valid", "test"):
        path = dataset / f"{split}.jsonl"
        records = record.read_records(path) if path.is_file() else iter(())
        dialogues: Iterator[Any] = (one.messages for one in records)
        answered = (messages for messages in dialogues if len(messages) > 1 and messages[-1]["role"] == "assistant")
        if found := list(islice(answered, max(DIALOGUES, QUESTIONS))):
            return split, found
    progress.note(f"warning: {dataset} has no held-out dialogue: what the files keep of a fine-tune is not measured")
    return "", []


def _imatrix(config: Config, inputs: Mapping[str, Artifact], out: Path, tokenizer: Any, template: Any) -> "Imatrix":
    """The importance matrix, kept as `imatrix.gguf` so that it can be named in another recipe."""
    from llmkit.engine import child
    from llmkit.engine import imatrix as measuring
    from llmkit.gguf import convert, imatrix

    model, given = convert.Model.read(inputs["model"].path), inputs.get("imatrix")
    if given and given.path.suffix in _IMATRIX_SUFFIXES:
        found = imatrix.read(given.path)
    else:
        samples = _calibration(inputs, tokenizer, template)
        names = imatrix.measured(model.architecture.tensors(model.config))
        sums = child.run(measuring.collect, model.folder, samples, names, title="measuring importance", total=len(samples))
        found = imatrix.from_measured(sums, dataset=given.path.name if given else inputs["dataset"].fingerprint)
    found.require_fit((tensor.gguf, tensor.shape) for tensor in model.tensors)
    imatrix.write(found, out / "imatrix.gguf")
    return found


def _calibration(inputs: Mapping[str, Artifact], tokenizer: Any, template: Any) -> list[list[int]]:
    """What the importance matrix is measured on: the text that the recipe names, else the training data."""
    from llmkit.data import record
    from llmkit.engine import imatrix as measuring

    if "imatrix" in inputs:
        return measuring.calibration_text(inputs["imatrix"].path, tokenizer, max_tokens=CALIBRATION_TOKENS)
    if "dataset" not in inputs:
        raise UsageError(
            "`imatrix: true` measures on a recipe's data, and there is none", code="LK0610", next="name a text file"
        )
    train = record.read_records(inputs["dataset"].path / "train.jsonl")
    chosen = heapq.nsmallest(CALIBRATION_RECORDS, train, key=lambda one: digest(one.id))
    records = [{"id": one.id, "messages": one.messages} for one in chosen]
    return measuring.calibration(records, tokenizer, template, max_tokens=CALIBRATION_TOKENS)


def _demand_no_imatrix(config: Config) -> None:
    from llmkit.gguf import types

    for kind in (*(() if config.types == "auto" else config.types), *filter(None, [config.adapter])):
        if types.file_type(kind).base in types.NEEDS_IMPORTANCE:
            raise UsageError(
                f"{kind} needs an importance matrix",
                code="LK0610",
                where="export.types",
                next="set export.imatrix: true, or name a larger type",
            )


def _warn_of_grid(config: Config, base: Path, grid: Mapping[str, str]) -> None:
    from llmkit.gguf import convert

    share_of = partial(convert.share_on_grid, convert.Model.read(base), grid=grid, guided=bool(config.imatrix))
    safe = [kind for kind in ("q5_k_m", "q6_k", "q8_0", "q4_1") if share_of(kind) < 0.1]
    for kind in config.types:
        share = share_of(kind)
        if share >= 0.5:
            remedies = [*safe, f"`export.adapter: {kind}`, which leaves the base as it is"]
            progress.note(
                f"warning: {share:.0%} of the base's weights lie on {kind}'s own grid, since it was unpacked from such a file: "
                f"rounding back to it takes away most of a fine-tune. Keep it with {', or with '.join(remedies)}"
            )


def _floor(config: Config) -> float:
    return RETENTION_FLOOR if config.min_retention is None else config.min_retention


def _judge(config: Config, types: Mapping[str, Facts]) -> None:
    """Warn of files that lost the fine-tune; raise GateError where the recipe demands that they keep it."""
    floor = _floor(config)
    lost = {kind: facts["retention"] for kind, facts in types.items() if facts["retention"] is not None}
    lost = {kind: kept for kind, kept in lost.items() if not kept >= floor}
    if lost and config.min_retention is not None:
        told = ", ".join(f"{kind} keeps {kept:.3f}" for kind, kept in lost.items())
        raise GateError(
            f"{told} of the fine-tune; the recipe demands {floor}",
            code="LK0619",
            where="export.min_retention",
            next="try `types: auto`",
        )
    for kind, kept in lost.items():
        remedy = f", or `export.adapter: {kind}`" if kind in get_args(Type) else ""
        progress.note(
            f"warning: {kind} lost the fine-tune: it kept {kept:.0%} of it (retention {kept:.3f}). Take another type "
            f"(`types: auto` finds one){remedy}"
        )

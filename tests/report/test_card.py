"""The model card says what is known, and nothing that a name would have it say."""

from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.report.card import CardFile, CardInfo, card

FILES = (
    CardFile("model-q8_0.gguf", "q8_0", 8.5, 292_000_000, 0.999, 0.006),
    CardFile("model-q4_k_m.gguf", "q4_k_m", 7.36, 253_000_000, 0.397, 2.4, ["it lost the fine-tune"]),
)
WHOLE = CardInfo(
    name="house chat",
    base="google/gemma-3-270m",
    licence="gemma",
    training={"objective": "sft", "learning_rate": 2e-4, "records": 12345, "template": None, "rank": 16},
    files=FILES,
    lineage={"clean": "a" * 16, "merge": "b" * 16},
    stops=["<eos>", "<end_of_turn>"],
    context=32768,
    modelfile=True,
)
HOSTILE = '"]\nlicense: mit\n---\n# Free | <script>alert(1)</script> [x](javascript:1) ![](http://x) `\x1b[2J\u202e\u2028'


def front(text: str) -> dict[str, Any]:
    _, head, _ = text.split("---\n", 2)
    found = yaml.safe_load(head)
    assert isinstance(found, dict)
    return found


def test_it_tells_base_licence_files_use_training_and_lineage() -> None:
    text = card(WHOLE)
    assert front(text) == {
        "base_model": "google/gemma-3-270m",
        "base_model_relation": "finetune",
        "license": "gemma",
        "pipeline_tag": "text-generation",
        "library_name": "gguf",
        "tags": ["gguf", "llmkit"],
        "quantized_by": "llmkit",
    }
    for line in (
        "| model-q8\\_0.gguf | q8\\_0 | 8.50 | 292.0 MB | 0.999 | 0.0060 |",
        "- model-q4\\_k\\_m.gguf: it lost the fine-tune",
        "    llama-cli -m model-q8_0.gguf -c 32768",
        "    ollama create my-model -f Modelfile",
        "- learning rate: 0.0002",
        "- records: 12,345",
        "- merge: bbbbbbbbbbbbbbbb",
        "An answer ends at &lt;eos&gt;, &lt;end\\_of\\_turn&gt;.",
    ):
        assert line in text.splitlines()
    assert "template" not in text.split("## Training")[1]


def test_the_file_that_keeps_most_is_the_one_to_run() -> None:
    assert "-m model-q8_0.gguf" in card(CardInfo(files=FILES[::-1]))
    adapter = CardInfo(files=(CardFile("lora.gguf"), CardFile("base.gguf")), adapter="lora.gguf", adapter_base="base.gguf")
    assert "llama-cli -m base.gguf --lora lora.gguf" in card(adapter)


def test_nothing_known_is_still_a_card() -> None:
    text = card(CardInfo())
    assert front(text) == {"pipeline_tag": "text-generation", "tags": ["llmkit"]}
    assert "None" not in text
    assert "##" not in text


@pytest.mark.parametrize(
    "info",
    [
        CardInfo(name=HOSTILE),
        CardInfo(base=HOSTILE, licence=HOSTILE),
        CardInfo(files=[CardFile(HOSTILE, HOSTILE, warnings=[HOSTILE])], adapter=HOSTILE),
        CardInfo(training={HOSTILE: HOSTILE}, lineage={HOSTILE: HOSTILE}, files=FILES, stops=[HOSTILE]),
    ],
)
def test_a_name_is_a_name_and_no_markup(info: CardInfo) -> None:
    text = card(info)
    plain = "\n".join(line for line in text.splitlines() if not line.startswith("    "))
    body = plain.split("---\n", 2)[2]
    for markup in ("<script", "](", "![", "http:", "\n# Free", "\nlicense"):
        assert markup not in body
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert front(text).get("license") != "mit"


@pytest.mark.parametrize("text", ["1. one", "12.", "- one", "---", "+ one", "# one", "> one", "* one"])
def test_a_text_begins_no_list_and_no_heading(text: str) -> None:
    assert f"- {text}" not in card(CardInfo(files=[CardFile("x", warnings=[text])]))


TEXT = st.text(max_size=20)


@given(name=TEXT, base=TEXT, licence=TEXT, file=TEXT, warning=TEXT, fact=TEXT)
@settings(max_examples=200)
def test_no_text_adds_a_key_a_heading_or_a_row(name: str, base: str, licence: str, file: str, warning: str, fact: str) -> None:
    text = card(
        CardInfo(
            name=name,
            base=base,
            licence=licence,
            files=[CardFile(file, warnings=[warning])],
            training={"fact": fact},
        )
    )
    allowed = {
        "base_model",
        "base_model_relation",
        "license",
        "pipeline_tag",
        "library_name",
        "tags",
        "quantized_by",
    }
    assert set(front(text)) <= allowed
    lines = text.splitlines()
    assert sum(line.startswith("#") for line in lines) == 5
    assert sum(line.startswith("| ") for line in lines) == 3
    assert all(line.count("|") - line.count("\\|") == 7 for line in lines if line.startswith("| "))

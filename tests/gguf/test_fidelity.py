"""A faithful export passes its proof; any other fails it with the first difference."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from llmkit.engine.retention import NextToken
from llmkit.errors import DataError, FidelityError, UsageError
from llmkit.gguf import fidelity
from llmkit.gguf.convert import export
from llmkit.gguf.fidelity import check_export
from llmkit.gguf.read import metadata

CHATS = [
    [{"role": "user", "content": "Hello!"}],
    [
        {"role": "user", "content": "你好，今天天气怎么样？"},
        {"role": "assistant", "content": "很好。😀"},
        {"role": "user", "content": "  def f():\n\treturn 1\n"},
        {"role": "assistant", "content": "the last answer is left out"},
    ],
]


@pytest.mark.parametrize("family", ["llama3", "mistral", "gemma3"])
def test_an_export_of_every_family_passes(family: str, exported: Callable[..., Path], model_dirs: Any) -> None:
    model_dir, template = model_dirs[family]
    facts = check_export(exported(family, "q8_0"), model_dir, template=template, conversations=CHATS, threads=1)
    assert facts["prompts_compared"] == 2
    assert facts["tokens_compared"] > 500
    assert metadata(exported(family, "q8_0"))["tokenizer.ggml.add_bos_token"] is (family != "llama3")


def test_another_template_than_the_one_trained_with_fails(exported: Callable[..., Path], model_dirs: Any) -> None:
    model_dir, template = model_dirs["gemma3"]
    with pytest.raises(FidelityError) as caught:
        check_export(
            exported("gemma3", "q8_0"), model_dir, template=template.replace("model", "bot"), conversations=CHATS, threads=1
        )
    assert "prompt" in caught.value.what
    assert "bot" in caught.value.next


def test_a_tokenizer_that_merges_otherwise_fails(exported: Callable[..., Path], model_dirs: Any, tmp_path: Path) -> None:
    source, template = model_dirs["mistral"]
    model_dir = Path(shutil.copytree(source, tmp_path / "model"))
    raw = json.loads((model_dir / "tokenizer.json").read_text("utf-8"))
    raw["model"]["merges"].reverse()
    (model_dir / "tokenizer.json").write_text(json.dumps(raw), "utf-8")
    with pytest.raises(FidelityError, match="token ids"):
        check_export(exported("mistral", "q8_0"), model_dir, template=template, conversations=CHATS, threads=1)


def test_a_bos_that_only_one_side_adds_fails(exported: Callable[..., Path], model_dirs: Any, tmp_path: Path) -> None:
    source, template = model_dirs["mistral"]
    model_dir = Path(shutil.copytree(source, tmp_path / "model"))
    tokenizer = AutoTokenizer.from_pretrained(source, add_bos_token=False)
    tokenizer.save_pretrained(model_dir)
    with pytest.raises(FidelityError, match="around a text"):
        check_export(exported("mistral", "q8_0"), model_dir, template=template, conversations=CHATS, threads=1)


def test_templates_with_training_marks_render_the_same(llama3_dir: Path, tmp_path: Path) -> None:
    template = (
        "{%- for message in messages -%}{{- '<|im_start|>' + message['role'] + '\\n' -}}"
        "{%- if message['role'] == 'assistant' -%}{% generation %}{{- message['content'] + '<|im_end|>' -}}{% endgeneration %}"
        "{%- else -%}{{- message['content'] + '<|im_end|>' -}}{%- endif -%}{{- '\\n' -}}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
    )
    out = tmp_path / "out.gguf"
    export(llama3_dir, out, type="q8_0", template=template, name="x", metadata={})
    check_export(out, llama3_dir, template=template, conversations=CHATS, threads=1)


def test_a_folder_without_a_tokenizer_is_a_data_error(exported: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(DataError):
        check_export(exported("mistral", "q8_0"), tmp_path, template="", conversations=[], threads=1)


@pytest.mark.parametrize(
    "changes",
    [
        {"normalizer": {"type": "NFKC"}},
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Lowercase"}]}},
        {"pre_tokenizer": {"type": "Metaspace", "replacement": "_", "prepend_scheme": "first", "split": True}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}},
    ],
)
def test_a_tokenizer_llama_cpp_cannot_reproduce_is_refused(changes: dict[str, Any], mistral_dir: Path, tmp_path: Path) -> None:
    model_dir = Path(shutil.copytree(mistral_dir, tmp_path / "model"))
    raw = json.loads((model_dir / "tokenizer.json").read_text("utf-8"))
    (model_dir / "tokenizer.json").write_text(json.dumps({**raw, **changes}), "utf-8")
    with pytest.raises(UsageError, match="cannot reproduce"):
        export(model_dir, tmp_path / "out.gguf", type="q8_0", template="", name="x", metadata={})


def test_an_unknown_way_of_splitting_names_the_known_ones(llama3_dir: Path, tmp_path: Path) -> None:
    model_dir = Path(shutil.copytree(llama3_dir, tmp_path / "model"))
    raw = json.loads((model_dir / "tokenizer.json").read_text("utf-8"))
    raw["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\w+|."
    (model_dir / "tokenizer.json").write_text(json.dumps(raw), "utf-8")
    with pytest.raises(UsageError) as caught:
        export(model_dir, tmp_path / "out.gguf", type="q8_0", template="", name="x", metadata={})
    assert "llama-bpe" in caught.value.next


class _Liar:
    """A server that puts all its mass on tokens that transformers thinks little of."""

    def next_log_probabilities(self, prompt: object, *, top: int) -> dict[int, float]:
        return {token: math.log(1 / 16) for token in range(16)}


def test_no_other_distribution_passes_for_the_same() -> None:
    likeliest = tuple((token, math.log(0.02)) for token in range(16))
    with pytest.raises(FidelityError, match="KL"):
        fidelity._compare_next(_Liar(), [NextToken((1,), likeliest)], where="x")  # type: ignore[arg-type]


@given(st.lists(st.tuples(st.floats(1e-5, 1), st.floats(1e-5, 1)), min_size=2, max_size=8))
def test_what_is_not_listed_makes_the_sum_a_divergence(weights: list[tuple[float, float]]) -> None:
    ours, theirs = (sum(one[side] for one in weights) for side in (0, 1))
    pairs = [(math.log(one / ours), math.log(other / theirs)) for one, other in weights[1:]]
    assert sum(math.exp(a) * (a - b) for a, b in [*pairs, fidelity._rest(pairs)]) > -1e-4

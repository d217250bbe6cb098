"""Every tensor, and every key that changes what is computed or read, is llama.cpp's own converter's; what differs has a reason.

The converter needs what transformers 5 no longer writes: a SentencePiece file (made here of tokenizer.json, as the models'
repositories have it) and, for the tiny vocabularies, the name of the pre-tokenizer, which it finds by a hash of known ones.
What it makes of a tokenizer without them is wrong; there tests/gguf/test_tokenizer.py compares ours with transformers'.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers.utils import sentencepiece_model_pb2_new as sentencepiece

from llmkit.gguf.container import open_file
from llmkit.gguf.convert import export
from tests.gguf.families import FAMILIES
from tests.oracle import oracle

Metadata = dict[str, Any]
TYPES = ("f32", "f16")
REAL = {"smollm2-135m": "smollm2", "gemma-3-270m": "gemma_270m"}
SENTENCEPIECE = ("llama2", "mistral", "gemma2", "gemma3", "phi3", "phi3_long", "gemma-3-270m")
PRE = {"llama3": "llama-bpe", "smollm2": "smollm", "qwen2": "qwen2", "qwen2_yarn": "qwen2", "qwen3": "qwen2"}
END = ("eos", "eot", "eom")

# Keys of one side only, and why that changes nothing.
OURS = {
    "vocab_size": "as many as the token list has, which is what llama.cpp counts where the key is absent",
    "rope.dimension_count": "the head size, which is llama.cpp's default",
    "rope.freq_base": "Gemma 2: 10,000, which is llama.cpp's default",
    "attention.key_length": "Phi-3: embedding / heads, which is llama.cpp's default",
    "attention.value_length": "the same",
    "tokenizer.ggml.eot_token_id": "from generation_config.json, which the converter does not read",
    "tokenizer.ggml.eom_token_id": "the same",
    "tokenizer.ggml.add_space_prefix": "written always; llama.cpp's default depends on the kind of tokenizer",
    "tokenizer.ggml.add_bos_token": "the same",
    "tokenizer.ggml.add_eos_token": "the same",
    "rope.scaling.attn_factor": "YaRN's attention factor, relative to the usual one, in the key llama.cpp's graphs read",
}
THEIRS = {
    "tokenizer.ggml.mask_token_id": "no generation reads it",
    "tokenizer.ggml.add_sep_token": "false, as where it is absent",
    "general.size_label": "for people",
    "general.basename": "for people",
    "general.finetune": "for people",
    "general.version": "for people",
    "general.license": "for people",
    "general.sampling.temp": "for people",
    "rope.scaling.yarn_attn_factor": "llama.cpp's graphs of these families do not read it",
}
# Keys of both sides with other values.
EITHER = {
    "general.name": "the folder's name there, the recipe's here",
    "tokenizer.ggml.scores": "only their order matters: compared below",
    "tokenizer.ggml.token_type": "compared below",
    "tokenizer.ggml.eos_token_id": "compared below",
    "tokenizer.ggml.tokens": "compared below",
}

WRAPPER = """
import json, sys
sys.path.insert(0, {folder!r})
import convert_hf_to_gguf
from conversion.base import TextModel
known = TextModel.get_vocab_base_pre
for job in json.loads(open(sys.argv[1], encoding="utf-8").read()):
    pre = job["pre"]
    TextModel.get_vocab_base_pre = (lambda self, tokenizer, pre=pre: pre) if pre else known
    sys.argv = ["convert", job["model"], "--outfile", job["out"], "--outtype", job["type"]]
    convert_hf_to_gguf.main()
"""


@pytest.fixture(scope="module")
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The model's folder, by its name in this file."""
    folder = tmp_path_factory.mktemp("models")

    def find(name: str) -> Path:
        if name in REAL:
            return Path(request.getfixturevalue(REAL[name]))
        return folder / name if (folder / name).exists() else FAMILIES[name].build(folder / name)

    return find


@pytest.fixture(scope="module")
def theirs(source: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """`theirs("qwen2", "f16")`: the converter's file; all tiny ones are made by one process."""
    folder = tmp_path_factory.mktemp("theirs")

    def file(name: str, kind: str) -> Path:
        out = folder / f"{name}-{kind}.gguf"
        if not out.exists():
            _convert([name] if name in REAL else list(FAMILIES), source, folder)
        return out

    return file


def _convert(names: list[str], source: Callable[[str], Path], folder: Path) -> None:
    jobs = []
    for name in names:
        model = _as_published(source(name), folder / name, spm=name in SENTENCEPIECE)
        for kind in TYPES:
            jobs.append({"model": str(model), "out": str(folder / f"{name}-{kind}.gguf"), "type": kind, "pre": PRE.get(name)})
    (folder / "jobs.json").write_text(json.dumps(jobs), "utf-8")
    (folder / "wrapper.py").write_text(WRAPPER.format(folder=str(oracle.LLAMA_CPP)), "utf-8")
    oracle.run_script(str(folder / "wrapper.py"), str(folder / "jobs.json"), out=folder)


def _as_published(model: Path, folder: Path, *, spm: bool) -> Path:
    """The folder as its publisher would have it: with tokenizer.model, and the added tokens in tokenizer_config.json too."""
    shutil.copytree(model, folder, ignore=lambda _, names: [name for name in names if name.endswith(".safetensors")])
    for weights in model.glob("*.safetensors"):
        (folder / weights.name).symlink_to(weights)
    if spm:
        raw = json.loads((folder / "tokenizer.json").read_text("utf-8"))
        (folder / "tokenizer.model").write_bytes(_sentencepiece(raw))
        settings = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
        settings["added_tokens_decoder"] = {str(token.pop("id")): token for token in raw["added_tokens"]}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    return folder


def _sentencepiece(raw: Metadata) -> bytes:
    """tokenizer.model: the pieces in their order, each scored by its place as SentencePiece's BPE does."""
    proto = sentencepiece.ModelProto()
    proto.trainer_spec.model_type = 2
    proto.trainer_spec.byte_fallback = True
    unknown = raw["model"]["unk_token"] or "<unk>"
    control = {token["content"] for token in raw["added_tokens"] if token["special"]}
    ranks: dict[str, int] = {}
    for left, right in raw["model"]["merges"]:
        ranks.setdefault(left + right, len(ranks))
    for text, index in sorted(raw["model"]["vocab"].items(), key=lambda item: item[1]):
        assert index == len(proto.pieces)
        byte = len(text) == 6 and text.startswith("<0x")
        kind = 2 if text == unknown else 3 if text in control else 6 if byte else 1
        proto.pieces.add(piece=text, score=-float(ranks.get(text, len(ranks))), type=kind)
    return bytes(proto.SerializeToString())


@pytest.fixture(scope="module")
def ours(source: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    folder = tmp_path_factory.mktemp("ours")

    def file(name: str, kind: str) -> Path:
        out = folder / f"{name}-{kind}.gguf"
        if not out.exists():
            chat = source(name) / "chat_template.jinja"
            template = chat.read_text("utf-8") if chat.exists() else ""
            export(source(name), out, type=kind, template=template, name=name)
        return out

    return file


NAMES = [*FAMILIES, *(pytest.param(name, marks=pytest.mark.slow) for name in REAL)]
Files = Callable[[str, str], Path]


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_is_byte_for_byte_the_converter_s(name: str, kind: str, ours: Files, theirs: Files) -> None:
    found, expected = oracle.tensors(ours(name, kind)), oracle.tensors(theirs(name, kind))
    assert found.keys() == expected.keys()
    for tensor, one in found.items():
        other = expected[tensor]
        assert (one.type, one.shape) == (other.type, other.shape), tensor
        assert np.array_equal(one.data, other.data), tensor


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("name", NAMES)
def test_every_key_is_the_converter_s_but_for_the_table(name: str, kind: str, ours: Files, theirs: Files) -> None:
    found, expected = _keys(ours(name, kind)), _keys(theirs(name, kind))
    assert found.keys() - expected.keys() <= OURS.keys()
    assert expected.keys() - found.keys() <= THEIRS.keys()
    differing = {key: (found[key], expected[key]) for key in found.keys() & expected.keys() if found[key] != expected[key]}
    assert {key: value for key, value in differing.items() if key not in EITHER} == {}


def _keys(path: Path) -> Metadata:
    file = open_file(path)
    prefix = f"{file.metadata['general.architecture']}."
    return {key.removeprefix(prefix): value for key, value in file.metadata.items()}


@pytest.mark.parametrize("name", NAMES)
def test_every_token_is_the_converter_s_and_merges_in_its_order(name: str, ours: Files, theirs: Files) -> None:
    found, expected = (
        {key.rpartition(".")[2]: value for key, value in _keys(side(name, "f16")).items()} for side in (ours, theirs)
    )
    rows = range(len(expected["tokens"]))
    assert len(found["tokens"]) == len(expected["tokens"])
    types = zip(found["tokens"], expected["tokens"], found["token_type"], expected["token_type"], strict=True)
    # Added tokens that are not special but look so are hidden there; transformers shows them.
    assert [pair for pair in types if pair[0] != pair[1] or pair[2] != pair[3]] == []
    if "scores" in expected:
        merged = [index for index in rows if found["scores"][index] > -1e9 and found["token_type"][index] == 1]
        assert sorted(merged, key=lambda index: -found["scores"][index]) == sorted(
            merged, key=lambda index: -expected["scores"][index]
        )
        assert len(merged) > 100
    assert expected["eos_token_id"] in [found[f"{end}_token_id"] for end in END if f"{end}_token_id" in found]

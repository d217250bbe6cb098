"""A file's tokenizer is the model's: the same ids for every line, and every trap of tokenizer.json handled or refused."""

import contextlib
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from llmkit.errors import DataError, UsageError
from llmkit.gguf import pre_tokenizers as pre
from llmkit.gguf import tokenizer
from llmkit.gguf.convert import export
from llmkit.gguf.runtime import LlamaServer
from llmkit.gguf.tokenizer import TokenizerFiles, TokenType
from tests.gguf.families import save
from tests.gguf.lines import generated

ModelDirs = dict[str, tuple[Path, str]]
SPLITS = {name: (steps, ignore) for name, steps, ignore in pre.STRUCTURES}


@pytest.fixture(scope="module")
def lines() -> list[str]:
    return generated(2000)


def _differing(lines: Sequence[str], file: Path, anchor: str, encode: Callable[[str], list[int]]) -> list[str]:
    """The lines that llama.cpp gives other ids than `encode`; each stands behind `anchor`, a special token."""
    differing: list[str] = []
    with LlamaServer(file, threads=1, context=64) as server:

        def same(some: Sequence[str]) -> bool:
            text = "".join(anchor + line for line in some)
            return server.tokenize(text, add_special=False, parse_special=True) == encode(text)

        for start in range(0, len(lines), 100):
            group = lines[start : start + 100]
            if not same(group):
                differing += [line for line in group if not same([line])]
    return differing


def _encode(folder: Path) -> tuple[str, Callable[[str], list[int]]]:
    loaded = AutoTokenizer.from_pretrained(folder)
    return loaded.bos_token or loaded.eos_token, lambda text: list(loaded(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("family", ["llama2", "llama3", "smollm2", "mistral", "qwen2", "gemma2", "gemma3", "phi3"])
def test_two_thousand_lines_have_the_ids_of_the_family_s_tokenizer(
    family: str, lines: list[str], exported: Callable[..., Path], model_dirs: ModelDirs
) -> None:
    assert _differing(lines, exported(family, "f32"), *_encode(model_dirs[family][0])) == []


def _model(loaded: Any, folder: Path) -> Path:
    """The smallest model with this tokenizer, exported."""
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = LlamaConfig(**sizes, vocab_size=len(loaded), max_position_embeddings=64, bos_token_id=None, eos_token_id=0)
    save(LlamaForCausalLM, config, loaded, folder, stops=[0])
    export(folder, folder / "out.gguf", type="f32", template="", name="x")
    return folder / "out.gguf"


def _byte_level(name: str, vocabulary_size: int = 2500) -> Any:
    """Byte-level BPE that splits as `name` does, with merges across all its borders: a wrong split shows."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(generated(2000, seed=1), trainer)
    raw = json.loads(bpe.to_str())
    steps, raw["model"]["ignore_merges"] = SPLITS[name]
    raw["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [{**step, "trim_offsets": True} for step in steps]}
    bpe = Tokenizer.from_str(json.dumps(raw))
    bpe.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|endoftext|>")


@pytest.mark.parametrize("name", SPLITS)
def test_every_known_way_of_splitting_is_llama_cpp_s(name: str, lines: list[str], tmp_path: Path) -> None:
    file = _model(_byte_level(name), tmp_path)
    files = TokenizerFiles.read(tmp_path)
    assert tokenizer.metadata(files, rows=2500, template="")["tokenizer.ggml.pre"] == name
    approximate = name in pre.APPROXIMATE
    differing = _differing(lines[:400] if approximate else lines, file, *_encode(tmp_path))
    if approximate:
        assert 0 < len(differing) < 10
        assert tokenizer.warnings(files)
    else:
        assert differing == []
        assert tokenizer.warnings(files) == []


def test_a_space_before_every_part_of_a_text_is_kept(lines: list[str], model_dirs: ModelDirs, tmp_path: Path) -> None:
    """Llama 2's own tokenizer.json, which transformers 5 rewrites: Prepend puts a space behind each special token too."""
    folder, _ = model_dirs["llama2"]
    loaded = Tokenizer.from_file(str(folder / "tokenizer.json"))
    loaded.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw = json.loads(loaded.to_str())
    raw["pre_tokenizer"] = None
    file = _model(PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(raw)), eos_token="</s>"), tmp_path)
    plain = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert _differing(lines, file, "<s>", lambda text: plain.encode(text, add_special_tokens=False).ids) == []


def test_spaces_vanish_behind_phi_3_s_tokens_whatever_the_model_is_called(
    lines: list[str], model_dirs: ModelDirs, tmp_path: Path
) -> None:
    folder, _ = model_dirs["phi3"]
    files = TokenizerFiles.read(folder)
    name = tokenizer.general_name(files, "我的模型")
    export(folder, tmp_path / "out.gguf", type="q8_0", template="", name=name)
    turns = [f"<|user|>\n {line}<|end|>  \n<|assistant|>" for line in lines[:300]]
    anchor, encode = _encode(folder)
    assert _differing(turns, tmp_path / "out.gguf", anchor, encode) == []
    assert "我的模型" in name
    assert tokenizer.general_name(files, name) == name


def test_a_name_that_would_have_llama_cpp_strip_spaces_is_changed(model_dirs: ModelDirs) -> None:
    files = TokenizerFiles.read(model_dirs["mistral"][0])
    assert tokenizer.general_name(files, "better-than-PHI-3 phi3") == "better-than-Phi 3 Phi 3"
    assert tokenizer.general_name(files, "Phi 3") == "Phi 3"


# What follows needs no llama.cpp: one small tokenizer, changed.


@pytest.fixture
def bpe(model_dirs: ModelDirs) -> TokenizerFiles:
    return _clean(model_dirs["qwen3"][0])


@pytest.fixture
def spm(model_dirs: ModelDirs) -> TokenizerFiles:
    return _clean(model_dirs["mistral"][0])


def _clean(folder: Path) -> TokenizerFiles:
    read = TokenizerFiles.read(folder)
    return replace(read, tokenizer=json.loads(json.dumps(read.tokenizer)))


def _metadata(files: TokenizerFiles, *, rows: int = 600, **options: Any) -> dict[str, Any]:
    found = tokenizer.metadata(files, rows=rows, template="", **options)
    return {key.removeprefix("tokenizer.ggml."): value for key, value in found.items()}


def _add(files: TokenizerFiles, content: str, index: int, **flags: bool) -> None:
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    files.tokenizer["added_tokens"].append({"id": index, "content": content, **plain, **flags})


def test_a_sentencepiece_token_s_score_is_minus_the_rank_of_its_merge(spm: TokenizerFiles) -> None:
    found = _metadata(spm)
    assert (found["model"], found["pre"], found["add_space_prefix"]) == ("llama", "default", False)
    for rank, (left, right) in reversed(list(enumerate(spm.tokenizer["model"]["merges"]))):
        first = [pair for pair in spm.tokenizer["model"]["merges"][:rank] if "".join(pair) == left + right]
        if not first:
            assert found["scores"][found["tokens"].index(left + right)] == -rank
    types = dict(zip(found["tokens"], found["token_type"], strict=True))
    assert (types["<s>"], types["<0x0A>"], types["▁"]) == (TokenType.CONTROL, TokenType.BYTE, TokenType.NORMAL)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])  # it is not changed
@given(data=st.data())
def test_whatever_ids_are_used_every_row_has_a_text_of_its_own(data: st.DataObject, bpe: TokenizerFiles) -> None:
    vocab = bpe.tokenizer["model"]["vocab"]
    rows = data.draw(st.integers(len(vocab), 700))
    added = (
        data.draw(st.sets(st.integers(len(vocab), 699).filter(lambda index: index < rows), max_size=5))
        if rows > len(vocab)
        else set()
    )
    files = replace(bpe, tokenizer={**bpe.tokenizer, "added_tokens": list(bpe.tokenizer["added_tokens"])})
    for index in added:
        _add(files, data.draw(st.sampled_from([f"<{index}>", f"[PAD{index}]"])), index, special=index % 2 == 0)
    found = _metadata(files, rows=rows)
    assert len(found["tokens"]) == len(set(found["tokens"])) == len(found["token_type"]) == rows
    for index, (text, kind) in enumerate(zip(found["tokens"], found["token_type"], strict=True)):
        if index in added:
            assert kind == (TokenType.CONTROL if index % 2 == 0 else TokenType.USER_DEFINED)
        elif index >= len(vocab):
            assert (text.startswith("[PAD"), kind) == (True, TokenType.UNUSED)


def test_a_padding_name_that_a_token_already_has_is_not_used_twice(bpe: TokenizerFiles) -> None:
    _add(bpe, "[PAD599]", 598)
    found = _metadata(bpe)
    assert found["tokens"][598] == "[PAD599]"
    assert found["tokens"][599] != "[PAD599]"


@pytest.mark.parametrize(
    ("content", "index", "word"),
    [
        ("<a>", 600, "larger than the embedding"),
        ("<a>", 10**9, "larger than the embedding"),
        ("<a>", 2**70, "larger than the embedding"),
        ("<a>", -1, "-1"),
        ("<a>", True, "True"),
        ("<a>", "7", "'7'"),
        ("<a>", 1.0, "1.0"),
        ("<a>", None, "None"),
        ("<a>", 5, "id 5"),
        ("<|im_end|>", 599, "two ids"),
        ("", 599, "cannot read"),
        ("a\0b", 599, "cannot read"),
    ],
)
def test_an_added_token_that_cannot_be_is_a_data_error(content: str, index: Any, word: str, bpe: TokenizerFiles) -> None:
    _add(bpe, content, index)
    with pytest.raises(DataError, match=word):
        _metadata(bpe)


@pytest.mark.parametrize(
    ("text", "index"), [("new", 5), ("new", 600), ("new", -1), ("new", 2**70), ("new", None), ("new", [1])]
)
def test_a_vocabulary_that_cannot_be_is_a_data_error(text: str, index: Any, bpe: TokenizerFiles) -> None:
    bpe.tokenizer["model"]["vocab"][text] = index
    with pytest.raises(DataError, match="new"):
        _metadata(bpe)


@pytest.mark.parametrize("rows", [0, -5, 2**31])
def test_a_vocabulary_without_bounds_is_a_data_error(rows: int, bpe: TokenizerFiles) -> None:
    with pytest.raises(DataError):
        _metadata(bpe, rows=rows)


def test_the_one_token_of_gemma_3_that_has_no_row_is_left_out(spm: TokenizerFiles) -> None:
    _add(spm, "<image_soft_token>", 600, special=True)
    assert len(_metadata(spm)["tokens"]) == 600


@pytest.mark.parametrize("flag", ["lstrip", "single_word"])
def test_an_added_token_that_llama_cpp_would_find_elsewhere_is_refused(flag: str, bpe: TokenizerFiles) -> None:
    _add(bpe, "<a>", 599, **{flag: True})
    with pytest.raises(UsageError, match=flag) as caught:
        _metadata(bpe)
    assert flag in caught.value.next


def test_spaces_stripped_behind_some_tokens_only_are_refused(bpe: TokenizerFiles) -> None:
    _add(bpe, "<a>", 599, rstrip=True)
    with pytest.raises(UsageError, match="rstrip"):
        _metadata(bpe)


def test_a_token_looked_for_behind_a_prepended_space_is_refused(spm: TokenizerFiles) -> None:
    _add(spm, "<a>", 599, normalized=True)
    assert _metadata(spm)["tokens"][599] == "<a>"
    steps = [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
    changed = {**spm.tokenizer, "normalizer": {"type": "Sequence", "normalizers": steps}, "pre_tokenizer": None}
    with pytest.raises(UsageError, match="<a>"):
        _metadata(replace(spm, tokenizer=changed))


@pytest.mark.parametrize(("normalized", "expected"), [(True, "  "), (False, "▁▁")])
def test_an_added_run_of_spaces_is_written_as_it_stands_in_a_text(
    normalized: bool, expected: str, model_dirs: ModelDirs
) -> None:
    files = _clean(model_dirs["gemma2"][0])
    _add(files, "▁▁", 599, normalized=normalized)
    assert _metadata(files)["tokens"][599] == expected


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"type": "Unigram"}, "Unigram"),
        ({"type": "WordPiece"}, "WordPiece"),
        ({"dropout": 0.1}, "dropout"),
        ({"end_of_word_suffix": "</w>"}, "end_of_word_suffix"),
        ({"continuing_subword_prefix": "##"}, "continuing_subword_prefix"),
    ],
)
def test_another_kind_of_model_is_refused(changes: dict[str, Any], word: str, bpe: TokenizerFiles) -> None:
    bpe.tokenizer["model"].update(changes)
    with pytest.raises(UsageError, match=word):
        _metadata(bpe)


@pytest.mark.parametrize(
    "normalizer", [{"type": "NFKC"}, {"type": "Lowercase"}, {"type": "Sequence", "normalizers": [{"type": "NFD"}]}]
)
def test_byte_level_bpe_with_another_normalizer_is_refused(normalizer: Any, bpe: TokenizerFiles) -> None:
    with pytest.raises(UsageError, match="cannot reproduce"):
        _metadata(replace(bpe, tokenizer={**bpe.tokenizer, "normalizer": normalizer}))


def test_composing_characters_is_a_warning(bpe: TokenizerFiles) -> None:
    assert "NFC" in tokenizer.warnings(bpe)[0]


def test_a_sentencepiece_without_all_bytes_is_refused(spm: TokenizerFiles) -> None:
    del spm.tokenizer["model"]["vocab"]["<0x41>"]
    with pytest.raises(UsageError, match="<0x41>"):
        _metadata(spm)


def test_an_unknown_way_of_splitting_can_be_named_by_hand(bpe: TokenizerFiles) -> None:
    odd = {
        **bpe.tokenizer["pre_tokenizer"],
        "pretokenizers": [{"type": "Whitespace"}, *bpe.tokenizer["pre_tokenizer"]["pretokenizers"]],
    }
    files = replace(bpe, tokenizer={**bpe.tokenizer, "pre_tokenizer": odd})
    with pytest.raises(UsageError, match="splits text") as caught:
        _metadata(files)
    assert "`pre`" in caught.value.next
    assert _metadata(files, pre="deepseek-llm")["pre"] == "deepseek-llm"


@pytest.mark.parametrize("name", ["", "qwen9", "default", "QWEN2"])
def test_a_name_that_llama_cpp_does_not_know_is_refused(name: str, bpe: TokenizerFiles) -> None:
    with pytest.raises(UsageError) as caught:
        _metadata(bpe, pre=name)
    assert "qwen2" in caught.value.next


def test_sentencepiece_takes_no_name_by_hand(spm: TokenizerFiles) -> None:
    with pytest.raises(UsageError, match="qwen2"):
        _metadata(spm, pre="qwen2")


def test_a_tokenizer_that_llama_cpp_s_converter_knows_is_found_by_its_hash(
    bpe: TokenizerFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = AutoTokenizer.from_pretrained(bpe.folder).backend_tokenizer
    loaded.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Punctuation(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    loaded.save(str(tmp_path / "tokenizer.json"))
    files = TokenizerFiles(tmp_path, json.loads(loaded.to_str()), bpe.settings, bpe.generation, bpe.config)
    with pytest.raises(UsageError):
        _metadata(files)
    digest = hashlib.sha256(str(loaded.encode(pre._TEXT).ids).encode()).hexdigest()
    monkeypatch.setitem(pre._HASHES, "viking", f"0123456789abcdef {digest[:16]}")
    assert _metadata(files)["pre"] == "viking"


def test_the_names_are_all_that_can_be_found() -> None:
    assert pre._HASHES.keys() | SPLITS.keys() <= pre.NAMES
    assert all(len(digits) == 16 for digests in pre._HASHES.values() for digits in digests.split())


# Which ids begin and end a text.


def test_bos_and_pad_come_from_the_tokenizer_else_from_the_configs(bpe: TokenizerFiles) -> None:
    bare = {key: value for key, value in bpe.settings.items() if not key.endswith("_token")}
    files = replace(
        bpe, settings=bare, generation={"eos_token_id": 2, "pad_token_id": 5}, config={"bos_token_id": 7, "pad_token_id": 6}
    )
    found = _metadata(files)
    assert (found["bos_token_id"], found["padding_token_id"], found["eos_token_id"]) == (7, 5, 2)
    assert not found["add_bos_token"]
    named = replace(files, settings={"bos_token": {"content": "<|im_start|>"}, "pad_token": "<|endoftext|>"})
    found = _metadata(named)
    assert (found["bos_token_id"], found["padding_token_id"]) == (1, 0)


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ({}, {}, [2]),
        ({}, {"eos_token_id": 0}, [0]),
        ({"eos_token_id": 0}, {"eos_token_id": 2}, [0]),
        ({"eos_token_id": [0, 2]}, {}, [2, 0]),
        ({"eos_token_id": [9, 8, 2]}, {}, [2, 9, 8]),
        ({"eos_token_id": [0, 2, 9, 8]}, {}, [2, 9, 8]),  # <|endoftext|> ends a generation by its text
        ({"eos_token_id": [9, 9, 9]}, {}, [9]),
    ],
)
def test_every_stop_id_is_kept(generation: Any, config: Any, expected: list[int], bpe: TokenizerFiles) -> None:
    found = _metadata(replace(bpe, generation=generation, config=config))
    assert [found[key] for key in ("eos_token_id", "eot_token_id", "eom_token_id") if key in found] == expected


@pytest.mark.parametrize("eos", [[7, 8, 9, 10], [600], [-1], [2**70], ["2"], "2", [True], {}, 1.5, [[2]]])
def test_stop_ids_that_cannot_be_written_are_a_data_error(eos: Any, bpe: TokenizerFiles) -> None:
    with pytest.raises(DataError):
        _metadata(replace(bpe, generation={"eos_token_id": eos}))


def test_no_stop_id_at_all_is_a_data_error(bpe: TokenizerFiles) -> None:
    with pytest.raises(DataError, match="end-of-sequence"):
        _metadata(replace(bpe, settings={}, generation={}, config={"eos_token_id": []}))


@pytest.mark.parametrize(("single", "adds"), [("$A", (False, False)), ("<s> $A", (True, False)), ("<s> $A </s>", (True, True))])
def test_bos_and_eos_go_around_a_text_as_tokenizer_json_says(single: str, adds: tuple[bool, bool], spm: TokenizerFiles) -> None:
    found = _metadata(_around(spm, single))
    assert (found["add_bos_token"], found["add_eos_token"]) == adds


@pytest.mark.parametrize("single", ["<s> <unk> $A", "<unk> $A", "$A <s>", "$A </s> </s>"])
def test_more_around_a_text_than_llama_cpp_can_put_is_refused(single: str, spm: TokenizerFiles) -> None:
    with pytest.raises(UsageError, match="around a text"):
        _metadata(_around(spm, single))


def test_a_bos_that_only_the_template_names_is_written(spm: TokenizerFiles) -> None:
    settings = {key: value for key, value in spm.settings.items() if key != "bos_token"}
    found = _metadata(replace(_around(spm, "<s> $A"), settings=settings))
    assert (found["bos_token_id"], found["add_bos_token"]) == (1, True)


def _around(files: TokenizerFiles, single: str) -> TokenizerFiles:
    special = [("<unk>", 0), ("<s>", 1), ("</s>", 2)]
    blank = Tokenizer(models.BPE())
    blank.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)
    return replace(files, tokenizer={**files.tokenizer, "post_processor": json.loads(blank.to_str())["post_processor"]})


# Damage in any place.

ODD = [None, True, -1, 0, 10**6, 2**70, 1e300, "", "x", "\0", [], [[]], {}, {"type": 5}, {"type": "Sequence"}, [{"id": 1}]]


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where a JSON value may be replaced; long collections by their first members."""
    if path:
        yield path
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, member in itertools.islice(members, 12):
        yield from _places(member, (*path, key))


@pytest.mark.parametrize("family", ["qwen3", "phi3", "gemma3"])
@pytest.mark.parametrize("part", ["tokenizer", "settings", "generation", "config"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_in_any_place_is_one_of_our_errors_or_none(
    family: str, part: str, data: st.DataObject, model_dirs: ModelDirs
) -> None:
    files = TokenizerFiles.read(model_dirs[family][0])
    raw = json.loads(json.dumps(getattr(files, part)))
    *way, last = data.draw(st.sampled_from(list(_places(raw))))
    target = raw
    for key in way:
        target = target[key]
    target[last] = data.draw(st.sampled_from(ODD))
    changed = replace(files, **{part: raw})
    for use in (_metadata, tokenizer.warnings, lambda files: tokenizer.general_name(files, "x")):
        with contextlib.suppress(DataError, UsageError):
            use(changed)

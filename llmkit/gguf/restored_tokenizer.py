"""GGUF metadata back as tokenizer.json and its companions. Knows the `tokenizer.*` keys and llama.cpp's defaults; no weights.

Made to give llama.cpp's ids, so what llama.cpp does not do is left out: Qwen's NFC normalizer, for one. (transformers 5 puts
it back for Qwen 2, whose folders it reads by a class of its own: decomposed text, and no other, then differs.)
"""

import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmkit.errors import DataError, UsageError
from llmkit.gguf import pre_tokenizers
from llmkit.gguf.tokenizer import TokenType

_KEY = "tokenizer.ggml."
_SPACE = "▁"
_PADDING = re.compile(r"\[PAD\d+\]")
# No SentencePiece token is as long, and trying every cut of one costs the square of its length.
_LONGEST_PIECE = 512
# Other names that llama.cpp splits alike.
_ALIASES = {
    "llama3": "llama-bpe",
    "llama-v3": "llama-bpe",
    "deepseek-r1-qwen": "qwen2",
    "phi-2": "gpt-2",
    "llama4": "gpt-4o",
}
# transformers 5 splits text of these families one way, whatever tokenizer.json says (auto/tokenization_auto.py).
_SPLIT_BY_CLASS = {"qwen2": "qwen2"}
_BOS_BY_DEFAULT = ("llama-bpe", "tekken")
# Ends of turns, at which llama.cpp stops whatever the keys say.
_TURN_ENDS = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|eom_id|>")
# By a model's name llama.cpp lets Phi-3's special tokens take the white space after them, but for these.
_PHI3 = re.compile("phi-?3", re.IGNORECASE)
_PHI3_KEEPS_SPACE = ("<unk>", "<s>", "<|endoftext|>")


@dataclass(frozen=True)
class Restored:
    """The files' contents. `template` is "" where the file has none; `ids`: bos, eos, pad; `stops`: what ends an answer."""

    tokenizer: Mapping[str, Any]
    settings: Mapping[str, Any]
    template: str
    ids: Mapping[str, int | None]
    stops: tuple[int, ...]


@dataclass(frozen=True)
class _Vocabulary:
    """What every kind of tokenizer has. `special`: role → id, within the vocabulary."""

    model: str
    texts: Sequence[str]
    types: Sequence[int]
    special: Mapping[str, int]
    keys: Mapping[str, Any]

    def text(self, role: str) -> str | None:
        return self.texts[self.special[role]] if role in self.special else None


def restore(metadata: Mapping[str, Any], *, rows: int, context: int, where: str) -> Restored:
    """The tokenizer of a model of `rows` embedding rows and `context` positions. Padding at the end is left out.

    Raises:
        DataError: there is no tokenizer, or it is damaged, or does not fit the embedding.
        UsageError: a kind of tokenizer or a way of splitting that cannot be made of tokenizer.json's parts.
    """
    found = _vocabulary(metadata, rows=rows, where=where)
    name = "" if found.model == "llama" else _pre_tokenizer(found.keys, where=where)
    family = str(metadata.get("general.architecture"))
    if _SPLIT_BY_CLASS.get(family, name) != name:
        what = f"transformers cannot split text as this {family} file says ({name or 'SentencePiece'})"
        raise UsageError(what, code="LK0623", where=where, next="name the original model as the base")
    if found.model == "llama":
        body, adds_bos = _sentencepiece(found, where=where), True
    else:
        body, adds_bos = _byte_level(found, name, where=where), name in _BOS_BY_DEFAULT
    first = found.text("bos") if found.keys.get("add_bos_token", adds_bos) else None
    last = found.text("eos") if found.keys.get("add_eos_token", False) else None
    rstrip = bool(_PHI3.search(str(metadata.get("general.name", ""))))
    template = metadata.get("tokenizer.chat_template", "")
    ids = {f"{role}_token_id": found.special.get(role) for role in ("bos", "eos", "pad")}
    return Restored(
        tokenizer={
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": _added(found, rstrip=rstrip),
            **body,
            "post_processor": _post_processor(found, first, last),
        },
        settings={
            # This class takes tokenizer.json as it stands; LlamaTokenizer and GemmaTokenizer build their own of its tokens.
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": context,
            "clean_up_tokenization_spaces": False,
            **{f"{role}_token": text for role in ("bos", "eos", "unk", "pad") if (text := found.text(role)) is not None},
        },
        template=template if isinstance(template, str) else "",
        ids=ids,
        stops=_stops(found),
    )


def _vocabulary(metadata: Mapping[str, Any], *, rows: int, where: str) -> _Vocabulary:
    keys = {key.removeprefix(_KEY): value for key, value in metadata.items() if key.startswith(_KEY)}
    model, texts = keys.get("model"), keys.get("tokens")
    if model is None or not texts:
        raise DataError(
            "the GGUF file has no tokenizer", code="LK0623", where=where, next="name the original model, or a file that has one"
        )
    if model not in ("llama", "gpt2"):
        raise UsageError(
            f"cannot make a tokenizer of kind {reprlib.repr(model)} out of a GGUF file",
            code="LK0623",
            where=where,
            next="supported: llama (SentencePiece BPE) and gpt2 (byte-level BPE)",
        )
    types = keys.get("token_type", [int(TokenType.NORMAL)] * rows)
    if not _all(texts, str) or not _all(types, int) or not len(texts) == len(types) == rows:
        raise DataError(f"the tokenizer does not fit the embedding's {rows} rows", code="LK0623", where=where)
    named = [text or f"[EMPTY_{index}]" for index, text in enumerate(texts)]  # as llama.cpp does
    while named and types[len(named) - 1] == TokenType.UNUSED and _PADDING.fullmatch(named[-1]):
        named.pop()
    if not named or len(set(named)) != len(named):
        raise DataError("two tokens of the tokenizer have one text", code="LK0623", where=where)
    return _Vocabulary(model, named, types[: len(named)], _special(keys, model, len(named)), keys)


def _special(keys: Mapping[str, Any], model: str, count: int) -> dict[str, int]:
    usual = {"bos": 1, "eos": 2, "unknown": 0} if model == "llama" else {}
    found: dict[str, int] = {}
    for role, key in {"bos": "bos", "eos": "eos", "eot": "eot", "eom": "eom", "unk": "unknown", "pad": "padding"}.items():
        index = keys.get(f"{key}_token_id", usual.get(key))
        if isinstance(index, int) and 0 <= index < count:  # llama.cpp, too, disregards others
            found[role] = index
    return found


def _sentencepiece(found: _Vocabulary, *, where: str) -> dict[str, Any]:
    """llama.cpp joins the neighbours whose joint token scores highest; merges in the order of scores do the same."""
    scores = found.keys.get("scores")
    if not _all(scores, float) or not scores or len(scores) < len(found.texts):
        raise DataError("the tokenizer has no score for each token", code="LK0623", where=where)
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    back = [{"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]
    normalizer: dict[str, Any] = spaces
    if found.keys.get("add_space_prefix", True):
        normalizer = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": _SPACE}, spaces]}
        back.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "normalizer": normalizer,
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": back},
        "model": _bpe(
            found.texts,
            _merges_by_score(found, scores, where=where),
            unk_token=found.text("unk"),
            fuse_unk=True,
            byte_fallback=True,
        ),
    }


def _merges_by_score(found: _Vocabulary, scores: Sequence[float], *, where: str) -> list[tuple[str, str]]:
    """Every way to cut every token into two; the longest left part first among equals, as transformers orders them."""
    joined = {TokenType.NORMAL, TokenType.USER_DEFINED}
    pieces = {text for text, kind in zip(found.texts, found.types, strict=True) if kind in joined}
    # Every other token is found in the text as it stands, before anything is joined.
    made = [
        (-score, index)
        for index, (score, kind) in enumerate(zip(scores, found.types, strict=False))
        if kind == TokenType.NORMAL and len(found.texts[index]) > 1
    ]
    merges: list[tuple[str, str]] = []
    for _, index in sorted(made):
        text = found.texts[index]
        if len(text) > _LONGEST_PIECE:
            raise DataError(f"token {index} is {len(text)} characters long", code="LK0623", where=where)
        for cut in range(len(text) - 1, 0, -1):
            left = text[:cut]
            if left in pieces and text[cut:] in pieces:
                merges.append((left, text[cut:]))
    return merges


def _pre_tokenizer(keys: Mapping[str, Any], *, where: str) -> str:
    name = str(keys.get("pre", "default"))
    name = _ALIASES.get(name, name)
    known = [entry for entry, _, _ in pre_tokenizers.STRUCTURES]
    if name not in known:
        raise UsageError(
            f"this file's tokenizer splits text by {reprlib.repr(name)}, which llmkit cannot write as tokenizer.json",
            code="LK0623",
            where=where,
            next=f"name the original model as the base; known: {', '.join(known)}",
        )
    return name


def _byte_level(found: _Vocabulary, name: str, *, where: str) -> dict[str, Any]:
    steps, ignore_merges = next((steps, ignore) for entry, steps, ignore in pre_tokenizers.STRUCTURES if entry == name)
    listed = found.keys.get("merges")
    if not _all(listed, str) or listed is None:
        raise DataError("the tokenizer has no merges", code="LK0623", where=where)
    known = set(found.texts)
    merges: list[tuple[str, str]] = []
    for merge in listed:
        cut = merge.find(" ", 1)
        left, right = merge[:cut], merge[cut + 1 :]
        # A vocabulary cut to the embedding's rows leaves merges of tokens that are gone.
        if cut > 0 and left in known and right in known and left + right in known:
            merges.append((left, right))
    bytes_back = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    return {
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"trim_offsets": True, **step} for step in steps]},
        "decoder": bytes_back,
        "model": _bpe(found.texts, merges, ignore_merges=ignore_merges),
    }


def _bpe(texts: Sequence[str], merges: list[tuple[str, str]], **settings: Any) -> dict[str, Any]:
    usual = {"unk_token": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    return {
        "type": "BPE",
        "dropout": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        **usual,
        **settings,
        "vocab": {text: index for index, text in enumerate(texts)},
        "merges": merges,
    }


def _added(found: _Vocabulary, *, rstrip: bool) -> list[dict[str, Any]]:
    """What llama.cpp looks for in a text before it splits it."""
    special = {TokenType.CONTROL, TokenType.UNKNOWN}
    return [
        {
            "id": index,
            "content": text,
            "single_word": False,
            "lstrip": False,
            "rstrip": rstrip and text not in _PHI3_KEEPS_SPACE,
            "normalized": False,
            "special": kind in special,
        }
        for index, (text, kind) in enumerate(zip(found.texts, found.types, strict=True))
        if kind in special or kind == TokenType.USER_DEFINED
    ]


def _post_processor(found: _Vocabulary, first: str | None, last: str | None) -> dict[str, Any]:
    def around(sequence: str, kind: int) -> list[dict[str, Any]]:
        before = [{"SpecialToken": {"id": first, "type_id": kind}}] if first else []
        after = [{"SpecialToken": {"id": last, "type_id": kind}}] if last else []
        return [*before, {"Sequence": {"id": sequence, "type_id": kind}}, *after]

    ids = {text: found.texts.index(text) for text in (first, last) if text}
    return {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": [*around("A", 0), *around("B", 1)],
        "special_tokens": {text: {"id": text, "ids": [index], "tokens": [text]} for text, index in ids.items()},
    }


def _stops(found: _Vocabulary) -> tuple[int, ...]:
    named = [found.special[role] for role in ("eos", "eot", "eom") if role in found.special]
    by_text = [
        index
        for index, (text, kind) in enumerate(zip(found.texts, found.types, strict=True))
        if text in _TURN_ENDS and kind != TokenType.NORMAL
    ]
    return tuple(dict.fromkeys([*named, *by_text]))


def _all(values: Any, kind: type) -> bool:
    return isinstance(values, list) and all(type(value) is kind for value in values)

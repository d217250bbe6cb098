"""A tokenizer's files as GGUF metadata. Knows tokenizer.json, tokenizer_config.json, generation_config.json; no weights.

Two kinds of tokenizer exist in llama.cpp that llmkit writes. `llama` (SentencePiece BPE with byte fallback) merges the
neighbours whose joined token scores highest, so a token's score is minus the rank of its first merge; tokenizer.model
is not needed. `gpt2` (byte-level BPE) takes the merges themselves and the name of a splitting expression that is
compiled into llama.cpp, see `pre_tokenizers`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any

from llmkit.errors import DataError, UsageError
from llmkit.gguf import pre_tokenizers
from llmkit.gguf.pre_tokenizers import parts
from llmkit.gguf.special_tokens import check_added, general_name, special_ids, stop_ids
from llmkit.gguf.tokenizer_files import TokenizerFiles, read_json

__all__ = ["TokenType", "TokenizerFiles", "general_name", "metadata", "read_json", "stop_ids", "warnings"]

Metadata = dict[str, Any]


class TokenType(IntEnum):
    """As llama.cpp numbers them."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


_SPACE = "▁"
_BYTE_TOKENS = tuple(f"<0x{byte:02X}>" for byte in range(256))
_UNREACHABLE = -1e9  # the score of a token that no merge makes
_LARGEST_VOCABULARY = 1 << 24  # ranks are exact in a score's float32 up to here
# Gemma 3's text models carry the tokenizer of those that see; this one token lies behind their embedding.
_WITHOUT_ROW = frozenset({"<image_soft_token>"})


def metadata(files: TokenizerFiles, *, rows: int, template: str, pre: str | None = None) -> Metadata:
    """Every `tokenizer.*` key for a model of `rows` embedding rows; rows without a token become `[PADn]`, UNUSED.

    `template` is the chat template's text ("" for none), `pre` llama.cpp's name for how the text is split, where the user
    knows better; see `special_tokens.special_ids` for where bos, eos and the others come from.

    Raises:
        DataError: a file is damaged, names a token that does not exist or holds more tokens than the model has rows.
        UsageError: a tokenizer that llama.cpp could not reproduce, or a `pre` that it does not know.
    """
    with files.understood():
        return _metadata(files, rows=rows, template=template, pre=pre)


def warnings(files: TokenizerFiles, *, pre: str | None = None) -> list[str]:
    """What llama.cpp will do otherwise than transformers, rare enough not to refuse; for a tokenizer that `metadata` takes.

    Raises:
        DataError: a file is damaged.
        UsageError: as `metadata`.
    """
    found = []
    with files.understood():
        if any(part.get("type") == "NFC" for part in parts(files.tokenizer.get("normalizer"))):
            found.append(
                "llama.cpp does not compose characters (NFC) as this tokenizer does: compose decomposed text before it"
            )
        if _kind(files) == "gpt2" and pre_tokenizers.find(files.tokenizer, files.path, pre=pre) in pre_tokenizers.APPROXIMATE:
            found.append("llama.cpp splits some rare text otherwise than this tokenizer: marks, and capitals beyond ASCII")
    return found


def _metadata(files: TokenizerFiles, *, rows: int, template: str, pre: str | None) -> Metadata:
    model = files.tokenizer["model"]
    kind = _kind(files)
    check_added(files)
    tokens, types = _tokens(files, rows=rows, kind=kind)
    found: Metadata = {"tokenizer.ggml.model": kind}
    if kind == "llama":
        if pre is not None:
            raise UsageError(
                f"a SentencePiece tokenizer takes no pre-tokenizer, not {pre!r}", code="LK0606", where=str(files.path)
            )
        found |= {"tokenizer.ggml.pre": "default", "tokenizer.ggml.scores": _scores(model, tokens)}
        found["tokenizer.ggml.add_space_prefix"] = _adds_space_prefix(files)
    else:
        _check_normalizer(files)
        found["tokenizer.ggml.pre"] = pre_tokenizers.find(files.tokenizer, files.path, pre=pre)
        found |= {"tokenizer.ggml.merges": _merges(model), "tokenizer.ggml.add_space_prefix": False}
    found |= {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types}
    found |= special_ids(files, tokens)
    if template:
        found["tokenizer.chat_template"] = template
    return found


def _kind(files: TokenizerFiles) -> str:
    model = files.tokenizer["model"]
    odd = [key for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix") if model.get(key)]
    if model.get("type") == "BPE" and not odd:
        if model.get("byte_fallback") and not model.get("ignore_merges"):
            return "llama"
        if any(part.get("type") == "ByteLevel" for part in parts(files.tokenizer["pre_tokenizer"])):
            return "gpt2"
    raise UsageError(
        f"cannot write a {model.get('type')} tokenizer to GGUF" + (f" with {odd[0]}" if odd else ""),
        code="LK0605",
        where=str(files.path),
        next="supported: BPE with byte fallback (SentencePiece) and byte-level BPE",
    )


def _tokens(files: TokenizerFiles, *, rows: int, kind: str) -> tuple[list[str], list[int]]:
    """`rows` texts, no two alike, and their types."""
    by_id, types = _known(files, rows=rows, kind=kind)
    taken = set(by_id.values())
    if len(taken) != len(by_id):
        twice = next(text for text, count in Counter(by_id.values()).items() if count > 1)
        raise DataError(f"tokenizer.json gives two ids to the token {twice!r}", code="LK0607", where=str(files.path))
    unreadable = [text for text in taken if not text or "\0" in text]
    if unreadable:
        raise DataError(f"llama.cpp cannot read the token {unreadable[0]!r}", code="LK0605", where=str(files.path))
    tokens = [by_id[index] if index in by_id else _padding(index, taken) for index in range(rows)]
    return tokens, [int(types.get(index, TokenType.UNUSED)) for index in range(rows)]


def _padding(index: int, taken: set[str]) -> str:
    text = f"[PAD{index}]"
    return text if text not in taken else f"[PAD{index}:unused]"


def _known(files: TokenizerFiles, *, rows: int, kind: str) -> tuple[dict[int, str], dict[int, TokenType]]:
    """Text and type of every id that has a token."""
    if not 0 < rows <= _LARGEST_VOCABULARY:
        raise DataError(f"a vocabulary of {rows} tokens is beyond what llmkit writes", code="LK0605", where=str(files.folder))
    by_id: dict[int, str] = {}
    types: dict[int, TokenType] = {}
    for text, index in files.tokenizer["model"]["vocab"].items():
        _check_id(files, text, index, rows=rows)
        if index in by_id:
            raise DataError(
                f"tokenizer.json gives id {index} to {by_id[index]!r} and {text!r}", code="LK0607", where=str(files.path)
            )
        by_id[index] = text
        types[index] = TokenType.NORMAL
    if kind == "llama":
        _mark_bytes(files, types)
    for added in files.tokenizer["added_tokens"]:
        text, index = str(added["content"]), added["id"]
        if text in _WITHOUT_ROW and index == rows:
            continue
        _check_id(files, text, index, rows=rows)
        if by_id.get(index, text) != text:
            raise DataError(
                f"tokenizer.json gives id {index} to {by_id[index]!r} and {text!r}", code="LK0607", where=str(files.path)
            )
        by_id[index] = _as_found(files, text) if added.get("normalized") else text
        types[index] = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    return by_id, types


def _check_id(files: TokenizerFiles, text: str, index: Any, *, rows: int) -> None:
    if not isinstance(index, int) or isinstance(index, bool) or index < 0:
        raise DataError(f"tokenizer.json gives {text!r} the id {index!r}", code="LK0607", where=str(files.path))
    if index >= rows:
        raise DataError(
            f"the tokenizer is larger than the embedding: token {text!r} has id {index}, the model has {rows} rows",
            code="LK0607",
            where=str(files.path),
            next="this is another model's tokenizer, or tokens were added and the embedding not resized",
        )


def _mark_bytes(files: TokenizerFiles, types: dict[int, TokenType]) -> None:
    vocab, unknown = files.tokenizer["model"]["vocab"], files.tokenizer["model"].get("unk_token")
    missing = next((text for text in _BYTE_TOKENS if text not in vocab), None)
    if missing:
        raise UsageError(
            f"this tokenizer lacks the byte token {missing}, which llama.cpp needs", code="LK0605", where=str(files.path)
        )
    types |= dict.fromkeys((vocab[text] for text in _BYTE_TOKENS), TokenType.BYTE)
    if unknown is not None and unknown in vocab:
        types[vocab[unknown]] = TokenType.UNKNOWN


def _as_found(files: TokenizerFiles, text: str) -> str:
    """An added token looked for in normalized text, as it stands in the text itself: there a space is a space."""
    replaces = any(part.get("type") == "Replace" for part in parts(files.tokenizer.get("normalizer")))
    return text.replace(_SPACE, " ") if replaces else text


def _scores(model: Mapping[str, Any], tokens: Sequence[str]) -> list[float]:
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(_pairs(model)):
        ranks.setdefault(merge[0] + merge[1], rank)
    return [-float(ranks[token]) if token in ranks else _UNREACHABLE for token in tokens]


def _merges(model: Mapping[str, Any]) -> list[str]:
    pairs = _pairs(model)
    if any(" " in left or " " in right for left, right in pairs):
        raise ValueError("a merge of byte-level BPE holds a space")
    return [f"{left} {right}" for left, right in pairs]


def _pairs(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Merges are pairs, or in older files strings with one space."""
    pairs = []
    for merge in model["merges"]:
        left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
        pairs.append((left, right))
    return pairs


def _check_normalizer(files: TokenizerFiles) -> None:
    """Byte-level BPE takes text as it is, or composed (NFC), see `warnings`."""
    for part in parts(files.tokenizer.get("normalizer")):
        if part.get("type") != "NFC":
            _refuse_step(files, part, "NFC or no normalizer")


def _adds_space_prefix(files: TokenizerFiles) -> bool:
    """Whether a space goes before a text and after every special token, as `Prepend` and Metaspace's `always` do.

    Metaspace's `first` puts it before the whole text only. A chat opens with a special token, so llama.cpp must not.
    """
    prefix = False
    for part in [*parts(files.tokenizer.get("normalizer")), *parts(files.tokenizer.get("pre_tokenizer"))]:
        match part:
            case {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}:
                continue
            case {"type": "Prepend", "prepend": "▁"}:
                prefix = True
            case {"type": "Metaspace", "replacement": "▁", "split": False}:
                prefix = prefix or part.get("prepend_scheme") == "always"
            case {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious"}:
                continue  # spaces are gone by then
            case _:
                _refuse_step(files, part, "Prepend, Replace and Metaspace with ▁ for a space")
    return prefix


def _refuse_step(files: TokenizerFiles, part: Mapping[str, Any], supported: str) -> None:
    raise UsageError(
        f"llama.cpp cannot reproduce this tokenizer's {part.get('type')} step",
        code="LK0605",
        where=str(files.path),
        next=f"supported: {supported}",
    )

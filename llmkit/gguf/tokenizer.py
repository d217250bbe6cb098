"""A tokenizer's files as GGUF metadata. Knows tokenizer.json, tokenizer_config.json, generation_config.json; no weights.

Two kinds of tokenizer exist in llama.cpp that llmkit writes. `llama` (SentencePiece BPE with byte fallback) merges the
neighbours whose joined token scores highest, so a token's score is minus the rank of its first merge; tokenizer.model
is not needed. `gpt2` (byte-level BPE) takes the merges themselves and the name of a splitting expression that is
compiled into llama.cpp: the table `PRE_TOKENIZERS` names it from the expression in tokenizer.json.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import orjson

from llmkit.errors import DataError, UsageError

Metadata = dict[str, Any]


class TokenType(IntEnum):
    """As llama.cpp numbers them."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BYTES_ONLY = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}

# (llama.cpp's name, tokenizer.json's pre_tokenizer, its ignore_merges): equal settings split equally, whatever the vocabulary.
PRE_TOKENIZERS: tuple[tuple[str, Sequence[Mapping[str, Any]], bool], ...] = (
    ("gpt-2", [_BYTES], False),
    ("smollm", [{"type": "Digits", "individual_digits": True}, _BYTES], False),
    (
        "llama-bpe",
        [{"type": "Split", "pattern": {"Regex": _LLAMA3_SPLIT}, "behavior": "Isolated", "invert": False}, _BYTES_ONLY],
        True,
    ),
)

_SPACE = "▁"
_UNREACHABLE = -1e9  # the score of a token that no merge makes


@dataclass(frozen=True)
class TokenizerFiles:
    """The parsed files of one model folder; absent ones are empty."""

    folder: Path
    tokenizer: Mapping[str, Any]
    settings: Mapping[str, Any]
    generation: Mapping[str, Any]
    config: Mapping[str, Any]

    @staticmethod
    def read(folder: Path) -> "TokenizerFiles":
        """Raises DataError where tokenizer.json is missing or a file is no JSON object."""
        return TokenizerFiles(
            folder,
            read_json(folder / "tokenizer.json"),
            read_json(folder / "tokenizer_config.json", required=False),
            read_json(folder / "generation_config.json", required=False),
            read_json(folder / "config.json", required=False),
        )


def read_json(path: Path, *, required: bool = True) -> dict[str, Any]:
    """The JSON object in `path`; {} where the file may be and is missing.

    Raises:
        DataError: the file is missing, unreadable or holds something else.
    """
    try:
        value = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        if required:
            raise DataError(f"the model folder has no {path.name}", where=str(path.parent)) from None
        return {}
    except (OSError, orjson.JSONDecodeError) as error:
        raise DataError(f"cannot read {path.name}: {error}", where=str(path)) from None
    if not isinstance(value, dict):
        raise DataError(f"{path.name} must hold a JSON object", where=str(path))
    return value


def metadata(files: TokenizerFiles, *, rows: int, template: str) -> Metadata:
    """Every `tokenizer.*` key for a model of `rows` embedding rows.

    Tokens beyond `rows` are left out, rows without a token become `[PADn]`. End-of-sequence ids come from
    generation_config.json, else config.json, else the tokenizer's eos_token; llama.cpp stops at eos, eot and eom.

    Raises:
        DataError: a file is damaged or names a token that does not exist.
        UsageError: a tokenizer that llama.cpp could not reproduce.
    """
    try:
        return _metadata(files, rows=rows, template=template)
    except (LookupError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise DataError(f"tokenizer.json is damaged: {error!r}", where=str(files.folder)) from None


def _metadata(files: TokenizerFiles, *, rows: int, template: str) -> Metadata:
    model = files.tokenizer["model"]
    kind = _kind(files)
    tokens, types = _tokens(files, rows=rows, kind=kind)
    found: Metadata = {"tokenizer.ggml.model": kind}
    if kind == "llama":
        found |= {"tokenizer.ggml.pre": "default", "tokenizer.ggml.scores": _scores(model, tokens)}
        found["tokenizer.ggml.add_space_prefix"] = _adds_space_prefix(files)
    else:
        found |= {"tokenizer.ggml.pre": _pre_tokenizer(files), "tokenizer.ggml.merges": _merges(model)}
        found["tokenizer.ggml.add_space_prefix"] = False
    found |= {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types}
    found |= _special_ids(files, {token: index for index, token in enumerate(tokens)})
    if template:
        found["tokenizer.chat_template"] = template
    return found


def _kind(files: TokenizerFiles) -> str:
    model = files.tokenizer["model"]
    if model.get("type") == "BPE" and model.get("byte_fallback"):
        return "llama"
    if model.get("type") == "BPE" and any(part.get("type") == "ByteLevel" for part in _parts(files.tokenizer["pre_tokenizer"])):
        return "gpt2"
    raise UsageError(
        f"cannot write a {model.get('type')} tokenizer to GGUF",
        where=str(files.folder / "tokenizer.json"),
        next="supported: BPE with byte fallback (SentencePiece) and byte-level BPE",
    )


def _tokens(files: TokenizerFiles, *, rows: int, kind: str) -> tuple[list[str], list[int]]:
    """`rows` texts and their types."""
    tokens = [f"[PAD{index}]" for index in range(rows)]
    types = [int(TokenType.UNUSED)] * rows
    for text, index in files.tokenizer["model"]["vocab"].items():
        if not isinstance(index, int) or index < 0:
            raise ValueError(f"token {text!r} has id {index!r}")
        if index < rows:
            tokens[index] = text
            types[index] = int(TokenType.BYTE if kind == "llama" and _is_byte(text) else TokenType.NORMAL)
    unknown = files.tokenizer["model"].get("unk_token")
    for added in files.tokenizer["added_tokens"]:
        if not isinstance(added["id"], int) or added["id"] < 0:
            raise ValueError(f"added token {added['content']!r} has id {added['id']!r}")
        if added["id"] < rows:
            tokens[added["id"]] = str(added["content"])
            types[added["id"]] = int(TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED)
    if kind == "llama" and unknown in tokens and types[tokens.index(unknown)] == TokenType.NORMAL:
        types[tokens.index(unknown)] = int(TokenType.UNKNOWN)
    return tokens, types


def _is_byte(text: str) -> bool:
    return len(text) == 6 and text.startswith("<0x") and text.endswith(">")


def _scores(model: Mapping[str, Any], tokens: Sequence[str]) -> list[float]:
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(_pairs(model)):
        ranks.setdefault(merge[0] + merge[1], rank)
    return [-float(ranks[token]) if token in ranks else _UNREACHABLE for token in tokens]


def _merges(model: Mapping[str, Any]) -> list[str]:
    return [f"{left} {right}" for left, right in _pairs(model)]


def _pairs(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Merges are pairs, or in older files strings with one space."""
    pairs = []
    for merge in model["merges"]:
        left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
        pairs.append((left, right))
    return pairs


def _parts(component: Any) -> list[Mapping[str, Any]]:
    """A normalizer or pre-tokenizer as the list it is a sequence of."""
    if component is None:
        return []
    if component.get("type") == "Sequence":
        inner = component.get("pretokenizers", component.get("normalizers", []))
        return [part for child in inner for part in _parts(child)]
    return [component]


def _adds_space_prefix(files: TokenizerFiles) -> bool:
    """Whether a space goes before a text and after every special token, as `Prepend` and Metaspace's `always` do.

    Metaspace's `first` puts it before the whole text only. A chat opens with a special token, so llama.cpp must not.
    """
    prefix = False
    for part in [*_parts(files.tokenizer.get("normalizer")), *_parts(files.tokenizer.get("pre_tokenizer"))]:
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
                raise UsageError(
                    f"llama.cpp cannot reproduce this tokenizer's {part.get('type')} step",
                    where=str(files.folder / "tokenizer.json"),
                    next="supported: Prepend, Replace and Metaspace with ▁ for a space",
                )
    return prefix


def _pre_tokenizer(files: TokenizerFiles) -> str:
    steps = [
        {key: value for key, value in part.items() if key != "trim_offsets"}
        for part in _parts(files.tokenizer["pre_tokenizer"])
    ]
    ignore_merges = bool(files.tokenizer["model"].get("ignore_merges"))
    for name, known, known_ignore in PRE_TOKENIZERS:
        if steps == list(known) and ignore_merges == known_ignore and not _parts(files.tokenizer.get("normalizer")):
            return name
    raise UsageError(
        "this tokenizer splits text in a way that llmkit does not know in llama.cpp",
        where=str(files.folder / "tokenizer.json"),
        next=f"known: {', '.join(name for name, _, _ in PRE_TOKENIZERS)}; found {json.dumps(steps)[:200]}",
    )


def _special_ids(files: TokenizerFiles, ids: Mapping[str, int]) -> Metadata:
    found: Metadata = {}
    named = {role: _token_text(files.settings.get(f"{role}_token")) for role in ("bos", "eos", "unk", "pad")}
    named["unk"] = named["unk"] or files.tokenizer["model"].get("unk_token")
    for role, key in {"bos": "bos", "unk": "unknown", "pad": "padding"}.items():
        text = named[role]
        if text is not None and text in ids:
            found[f"tokenizer.ggml.{key}_token_id"] = ids[text]
    for key, index in zip(("eos", "eot", "eom"), _stop_ids(files, ids, named["eos"]), strict=False):
        found[f"tokenizer.ggml.{key}_token_id"] = index
    first, last = _template_ends(files)
    found["tokenizer.ggml.add_bos_token"] = first is not None and first == named["bos"]
    found["tokenizer.ggml.add_eos_token"] = last is not None and last == named["eos"]
    return found


def stop_ids(files: TokenizerFiles) -> list[int]:
    """The ids that end a generation, as transformers reads them: a list in generation_config.json, else one of config.json."""
    for source in (files.generation, files.config):
        value = source.get("eos_token_id")
        if value is not None:
            listed = value if isinstance(value, list) else [value]
            if not all(isinstance(index, int) and not isinstance(index, bool) for index in listed):
                raise DataError("eos_token_id must be an id or a list of ids", where=str(files.folder))
            return list(dict.fromkeys(listed))
    return []


def _stop_ids(files: TokenizerFiles, ids: Mapping[str, int], eos: str | None) -> list[int]:
    """At most three stop ids, the tokenizer's own eos_token first."""
    own = ids.get(eos) if eos else None
    listed = stop_ids(files) or ([own] if own is not None else [])
    where = str(files.folder)
    if not listed:
        raise DataError("no end-of-sequence token is known", where=where, next="set eos_token_id in generation_config.json")
    if len(listed) > 3 or max(listed) >= len(ids) or min(listed) < 0:
        raise DataError(f"cannot write the stop ids {listed}: GGUF holds three, below {len(ids)}", where=where)
    return sorted(listed, key=lambda index: index != own)


def _template_ends(files: TokenizerFiles) -> tuple[str | None, str | None]:
    """The special tokens that tokenizer.json puts before and after a text."""
    post = files.tokenizer.get("post_processor") or {}
    for part in post.get("processors", [post]):
        if part.get("type") == "TemplateProcessing":
            single = part["single"]
            texts = [piece["SpecialToken"]["id"] if "SpecialToken" in piece else None for piece in single]
            return (texts[0], texts[-1]) if texts else (None, None)
    return None, None


def _token_text(token: Any) -> str | None:
    """tokenizer_config.json holds a token as a string or as {"content": …}."""
    if isinstance(token, Mapping):
        token = token.get("content")
    return token if isinstance(token, str) else None

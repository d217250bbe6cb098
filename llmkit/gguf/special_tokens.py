"""Which ids begin, end and fill a text, and what else the added tokens demand of llama.cpp. Knows no vocabulary's merges.

llama.cpp ends a generation at the ids of three keys and at every token whose text is in a list of its own; it strips no
spaces beside a special token, but for one family that it tells by the model's name.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from llmkit.errors import DataError, UsageError
from llmkit.gguf.pre_tokenizers import parts
from llmkit.gguf.tokenizer_files import TokenizerFiles

Metadata = dict[str, Any]

_KEYS = {"bos": "bos", "unk": "unknown", "pad": "padding"}
# Texts at which llama.cpp ends a generation without a key (`special_eog_ids` in its llama-vocab.cpp).
_ENDS_BY_TEXT = frozenset(
    {
        *("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>"),
        *("[EOT]", "[EOS]", "<|end_of_text|>", "<end_of_utterance>", "<eos>", "<｜end▁of▁sentence｜>"),
    }
)
# A name with this in it has llama.cpp strip the spaces behind every special token but `_PHI3_KEEPS`, which must all exist.
_PHI3 = re.compile("phi-?3", re.IGNORECASE)
_PHI3_KEEPS = frozenset({"<unk>", "<s>", "<|endoftext|>"})
_PHI3_END = "</s>"


def special_ids(files: TokenizerFiles, tokens: Sequence[str]) -> Metadata:
    """The keys of bos, eos, eot, eom, unk and pad, and whether bos and eos go around a text.

    Each from tokenizer_config.json, else generation_config.json, else config.json; end-of-sequence ids, which may be
    lists, from generation_config.json, else config.json, else the tokenizer's eos_token, as transformers reads them.

    Raises:
        DataError: an id does not exist, no end is known, or there are more ends than GGUF holds.
        UsageError: tokenizer.json puts more around a text than llama.cpp can.
    """
    ids = {token: index for index, token in enumerate(tokens)}
    before, after = _around(files)
    named = {role: _text(files.settings.get(f"{role}_token")) for role in ("bos", "eos", "unk", "pad")}
    named["unk"] = named["unk"] or files.tokenizer["model"].get("unk_token")
    named["bos"] = named["bos"] or (before[0] if before else None)
    found: Metadata = {}
    for role, key in _KEYS.items():
        index = _id(files, role, named[role], ids)
        if index is not None:
            found[f"tokenizer.ggml.{key}_token_id"] = index
    for key, index in zip(("eos", "eot", "eom"), _kept_stop_ids(files, ids, tokens, named["eos"]), strict=False):
        found[f"tokenizer.ggml.{key}_token_id"] = index
    eos = tokens[found["tokenizer.ggml.eos_token_id"]]
    if before not in ([], [named["bos"]]) or after not in ([], [eos]):
        raise UsageError(
            f"tokenizer.json puts {[*before, '…', *after]} around a text: llama.cpp can put only bos before and eos behind",
            code="LK0605",
            where=str(files.path),
        )
    return found | {"tokenizer.ggml.add_bos_token": bool(before), "tokenizer.ggml.add_eos_token": bool(after)}


def stop_ids(files: TokenizerFiles) -> list[int]:
    """The ids that end a generation, as transformers reads them: a list in generation_config.json, else one of config.json."""
    for source in (files.generation, files.config):
        value = source.get("eos_token_id")
        if value is not None:
            listed = value if isinstance(value, list) else [value]
            if not all(isinstance(index, int) and not isinstance(index, bool) for index in listed):
                raise DataError("eos_token_id must be an id or a list of ids", code="LK0608", where=str(files.folder))
            return list(dict.fromkeys(listed))
    return []


def _kept_stop_ids(files: TokenizerFiles, ids: Mapping[str, int], tokens: Sequence[str], eos: str | None) -> list[int]:
    """The stop ids that need a key, at most three, the tokenizer's own eos_token first."""
    own = ids.get(eos) if eos else None
    listed = stop_ids(files) or ([own] if own is not None else [])
    where = str(files.folder)
    if not listed:
        raise DataError(
            "no end-of-sequence token is known", code="LK0608", where=where, next="set eos_token_id in generation_config.json"
        )
    if max(listed) >= len(tokens) or min(listed) < 0:
        raise DataError(
            f"eos_token_id names ids that do not exist: {listed[:5]} of {len(tokens)} tokens", code="LK0608", where=where
        )
    first, *rest = sorted(listed, key=lambda index: index != own)
    if len(rest) > 2:
        rest = [index for index in rest if tokens[index] not in _ENDS_BY_TEXT]
    if len(rest) > 2:
        raise DataError(
            f"a GGUF file holds three end-of-sequence ids, this model has {len(rest) + 1} that llama.cpp does not know by text",
            code="LK0608",
            where=where,
            next=f"leave the likeliest in eos_token_id of generation_config.json: {[first, *rest][:8]}",
        )
    return [first, *rest]


def _id(files: TokenizerFiles, role: str, text: str | None, ids: Mapping[str, int]) -> int | None:
    if text is not None:
        return ids.get(text)
    for source in (files.generation, files.config):
        index = source.get(f"{role}_token_id")
        if isinstance(index, int) and not isinstance(index, bool) and 0 <= index < len(ids):
            return index
    return None


def _around(files: TokenizerFiles) -> tuple[list[str], list[str]]:
    """The special tokens that tokenizer.json puts before and behind a text."""
    post = files.tokenizer.get("post_processor")
    found: tuple[list[str], list[str]] = ([], [])
    for part in (post or {}).get("processors", [post] if post else []):
        if part.get("type") == "TemplateProcessing":
            pieces = [_text_of_piece(piece) for piece in part["single"]]
            middle = pieces.index(None) if None in pieces else len(pieces)
            found = ([text for text in pieces[:middle] if text], [text for text in pieces[middle:] if text])
        elif part.get("type") != "ByteLevel":
            raise UsageError(
                f"llama.cpp cannot reproduce this tokenizer's {part.get('type')} step", code="LK0605", where=str(files.path)
            )
    return found


def _text_of_piece(piece: Mapping[str, Any]) -> str | None:
    return str(piece["SpecialToken"]["id"]) if "SpecialToken" in piece else None


def _text(token: Any) -> str | None:
    """tokenizer_config.json holds a token as a string or as {"content": …}."""
    if isinstance(token, Mapping):
        token = token.get("content")
    return token if isinstance(token, str) else None


def check_added(files: TokenizerFiles) -> None:
    """Refuse added tokens that transformers finds elsewhere in a text than llama.cpp does, which looks for them as they are.

    Raises:
        UsageError: a token that takes the spaces beside it, stands for whole words only or is looked for in changed text.
    """
    changed = [part.get("type") for part in parts(files.tokenizer.get("normalizer"))]
    for added in files.tokenizer["added_tokens"]:
        for key in ("lstrip", "single_word"):
            if added.get(key):
                _refuse(files, added, key)
        if added.get("normalized") and "Prepend" in changed:
            _refuse(files, added, "normalized")
    _stripping(files)


def _refuse(files: TokenizerFiles, added: Mapping[str, Any], key: str) -> None:
    raise UsageError(
        f"llama.cpp cannot look for the added token {added['content']!r} as tokenizer.json says ({key})",
        code="LK0605",
        where=str(files.path),
        next=f"set its `{key}` to false, if the model was trained without",
    )


def _stripping(files: TokenizerFiles) -> bool:
    """Whether spaces behind special tokens vanish, as they do for Phi-3."""
    added = {str(token["content"]) for token in files.tokenizer["added_tokens"]}
    strips = {str(token["content"]) for token in files.tokenizer["added_tokens"] if token.get("rstrip")}
    if not strips:
        return False
    if strips != (added | {_PHI3_END}) - _PHI3_KEEPS or not added >= _PHI3_KEEPS:
        some = ", ".join(sorted(strips)[:3])
        raise UsageError(
            f"these added tokens take the spaces behind them (rstrip), others do not: {some}",
            code="LK0605",
            where=str(files.path),
            next="llama.cpp does so for all special tokens of Phi-3 or for none: set `rstrip` to false",
        )
    return True


def general_name(files: TokenizerFiles, name: str) -> str:
    """`name` as general.name, by which llama.cpp tells whether the spaces behind special tokens vanish.

    Raises:
        DataError: tokenizer.json is damaged.
        UsageError: some special tokens strip and others do not.
    """
    with files.understood():
        strips = _stripping(files)
    if strips:
        return name if _PHI3.search(name) else f"{name} (Phi-3)".strip()
    return _PHI3.sub("Phi 3", name)

"""What is wrong with a GGUF file, ours or not. Knows how llama.cpp reads its metadata; opens no weights, and trusts nothing.

The rules follow llama.cpp's source (src/llama-vocab.cpp, common/chat.cpp, src/models/*.cpp; build of October 2026).
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from math import isfinite, prod
from typing import Any

from llmkit.gguf.container import GgufFile, TensorInfo
from llmkit.gguf.rendering import Conversation, Rendering, render

_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4  # token types
# Tokens that end a generation by their text alone, whatever the metadata says (llama-vocab.cpp, special_eog_ids).
_ENDING_TEXTS = frozenset(
    (
        "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
        "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<end_of_utterance>",
        "<eos>", "<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~[",
        "<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]",
        "<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>", "<|file_sep|>",
    )
)  # fmt: skip
_ENDING_KEYS = ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep")
# Where the file names no EOS, llama.cpp takes a token by number, by the kind of tokenizer.
_DEFAULT_EOS = {"gpt2": 11, "llama": 2}
_ADDS_BOS = frozenset(("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "tekken"))
# Their graphs attend to everything, whatever `attention.sliding_window` says.
_NO_WINDOW = frozenset(("llama", "mistral3", "phi3", "qwen2", "qwen3", "qwen2moe", "qwen3moe"))
_LOOKS_CONTROL = re.compile(r"<\|[^|<>\s]{1,40}\|>|</?(?:start|end)_of_[a-z]{1,20}>")
_FEW = 3


class Severity(StrEnum):
    """`error`: the file will not load, or not talk as the model does; `note`: worth knowing, nothing to mend."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True)
class Finding:
    """One thing found: its check's name, what it is, why it hurts and what to do."""

    check: str
    severity: Severity
    what: str
    why: str
    fix: str


def lint(parts: Sequence[GgufFile]) -> list[Finding]:
    """Everything found in one model's file, or in its parts (`container.open_split`), errors first.

    Raises:
        MachineError: no process could be started to render the chat template in.
    """
    model = _Model(parts[0].metadata, tuple(tensor for part in parts for tensor in part.tensors))
    if model.kind != "model":
        return []  # an adapter, a projector or an importance matrix has no vocabulary to speak with
    order = list(Severity)
    return sorted((found for check in _CHECKS for found in check(model)), key=lambda found: order.index(found.severity))


def describe(parts: Sequence[GgufFile]) -> dict[str, Any]:
    """One model's file, or its parts, in plain values: sizes in bytes, types with counts, metadata with long arrays cut."""
    tensors = [tensor for part in parts for tensor in part.tensors]
    types: dict[str, dict[str, int]] = {}
    for tensor in tensors:
        entry = types.setdefault(tensor.type.name, {"tensors": 0, "bytes": 0})
        entry["tensors"] += 1
        entry["bytes"] += tensor.size
    parameters = sum(prod(tensor.shape) for tensor in tensors if not tensor.name.startswith("rope_"))
    stored = sum(tensor.size for tensor in tensors)
    metadata = parts[0].metadata
    return {
        "files": [{"path": str(part.path), "bytes": part.path.stat().st_size} for part in parts],
        "version": parts[0].version,
        "architecture": _plain(metadata.get("general.architecture")),
        "file_type": _file_type_name(metadata),
        "tensors": len(tensors),
        "parameters": parameters,
        "tensor_bytes": stored,
        "bits_per_weight": round(8 * stored / parameters, 3) if parameters else None,
        "types": dict(sorted(types.items(), key=lambda item: -item[1]["bytes"])),
        "metadata": {key: _plain(value) for key, value in metadata.items()},
    }


@dataclass(frozen=True)
class _Model:
    """The metadata as llama.cpp takes it; a value of the wrong kind counts as absent."""

    metadata: Mapping[str, Any]
    tensors: "tuple[TensorInfo, ...]"

    def text(self, key: str) -> str | None:
        value = self.metadata.get(key)
        return value if isinstance(value, str) else None

    def number(self, key: str) -> int | None:
        value = self.metadata.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    @property
    def kind(self) -> str:
        return self.text("general.type") or "model"

    @property
    def architecture(self) -> str:
        return self.text("general.architecture") or ""

    @property
    def tokenizer(self) -> str:
        return self.text("tokenizer.ggml.model") or ""

    @cached_property
    def tokens(self) -> list[str]:
        found = self.metadata.get("tokenizer.ggml.tokens")
        return found if isinstance(found, list) and all(isinstance(one, str) for one in found) else []

    @cached_property
    def types(self) -> list[int]:
        found = self.metadata.get("tokenizer.ggml.token_type")
        whole = isinstance(found, list) and len(found) == len(self.tokens)
        return found if whole and found is not None else [_NORMAL] * len(self.tokens)

    def special(self, role: str) -> int | None:
        """The id under `tokenizer.ggml.ROLE_token_id`, where it is one of the vocabulary."""
        found = self.number(f"tokenizer.ggml.{role}_token_id")
        return found if found is not None and 0 <= found < len(self.tokens) else None

    @property
    def eos(self) -> int | None:
        """The one named, else llama.cpp's own guess."""
        found = self.special("eos")
        guess = _DEFAULT_EOS.get(self.tokenizer)
        return found if found is not None else guess if guess is not None and guess < len(self.tokens) else None

    @property
    def bos_text(self) -> str:
        found = self.special("bos")
        if found is None and self.tokenizer == "llama" and len(self.tokens) > 1:
            found = 1
        return self.tokens[found] if found is not None else ""

    @property
    def adds_bos(self) -> bool:
        told = self.metadata.get("tokenizer.ggml.add_bos_token")
        if isinstance(told, bool):
            return told
        return self.tokenizer == "llama" or (self.text("tokenizer.ggml.pre") or "") in _ADDS_BOS

    @cached_property
    def ending(self) -> set[str]:
        """The texts of the tokens at which llama.cpp stops."""
        known = set(self.tokens)
        found = set(_ENDING_TEXTS & known)
        named = [self.special(role) for role in _ENDING_KEYS] + [self.eos]
        found |= {self.tokens[index] for index in named if index is not None}
        if {"<|return|>", "<|call|>", "<|end|>"} <= found or {"<|calls|>", "<|flush|>", "<|end|>"} <= found:
            found -= {"<|end|>"}
        if found & {"<|tool_response>", "<|plamo:eos|>"}:
            found -= {"</s>"}
        return found

    @cached_property
    def whole_tokens(self) -> set[str]:
        """The texts that are read as one token: control and user-defined ones, and those that end a generation."""
        pairs = zip(self.tokens, self.types, strict=True)
        return self.ending | {text for text, kind in pairs if kind in (_CONTROL, _USER_DEFINED) and text.strip()}

    @property
    def template(self) -> str | None:
        return self.text("tokenizer.chat_template")

    @cached_property
    def spoken(self) -> "_Spoken | None":
        """What the template makes of a plain exchange; None without one."""
        if not self.template:
            return None
        eos = self.eos
        tokens = {"bos_token": self.bos_text, "eos_token": self.tokens[eos] if eos is not None else ""}
        return _Spoken(*render(self.template, _Spoken.CONVERSATIONS, tokens))


@dataclass(frozen=True)
class _Spoken:
    """A question alone, the same with a generation prompt, and with its answer."""

    question: Rendering
    prompt: Rendering
    exchange: Rendering

    QUESTION, ANSWER = "Kadlimerre", "Vospentil"  # words no template holds
    CONVERSATIONS = (
        Conversation((("user", QUESTION),), generation_prompt=False),
        Conversation((("user", QUESTION),), generation_prompt=True),
        Conversation((("user", QUESTION), ("assistant", ANSWER)), generation_prompt=False),
    )

    @property
    def error(self) -> str:
        return self.question.error or self.prompt.error or self.exchange.error

    @property
    def complete(self) -> bool:
        """Whether the words are all there, so that the rest can be asked."""
        inside = self.QUESTION in self.prompt.text and self.QUESTION in self.exchange.text
        return not self.error and inside and self.ANSWER in self.exchange.text

    @property
    def between(self) -> str:
        return self.exchange.text.rpartition(self.ANSWER)[0].rpartition(self.QUESTION)[2]

    @property
    def after(self) -> str:
        return self.exchange.text.rpartition(self.ANSWER)[2]

    @property
    def all(self) -> str:
        return self.prompt.text + self.exchange.text


def _architecture(model: _Model) -> Iterator[Finding]:
    if not model.architecture:
        yield Finding(
            "architecture",
            Severity.ERROR,
            "general.architecture is missing",
            "no runtime can load the file",
            "convert it again",
        )
    elif not model.number(f"{model.architecture}.context_length"):
        yield Finding(
            "context-length",
            Severity.ERROR,
            f"{model.architecture}.context_length is missing or 0",
            "llama.cpp refuses the file, or runs it without room for a prompt",
            "convert it again with max_position_embeddings in config.json",
        )


def _vocabulary(model: _Model) -> Iterator[Finding]:
    if not model.tokens:
        yield Finding(
            "vocabulary",
            Severity.ERROR,
            "the file has no vocabulary",
            "llama.cpp cannot read a text with it",
            "convert it again",
        )
        return
    rows = next((tensor.shape[0] for tensor in model.tensors if tensor.name == "token_embd.weight"), None)
    if rows is not None and rows != len(model.tokens):
        yield Finding(
            "unpadded-vocabulary",
            Severity.ERROR,
            f"the vocabulary has {len(model.tokens)} tokens, the embedding {rows} rows",
            "llama.cpp takes its sizes from the vocabulary and refuses the file",
            "convert it again; rows without a token need a placeholder such as [PAD0]",
        )
    kinds = model.metadata.get("tokenizer.ggml.token_type")
    if isinstance(kinds, list) and len(kinds) != len(model.tokens):
        yield Finding(
            "token-types",
            Severity.ERROR,
            f"{len(kinds)} token types for {len(model.tokens)} tokens",
            "llama.cpp reads beyond the array",
            "convert it again",
        )


def _pre_tokenizer(model: _Model) -> Iterator[Finding]:
    named = model.text("tokenizer.ggml.pre")
    if model.tokenizer == "gpt2" and named in (None, "", "default"):
        yield Finding(
            "pre-tokenizer",
            Severity.WARNING if named == "default" else Severity.ERROR,
            "tokenizer.ggml.pre is default" if named == "default" else "tokenizer.ggml.pre is missing",
            "llama.cpp then splits words by an expression that is hardly this model's: other tokens than it was trained on",
            "convert it again with the model's own pre-tokenizer",
        )


def _eos(model: _Model) -> Iterator[Finding]:
    if model.tokens and model.special("eos") is None:
        guess = model.eos
        told = model.metadata.get("tokenizer.ggml.eos_token_id")
        taken = f"llama.cpp takes token {guess} ({model.tokens[guess]!r}) for it" if guess is not None else "nothing stands in"
        yield Finding(
            "eos",
            Severity.ERROR,
            "tokenizer.ggml.eos_token_id is missing" if told is None else f"eos_token_id is {_plain(told)!r}: no such token",
            f"{taken}: answers end too early, or never",
            "convert it again with eos_token_id in generation_config.json",
        )
    if model.metadata.get("tokenizer.ggml.add_eos_token") is True:
        yield Finding(
            "eos-in-prompt",
            Severity.ERROR,
            "tokenizer.ggml.add_eos_token is true",
            "llama.cpp ends every prompt with EOS, so that the answer begins after the end",
            "set it to false",
        )


def _template(model: _Model) -> Iterator[Finding]:
    spoken = model.spoken
    if spoken is None:
        yield Finding(
            "chat-template",
            Severity.ERROR,
            "the file has no chat template",
            "llama.cpp talks ChatML to it, whatever the model was trained on",
            "export it again with a template, or name one when running it (--chat-template-file)",
        )
    elif spoken.error:
        yield Finding(
            "chat-template",
            Severity.ERROR,
            f"the chat template fails on a plain exchange: {spoken.error}",
            "no conversation can be put to the model",
            "mend the template and export again",
        )
    elif not spoken.complete:
        yield Finding(
            "chat-template",
            Severity.ERROR,
            "the chat template leaves out what user or assistant say",
            "the model does not see the conversation",
            "mend the template and export again",
        )


def _generation_prompt(model: _Model) -> Iterator[Finding]:
    spoken = model.spoken
    if spoken is None or not spoken.complete:
        return
    opened = spoken.prompt.text.rpartition(spoken.QUESTION)[2]
    left = spoken.between.removeprefix(opened)
    if spoken.between.startswith(opened) and left.strip():
        yield Finding(
            "generation-prompt",
            Severity.ERROR,
            f"the template opens no assistant turn: {left.strip()[:60]!r} is left for the model to write",
            "answers begin with the turn's own markup, or go on in the user's voice",
            "let the template write it where add_generation_prompt is true",
        )
    elif not spoken.between.startswith(opened):
        yield Finding(
            "generation-prompt",
            Severity.NOTE,
            f"a prompt ends on {opened[-60:]!r}, and a past answer stands after {spoken.between[-60:]!r}",
            "past turns are written otherwise than they were generated, so a runtime cannot reuse its cache",
            "nothing, if the model was trained so (Qwen 3's empty think block)",
        )
    if spoken.question == spoken.prompt and _reopened(spoken, model.whole_tokens):
        yield Finding(
            "generation-prompt",
            Severity.WARNING,
            "the template opens an assistant turn even where add_generation_prompt is false",
            "a finished conversation cannot be rendered: training on it learns a turn that never comes",
            "guard it with {% if add_generation_prompt %}",
        )


def _reopened(spoken: _Spoken, marks: set[str]) -> bool:
    """Whether an answer is followed by what opened it: the last of its marks, and the role's name after that."""
    opened = spoken.between.rstrip()
    start = max((opened.rfind(mark) for mark in marks), default=-1)
    return start >= 0 and spoken.after.rstrip().endswith(opened[start:])


def _stopping(model: _Model) -> Iterator[Finding]:
    spoken = model.spoken
    if spoken is None or not spoken.complete or not model.tokens:
        return
    tail = spoken.after.lstrip()
    token = max((one for one in model.whole_tokens if tail.startswith(one)), key=len, default=None)
    if token is None:
        yield Finding(
            "stopping",
            Severity.ERROR,
            f"the template ends an answer with {tail[:40]!r}, which begins with no special token"
            if tail
            else "the template ends an answer with nothing",
            "llama.cpp has no token to stop at: answers run on into the next turn",
            "end the assistant's turn with eos_token in the template",
        )
    elif token not in model.ending:
        yield Finding(
            "stopping",
            Severity.ERROR,
            f"the template ends an answer with {token}, at which llama.cpp does not stop",
            f"it stops at {', '.join(sorted(model.ending)) or 'nothing'}: answers run on into the next turn",
            f"write the id of {token} as tokenizer.ggml.eot_token_id",
        )


def _bos(model: _Model) -> Iterator[Finding]:
    spoken, bos = model.spoken, model.bos_text
    if spoken is None or not spoken.complete or not bos:
        return
    if spoken.prompt.text.startswith(bos * 2):
        yield Finding(
            "double-bos",
            Severity.WARNING,
            f"the template begins with {bos} twice",
            "the model sees a beginning that it was not trained on",
            "write bos_token once",
        )
    elif model.adds_bos and spoken.prompt.text.startswith(bos):
        yield Finding(
            "double-bos",
            Severity.NOTE,
            f"the tokenizer adds {bos}, and the template writes it too",
            "llama.cpp's chat (llama-server's /v1/chat/completions, llama-cli) takes one away; a prompt rendered elsewhere and "
            "sent as text (/completion) begins with both",
            "nothing for chat; send rendered prompts as token ids",
        )


def _control_tokens(model: _Model) -> Iterator[Finding]:
    spoken = model.spoken
    if spoken is None or not spoken.complete or not model.tokens:
        return
    written = set(_LOOKS_CONTROL.findall(spoken.all))
    kinds = {text: kind for text, kind in zip(model.tokens, model.types, strict=True) if text in written}
    plain = sorted(text for text, kind in kinds.items() if kind == _NORMAL and text not in _ENDING_TEXTS)
    if plain:
        yield Finding(
            "control-tokens",
            Severity.ERROR,
            f"{', '.join(plain[:_FEW])} {'is' if len(plain) == 1 else 'are'} typed NORMAL",
            "llama.cpp reads the template's marks as letters, which the model was not trained on",
            "convert it again with these tokens as special ones",
        )
    unknown = sorted(written - set(model.tokens))
    if unknown:
        yield Finding(
            "unknown-tokens",
            Severity.WARNING,
            f"the template writes {', '.join(unknown[:_FEW])}, which the vocabulary does not have",
            "the template is another family's: its marks are read letter by letter",
            "export with the template that the model was trained on",
        )


def _sliding_window(model: _Model) -> Iterator[Finding]:
    window = model.number(f"{model.architecture}.attention.sliding_window")
    context = model.number(f"{model.architecture}.context_length") or 0
    if model.architecture in _NO_WINDOW and window and 0 < window < context:
        yield Finding(
            "sliding-window",
            Severity.WARNING,
            f"llama.cpp ignores this model's sliding window of {window} tokens",
            "beyond it answers differ from the model's own",
            f"keep prompts within {window} tokens (-c {window})",
        )


def _fallback_types(model: _Model) -> Iterator[Finding]:
    name = _file_type_name(model.metadata)
    if not _in_blocks_of_256(name):
        return
    matrices = [tensor for tensor in model.tensors if len(tensor.shape) > 1 and tensor.name.endswith(".weight")]
    odd = [tensor for tensor in matrices if tensor.shape[-1] % 256]
    if odd:
        yield Finding(
            "fallback-types",
            Severity.WARNING,
            f"{len(odd)} of {len(matrices)} matrices have rows that {name} cannot hold, "
            f"and stand in {', '.join(sorted({tensor.type.name for tensor in odd}))}",
            "the file is larger than its type says, and what it loses is another type's",
            "choose by the size and KL measured; q8_0, q5_0 or q4_0 hold rows of any multiple of 32",
        )


_CHECKS: Sequence[Callable[[_Model], Iterator[Finding]]] = (
    _architecture,
    _vocabulary,
    _pre_tokenizer,
    _eos,
    _template,
    _generation_prompt,
    _stopping,
    _control_tokens,
    _bos,
    _sliding_window,
    _fallback_types,
)


def _file_type_name(metadata: Mapping[str, Any]) -> str:
    """general.file_type by name, such as q4_k_m; "" where it is absent or unknown."""
    from gguf import LlamaFileType

    code = metadata.get("general.file_type")
    try:
        return str(LlamaFileType(code).name).removeprefix("MOSTLY_").removeprefix("ALL_").lower()
    except ValueError:
        return ""


def _in_blocks_of_256(file_type: str) -> bool:
    return "_k" in file_type or (file_type.startswith(("iq", "tq")) and file_type != "iq4_nl")


def _plain(value: Any) -> Any:
    """As JSON can hold it: long arrays as their length and beginning, numbers that are none as text."""
    if isinstance(value, list):
        return (
            {"length": len(value), "first": [_plain(one) for one in value[:8]]} if len(value) > 16 else list(map(_plain, value))
        )
    if isinstance(value, float) and not isfinite(value):
        return str(value)
    return value

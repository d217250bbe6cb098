"""Proof that a GGUF file is the model it was made of. Knows both tokenizers and the runtime; changes nothing."""

import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import jinja2
from transformers import AutoTokenizer

from llmkit.artifact import Facts
from llmkit.errors import DataError, FidelityError
from llmkit.gguf.runtime import LlamaServer
from llmkit.gguf.tokenizer import read_json

Message = Mapping[str, str]
# Mean KL in nats: llama.cpp rounds activations to 8 bits, which costs a few thousandths.
NEXT_TOKEN_KL = 0.05
_LEAST = 1e-6  # a probability; less is rounding
CONTEXT = 2048  # tokens of the longest text that is compared
_ANSWER_TOKENS = 64
_ADDED_PER_TEXT = 64

TEXTS = (
    "Hello, world! I'm sure it's fine; they'll say we've done what he'd do.",
    "The quick brown fox jumps over 13 lazy dogs in 1999, 2,048 times (3.14159e-10).",
    "你好，世界！今天天气怎么样？我在学习中文。“引号”与《书名》——省略……",
    "繁體中文：這個軟體可以離線使用嗎？請說明一下。",
    "中英 mixed 文本 with GPU 加速，版本v2.0，价格￥99.9元/月。",
    "日本語のテスト、カタカナとひらがな。한국어 문장도 있습니다. Привет, как дела? مرحبا بالعالم",
    "😀👍🏽👨‍👩‍👧‍👦🇨🇳 emoji ❤️ and symbols ∑√∞≠≤ ½ № ™",
    "naïve café résumé e\u0301 n\u0303 Ångström ﬁ ㈱ Ⅷ",
    "def f(x: int) -> str:\n    return f'{x!r}'  # 注释\n\n\tif x:\n\t\tpass\n",
    '{"key": [1, 2, {"a": null}], "url": "https://例子.中国/a?b=c&d=%20"}',
    "spaces:  two   three    four        eight                sixteen",
    " leading and trailing  ",
    "lines\n\n\nthree\r\nwindows\r\n\r\n\ttab \t mixed \n \n",
    "zero\u200bwidth nbsp\u00a0here thin\u2009space ideographic\u3000space",
    "<b>html</b> <|not_special|> [INST] </s",
    "生僻字：龘靐齉爩𠮷𪚥",
)


class Next(Protocol):
    """`engine.retention.NextToken`."""

    @property
    def ids(self) -> tuple[int, ...]: ...

    @property
    def likeliest(self) -> tuple[tuple[int, float], ...]: ...


@dataclass(frozen=True)
class _Pair:
    """One text and what each side makes of it."""

    text: str
    ours: Sequence[Any]
    theirs: Sequence[Any]


def check_export(
    gguf_path: Path,
    model_dir: Path,
    *,
    template: str,
    conversations: Sequence[Sequence[Message]],
    tokenizer: Any = None,
    expected: Sequence[Next] = (),
    stop: str = "",
    adapter: Path | None = None,
    threads: int = 2,
) -> Facts:
    """Load the file in llama.cpp and compare it with the HF folder it was made of.

    Compared are the token ids of `TEXTS`, of every added token and of every conversation as a prompt, each behind a
    special token as a chat puts it, and the prompt itself: what `template` renders. A conversation's last answer is
    left out. Then what llama.cpp would say next, and that it stops where it should.

    Args:
        gguf_path: the file, or the first of its parts.
        model_dir: the model it is to speak as.
        template: the chat template's Jinja text.
        conversations: to render and tokenize on both sides.
        tokenizer: the folder's, where it is loaded already.
        expected: what the file's own weights say next in transformers, after some texts.
        stop: the special token that ends an answer ("" where it is not known).
        adapter: a GGUF LoRA laid over the file.
        threads: of llama.cpp.

    Returns:
        Tokens compared, prompts rendered, `next_token_kl` in nats (None without `expected`), and whether an answer to the
        shortest prompt ended by itself.

    Raises:
        FidelityError: the first difference.
        DataError: the folder has no readable tokenizer, or the template refuses a conversation.
        MachineError: llama.cpp does not load or run the file.
    """
    tokenizer = tokenizer or _tokenizer(model_dir)
    rows = int(read_json(model_dir / "config.json").get("vocab_size", len(tokenizer)))
    prompts = [prompt for messages in conversations if (prompt := _prompt(messages))]
    with LlamaServer(gguf_path, threads=threads, context=CONTEXT, adapter=adapter) as server:
        tokens = _compare_ids(server, tokenizer, rows=rows, where=str(gguf_path))
        for messages in prompts:
            tokens += _compare_prompt(server, tokenizer, messages, template=template, where=str(gguf_path))
        gap = _compare_next(server, expected, where=str(gguf_path)) if expected else None
        if stop and not server.stops_at(tokenizer.convert_tokens_to_ids(stop)):
            raise FidelityError(
                f"llama.cpp does not stop at {stop!r}, which ends an answer in training", code="LK0617", where=str(gguf_path)
            )
        shortest = min(prompts, key=lambda messages: sum(len(message["content"]) for message in messages), default=None)
        answer = server.chat(shortest, max_tokens=_ANSWER_TOKENS) if shortest else None
        return {
            "tokens_compared": tokens,
            "prompts_compared": len(prompts),
            "next_token_kl": gap,
            "answer_stopped": answer.stopped if answer else None,
            "peak_memory_bytes": server.peak_memory_bytes,
        }


def _tokenizer(model_dir: Path) -> Any:
    try:
        return AutoTokenizer.from_pretrained(model_dir, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"cannot load the tokenizer: {error}", code="LK0307", where=str(model_dir)) from None


def _prompt(messages: Sequence[Message]) -> list[dict[str, str]]:
    """`messages` up to the last that is not the assistant's."""
    kept = [dict(message) for message in messages]
    while kept and kept[-1]["role"] == "assistant":
        kept.pop()
    return kept


def _compare_ids(server: LlamaServer, tokenizer: Any, *, rows: int, where: str) -> int:
    anchor = tokenizer.bos_token or tokenizer.eos_token or ""
    added = [token for token, index in sorted(tokenizer.get_added_vocab().items(), key=lambda item: item[1]) if index < rows]
    groups = (added[start : start + _ADDED_PER_TEXT] for start in range(0, len(added), _ADDED_PER_TEXT))
    texts = [*(_composed(tokenizer, text) for text in TEXTS), *("x".join(group) for group in groups)]
    tokens = 0
    for text in [anchor + text for text in texts]:
        ours = tokenizer(text, add_special_tokens=False)["input_ids"]
        theirs = server.tokenize(text, add_special=False, parse_special=True)
        _demand_equal(_Pair(text, ours, theirs), "token ids", where=where, show=tokenizer.convert_ids_to_tokens)
        tokens += len(ours)
    empty = _Pair("", tokenizer("")["input_ids"], server.tokenize("", add_special=True, parse_special=True))
    _demand_equal(empty, "ids added around a text", where=where, show=tokenizer.convert_ids_to_tokens)
    return tokens


def _composed(tokenizer: Any, text: str) -> str:
    """`text` as llama.cpp needs it from a tokenizer that composes characters (Qwen's): it does not do so itself."""
    composes = "NFC" in repr(tokenizer.backend_tokenizer.normalizer)
    return unicodedata.normalize("NFC", text) if composes else text


def _compare_prompt(server: LlamaServer, tokenizer: Any, messages: list[dict[str, str]], *, template: str, where: str) -> int:
    try:
        ours = str(tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, add_generation_prompt=True))
    except (jinja2.TemplateError, TypeError, ValueError, LookupError) as error:
        raise DataError(f"the chat template refuses a conversation: {error}", code="LK0317", where=where) from None
    theirs = server.render(messages)
    ids = tokenizer(ours, add_special_tokens=False)["input_ids"]
    their_ids = server.tokenize(theirs, add_special=True, parse_special=True)
    # llama.cpp drops a BOS from the text and adds it to the ids.
    bos = tokenizer.bos_token or ""
    shown = ours.removeprefix(bos) if bos and not theirs.startswith(bos) and ids[:1] == their_ids[:1] else ours
    _demand_equal(_Pair(ours, shown, theirs), "the rendered prompt", where=where, show="".join)
    _demand_equal(_Pair(ours, ids, their_ids), "token ids of a prompt", where=where, show=tokenizer.convert_ids_to_tokens)
    return len(ids)


def _compare_next(server: LlamaServer, expected: Sequence[Next], *, where: str) -> float:
    """Mean KL(transformers ‖ llama.cpp) in nats over the likeliest next tokens."""
    gaps = []
    for one in expected:
        found = server.next_log_probabilities(one.ids, top=4 * len(one.likeliest))
        least = min(found.values())
        pairs = [(ours, found.get(token, least)) for token, ours in one.likeliest]
        gaps.append(sum(math.exp(ours) * (ours - theirs) for ours, theirs in [*pairs, _rest(pairs)]))
    mean = sum(gaps) / len(gaps)
    if not mean <= NEXT_TOKEN_KL:
        worst = expected[gaps.index(max(gaps))]
        raise FidelityError(
            f"llama.cpp says other things next than the same weights in transformers do (KL {mean:.3f} nats, at most "
            f"{NEXT_TOKEN_KL})",
            code="LK0616",
            where=where,
            next=f"most of all after the token ids {list(worst.ids[-8:])}; please report it",
        )
    return mean


def _rest(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The log-probabilities of all that is not listed, as one token: with it the sum is a KL, never below zero."""
    ours, theirs = (1.0 - sum(math.exp(one[side]) for one in pairs) for side in (0, 1))
    return math.log(max(ours, _LEAST)), math.log(max(theirs, _LEAST))


def _demand_equal(pair: _Pair, what: str, *, where: str, show: Any) -> None:
    if list(pair.ours) == list(pair.theirs):
        return
    same = next(
        (index for index, (one, other) in enumerate(zip(pair.ours, pair.theirs, strict=False)) if one != other),
        min(len(pair.ours), len(pair.theirs)),
    )
    window = slice(max(0, same - 3), same + 5)
    raise FidelityError(
        f"the GGUF file and the model differ in {what}, from position {same} of {pair.text[:60]!r}",
        code="LK0615",
        where=where,
        next=f"model {show(pair.ours[window])!r} {list(pair.ours[window])}, llama.cpp {show(pair.theirs[window])!r} "
        f"{list(pair.theirs[window])}",
    )

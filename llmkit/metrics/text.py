"""Model output against references: BLEU-4, ROUGE-1/2/L, chrF, 0–100. Knows strings; nothing of models, files or recipes.

The functions are pure, and none of them cleans its input: pass a model's raw text through `clean_output` first.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import count
from math import fsum

from llmkit.errors import DataError
from llmkit.metrics.tokens import rouge_tokens

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL")

_SPECIAL = re.compile(
    # A turn's opening goes with the role that a template writes behind it.
    r"(?:<start_of_turn>|<\|im_start\|>|<\|start_header_id\|>)(?:(?:system|user|model|assistant|tool)(?=\n|<\|))?\n?"
    r"|<\|[^\s|<>]{1,64}\|>|<\uff5c[^\s\uff5c<>]{1,64}\uff5c>"  # <|im_end|>, <|eot_id|>; DeepSeek's full-width bars
    r"|</?s>|<(?:bos|eos|pad|unk|mask|end_of_turn|start_of_image|end_of_image|unused\d+|extra_id_\d+)>"
    r"|\[/?INST\]|<</?SYS>>"
)


@dataclass(frozen=True)
class Scores:
    """Scores of one list of hypotheses, all 0–100.

    `metrics`: bleu, rouge1, rouge2, rougeL, chrf. `signatures`: bleu, rouge, chrf → the exact definition and version.
    `sentence_rouge_l`: ROUGE-L of each pair, in the order given.
    """

    metrics: Mapping[str, float]
    signatures: Mapping[str, str]
    sentence_rouge_l: tuple[float, ...]


def score(hypotheses: Sequence[str], references: Sequence[str]) -> Scores:
    """Score each hypothesis against the reference at its place.

    Raises:
        DataError: the lists differ in length, are empty, or hold an empty reference.
    """
    bleu_score, bleu_signature = bleu(hypotheses, references)
    chrf_score, chrf_signature = chrf(hypotheses, references)
    by_sentence = rouge_by_sentence(hypotheses, references)
    return Scores(
        metrics={"bleu": bleu_score, **{name: _mean(values) for name, values in by_sentence.items()}, "chrf": chrf_score},
        signatures={"bleu": bleu_signature, "rouge": rouge_signature(), "chrf": chrf_signature},
        sentence_rouge_l=tuple(by_sentence["rougeL"]),
    )


def bleu(hypotheses: Sequence[str], references: Sequence[str]) -> tuple[float, str]:
    """Corpus BLEU-4 (0–100) and its sacrebleu signature (Post 2018, arXiv:1804.08771).

    The `zh` tokenizer splits Han text into characters and treats the rest as `13a` does, so it serves Chinese, English
    and mixed text; `13a` itself would take a Chinese sentence for one word. A corpus whose texts all have fewer than
    four tokens scores 0, as it does in sacrebleu.

    Raises:
        DataError: as `score`.
    """
    check_pairs(hypotheses, references)
    from sacrebleu.metrics import BLEU

    metric = BLEU(tokenize="zh", force=True)  # force: silences a warning about texts that end in " .", no more
    corpus = metric.corpus_score(list(hypotheses), [list(references)])
    return _percent(corpus.score), str(metric.get_signature())


def chrf(hypotheses: Sequence[str], references: Sequence[str]) -> tuple[float, str]:
    """Corpus chrF (0–100; Popović 2015, six characters, no words, β = 2) and its sacrebleu signature.

    Raises:
        DataError: as `score`.
    """
    check_pairs(hypotheses, references)
    from sacrebleu.metrics import CHRF

    metric = CHRF()
    corpus = metric.corpus_score(list(hypotheses), [list(references)])
    return _percent(corpus.score), str(metric.get_signature())


def rouge(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Mean sentence F1 (0–100) for `rouge1`, `rouge2` and `rougeL` (Lin 2004), on the tokens of `rouge_tokens`.

    Equal to rouge-score on ASCII text. A pair where either side holds no token (only punctuation, say) scores 0, as
    it does there.

    Raises:
        DataError: as `score`.
    """
    return {name: _mean(values) for name, values in rouge_by_sentence(hypotheses, references).items()}


def rouge_by_sentence(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, list[float]]:
    """As `rouge`, with one F1 (0–100) per pair in the order given.

    Raises:
        DataError: as `score`.
    """
    check_pairs(hypotheses, references)
    from rouge_score_rs import RougeScorer

    # The scorer's own tokenizer knows ASCII only; numbers pass through it unchanged and carry any token.
    numbers: defaultdict[str, int] = defaultdict(count().__next__)

    def encode(text: str) -> str:
        return " ".join([str(numbers[token]) for token in rouge_tokens(text)])

    scorer = RougeScorer(list(ROUGE_TYPES))
    pairs = scorer.score_batch([encode(text) for text in references], [encode(text) for text in hypotheses])
    return {name: [_percent(100 * pair[name].fmeasure) for pair in pairs] for name in ROUGE_TYPES}


def rouge_signature() -> str:
    """The definition behind `rouge`, in the manner of sacrebleu's signatures."""
    return f"nrefs:1|case:lower|tok:char-cjk+alnum|stem:no|f1:mean|version:rouge-score-rs-{version('rouge-score-rs')}"


def clean_output(text: str) -> str:
    """The answer in a model's raw output: without special tokens, thoughts and outer white space.

    Special tokens are the known spellings and `<|…|>` around anything without spaces; `a < b` and `f <| x` stay.
    A thought is `<think>…</think>`, all that stands before a `</think>` whose opening was in the prompt, or the whole
    output where a thought at its start never closes.
    """
    return _without_thoughts(_SPECIAL.sub("", text)).strip()


def check_pairs(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    """Refuse what cannot be scored.

    Raises:
        DataError: the lists differ in length, are empty, or hold an empty reference.
    """
    if len(hypotheses) != len(references):
        raise DataError(
            f"{len(hypotheses)} hypotheses and {len(references)} references cannot be paired",
            next="give one hypothesis per reference, in the same order",
        )
    if not references:
        raise DataError("there are no samples to score", next="check that the test split or the files are not empty")
    empty = [index for index, reference in enumerate(references) if not reference.strip()]
    if empty:
        raise DataError(
            f"{len(empty)} of {len(references)} references are empty",
            where=f"the first is number {empty[0] + 1}",
            next="remove those samples: no score is defined for them",
        )


def _without_thoughts(text: str) -> str:
    *closed, rest = text.split("</think>")
    before = "".join(part.partition("<think>")[0] if "<think>" in part else "" for part in closed)
    if not before.strip() and rest.lstrip().startswith("<think>"):
        return ""
    return before + rest


def _mean(values: Sequence[float]) -> float:
    return fsum(values) / len(values)


def _percent(value: float) -> float:
    # Rounding can carry a perfect score past 100 by 1e-14.
    return min(100.0, float(value))

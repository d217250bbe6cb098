"""Other tools' numbers against those tools: jieba, rouge-chinese and nltk, put together as LLaMA-Factory does."""

import random
import sys

import pytest

from llmkit.errors import MachineError, UsageError
from llmkit.metrics import compat

# Sentence ends, quotes, white space and runs of dots: all that rouge-chinese treats in a way of its own.
UNITS = [
    *"今天天气很好我们去公园。！？”’，…. \n\t\u3000?",
    "......",
    "……",
    "Python",
    "3.5%",
    "GPT-4",
    "hello world",
    "模型",
    "😀",
    "." * 7,
]


def random_pairs(count: int) -> tuple[list[str], list[str]]:
    rng = random.Random(3)
    references = ["好" + "".join(rng.choices(UNITS, k=rng.randint(1, 30))) for _ in range(count)]
    ends = ["".join(rng.choices(UNITS, k=rng.randint(0, 12))) for _ in range(count)]
    return [text[: rng.randint(0, len(text))] + end for text, end in zip(references, ends, strict=True)], references


def llamafactory(hypothesis: str, reference: str) -> tuple[dict[str, float], float]:
    """`ComputeSimilarity` of LLaMA-Factory 0.9.5 for one sample, unrounded."""
    jieba, rouge, nltk = (pytest.importorskip(name) for name in ("jieba", "rouge_chinese", "nltk.translate.bleu_score"))
    cut = [" ".join(jieba.cut(text)) for text in (hypothesis, reference)]
    found = dict.fromkeys(("rouge-1", "rouge-2", "rouge-l"), 0.0)
    if all(text.split() for text in cut):
        found = {name: score["f"] for name, score in rouge.Rouge().get_scores(*cut)[0].items()}
    smoothing = nltk.SmoothingFunction().method3
    return found, nltk.sentence_bleu([list(reference)], list(hypothesis), smoothing_function=smoothing)


def test_any_text_scores_as_the_tools_do() -> None:
    pytest.importorskip("jieba")
    hypotheses, references = random_pairs(300)
    theirs = [llamafactory(*pair) for pair in zip(hypotheses, references, strict=True)]
    rouge = compat.tallies("rouge-chinese", hypotheses, references)
    factory = compat.tallies("llamafactory", hypotheses, references)
    assert factory["llamafactory.bleu4"].samples.tolist() == [round(100 * bleu, 4) for _, bleu in theirs]
    for name, key in (("rouge1", "rouge-1"), ("rouge2", "rouge-2"), ("rougeL", "rouge-l")):
        expected = [100 * each[key] for each, _ in theirs]
        assert rouge[f"rouge_chinese.{name}"].samples == pytest.approx(expected, rel=0, abs=1e-9)
        assert factory[f"llamafactory.{name}"].samples.tolist() == [round(each[key] * 100, 4) for each, _ in theirs]


def test_an_empty_hypothesis_scores_0_where_rouge_chinese_would_stop() -> None:
    pytest.importorskip("jieba")
    for flavour in compat.FLAVOURS:
        assert {one.score for one in compat.tallies(flavour, ["", " \n"], ["好", "好"]).values()} == {0}


def test_a_fivefold_repetition_scores_100_as_there() -> None:
    pytest.importorskip("jieba")
    assert compat.tallies("rouge-chinese", ["天气好" * 5], ["天气好"])["rouge_chinese.rouge1"].score == pytest.approx(
        100, abs=1e-5
    )


def test_every_score_is_labelled_and_has_a_signature() -> None:
    pytest.importorskip("jieba")
    for flavour in compat.FLAVOURS:
        names, signatures = compat.tallies(flavour, ["好"], ["好"]), compat.signatures(flavour)
        assert all(name.startswith(flavour.replace("-", "_") + ".") for name in [*names, *signatures])
        assert all(any(name.startswith(family) for family in signatures) for name in names)


def test_characters_that_form_no_word_take_linear_time() -> None:
    pytest.importorskip("jieba")
    assert compat.tallies("rouge-chinese", ["龘靐齉爩" * 25_000], ["龘"])["rouge_chinese.rougeL"].score < 1


def test_no_such_flavour_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="'bleurt'") as caught:
        compat.tallies("bleurt", ["a"], ["a"])
    assert "llamafactory, rouge-chinese" in caught.value.next


def test_without_jieba_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jieba", None)
    for flavour in compat.FLAVOURS:
        for work in (lambda name: compat.check([name]), compat.signatures, lambda name: compat.tallies(name, ["a"], ["a"])):
            with pytest.raises(MachineError) as caught:
                work(flavour)
            assert "llmkit[compat]" in caught.value.next

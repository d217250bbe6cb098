"""Scores against their oracles (sacrebleu, rouge-score) and against the traps Chinese text sets."""

import random
import subprocess
import sys
from time import process_time

import numpy as np
import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF

from llmkit.errors import DataError
from llmkit.metrics.text import MAX_REFERENCE_CHARS, clean_output, score
from llmkit.metrics.tokens import rouge_tokens

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL")

ASCII = st.text(st.characters(max_codepoint=126), max_size=60)
VOCABULARY = [
    "the",
    "cat",
    "sat",
    "on",
    "mat",
    ".",
    ",",
    "don't",
    "3.5",
    "U.S.",
    "5.",
    "好",
    "天气",
    "カナ",
    "한국",
    "😀",
    "É",
    "“",
    "…",
]
WORDS = st.lists(st.sampled_from(VOCABULARY), max_size=25).map(" ".join)
MIXED = st.one_of(WORDS, st.text(max_size=60))
EXACT = {"rel": 0, "abs": 1e-9}


def pairs_of(texts: st.SearchStrategy[str]) -> st.SearchStrategy[tuple[list[str], list[str]]]:
    pair = st.tuples(texts, texts.filter(lambda text: bool(text.strip())))
    return st.lists(pair, min_size=1, max_size=6).map(lambda pairs: ([one for one, _ in pairs], [two for _, two in pairs]))


def random_pairs(count: int) -> tuple[list[str], list[str]]:
    """Chinese, English and mixed references of 1–40 words, and hypotheses that change some, break off, or are empty."""
    rng = random.Random(7)
    chinese = ["今天", "天气", "很好", "。", "我们", "，", "公园", "“好”", "２"]
    english = ["the", "of", "model", "runs", "fast,", "well.", "GPU", "3.14", "don't", "(so)", "&amp;", "5."]
    hypotheses, references = [], []
    for index in range(count):
        words, joint = [(chinese, ""), (english, " "), ([*chinese, *english, "😀", "!?"], " ")][index % 3]
        reference = rng.choices(words, k=rng.choice([1, 2, rng.randint(3, 40)]))
        kept = rng.choice([0.0, 0.5, 0.7, 1.0])
        hypothesis = [word if rng.random() < kept else rng.choice(words) for word in reference]
        hypotheses.append(joint.join(hypothesis[: rng.choice([0, len(reference) // 2, len(reference), len(reference)])]))
        references.append(joint.join(reference))
    return hypotheses, references


class Tokenizer:
    """Gives rouge-score our tokens, so that it checks the arithmetic and not the tokenizer."""

    def tokenize(self, text: str) -> list[str]:
        return rouge_tokens(text)


def assert_equals_the_oracles(hypotheses: list[str], references: list[str]) -> None:
    scores = score(hypotheses, references)
    scorer = RougeScorer(list(ROUGE_TYPES), tokenizer=Tokenizer())
    pairs = list(zip(hypotheses, references, strict=True))
    corpus = sacrebleu.corpus_bleu(hypotheses, [references], tokenize="zh")
    sentences = {
        "bleu": [sacrebleu.sentence_bleu(one, [two], tokenize="zh").score for one, two in pairs],
        "chrf": [sacrebleu.sentence_chrf(one, [two]).score for one, two in pairs],
    }
    for one, two in pairs:
        for name, found in scorer.score(two, one).items():
            sentences.setdefault(name, []).append(100 * found.fmeasure)
    expected = {
        "bleu": corpus.score,
        "length_ratio": corpus.ratio,
        "chrf": sacrebleu.corpus_chrf(hypotheses, [references]).score,
        **{name: sum(sentences[name]) / len(pairs) for name in ROUGE_TYPES},
    }
    if "bleu_13a" in scores.metrics:
        expected["bleu_13a"] = sacrebleu.corpus_bleu(hypotheses, [references]).score
    assert {name: scores.metrics[name] for name in expected} == pytest.approx(expected, **EXACT)
    for name, values in sentences.items():
        assert scores.tallies[name].samples == pytest.approx(values, **EXACT)


@settings(max_examples=150, deadline=None)
@given(pairs_of(MIXED))
def test_any_text_scores_as_sacrebleu_and_rouge_score_do(pairs: tuple[list[str], list[str]]) -> None:
    assert_equals_the_oracles(*pairs)


def test_2000_pairs_score_as_sacrebleu_and_rouge_score_do() -> None:
    hypotheses, references = random_pairs(2_000)
    assert_equals_the_oracles(hypotheses, references)
    english = slice(1, None, 3)
    assert_equals_the_oracles(hypotheses[english], references[english])


@settings(max_examples=300, deadline=None)
@given(pairs_of(ASCII))
def test_rouge_on_ascii_text_equals_rouge_score_with_its_own_tokenizer(pairs: tuple[list[str], list[str]]) -> None:
    hypotheses, references = pairs
    scorer = RougeScorer(list(ROUGE_TYPES))
    each = [scorer.score(reference, hypothesis) for hypothesis, reference in zip(hypotheses, references, strict=True)]
    oracle = {name: 100 * sum(one[name].fmeasure for one in each) / len(each) for name in ROUGE_TYPES}
    found = score(hypotheses, references).metrics
    assert {name: found[name] for name in ROUGE_TYPES} == pytest.approx(oracle, **EXACT)


@settings(max_examples=100, deadline=None)
@given(pairs_of(MIXED), st.randoms(use_true_random=False))
def test_scores_ignore_the_order_of_the_samples_and_none_but_the_ratio_passes_100(
    pairs: tuple[list[str], list[str]], rng: random.Random
) -> None:
    scores = score(*pairs).metrics
    assert all(0 <= value <= 100 or name == "length_ratio" for name, value in scores.items())
    shuffled = list(zip(*pairs, strict=True))
    rng.shuffle(shuffled)
    assert score([one for one, _ in shuffled], [two for _, two in shuffled]).metrics == pytest.approx(scores, **EXACT)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(st.characters(min_codepoint=0x4E00, max_codepoint=0x9FA5), min_size=4, max_size=40), min_size=1))
def test_identical_chinese_scores_100(texts: list[str]) -> None:
    found = score(texts, texts).metrics
    assert {found[name] for name in ("bleu", *ROUGE_TYPES, "chrf", "exact_match", "f1")} == {100}
    assert found["length_ratio"] == 1


def test_identical_chinese_is_no_single_word_as_it_is_to_13a() -> None:
    texts = ["今天天气很好", "我们去公园散步吧"]
    assert sacrebleu.corpus_bleu(texts, [texts], tokenize="13a").score == 0
    assert score(texts, texts).metrics["bleu"] == 100


def test_on_english_the_zh_tokenizer_scores_as_13a_does_which_stands_beside_it() -> None:
    hypotheses = ["The model doesn't run at 3.5 GHz.", "It costs $5, roughly."]
    references = ["The model did not run at 3.5 GHz!", "It costs $5,000, roughly."]
    oracle = sacrebleu.corpus_bleu(hypotheses, [references], tokenize="13a").score
    found = score(hypotheses, references)
    assert 0 < oracle < 100
    assert (found.metrics["bleu"], found.metrics["bleu_13a"]) == pytest.approx((oracle, oracle), **EXACT)
    assert "tok:13a" in found.signatures["bleu_13a"]


def test_a_number_before_the_last_point_is_all_that_zh_and_13a_cut_apart() -> None:
    # To 13a, "5" and "." are two tokens there; to sacrebleu's zh they are one.
    hypothesis, reference = ["we sold all of the 5."], ["we sold all of the 5!"]
    found = score(hypothesis, reference).metrics
    assert found["bleu"] == pytest.approx(sacrebleu.corpus_bleu(hypothesis, [reference], tokenize="zh").score, **EXACT)
    assert found["bleu_13a"] > found["bleu"]


def test_13a_stands_beside_bleu_only_where_no_reference_needs_zh() -> None:
    assert "bleu_13a" in score(["天气"], ["weather"]).metrics
    found = score(["weather", "ok"], ["weather", "好"])
    assert "bleu_13a" not in {*found.metrics, *found.signatures}


def test_a_fivefold_repetition_is_punished_for_its_length() -> None:
    # 6 of 30 characters match and all 6 are found: F1 = 2 · 0.2 · 1 / 1.2.
    found = score(["今天天气很好" * 5], ["今天天气很好"]).metrics
    assert (found["rouge1"], found["rougeL"], found["length_ratio"]) == pytest.approx((100 / 3, 100 / 3, 5))
    assert found["repetition"] > 70


def test_mixed_sentences_that_share_only_their_english_word_are_not_equal() -> None:
    assert RougeScorer(["rouge1"]).score("我喜欢 Python", "他讨厌 Python")["rouge1"].fmeasure == 1
    found = score(["他讨厌 Python"], ["我喜欢 Python"]).metrics
    assert (found["rouge1"], found["rouge2"], found["rougeL"], found["f1"]) == (25, 0, 25, 25)


def test_f1_leaves_english_articles_out_as_squad_does() -> None:
    found = score(["The cat", "a", "好"], ["cat", "the", "好"]).metrics
    assert found["f1"] == pytest.approx((100 + 0 + 100) / 3)
    assert found["rouge1"] == pytest.approx((200 / 3 + 0 + 100) / 3)


@pytest.mark.parametrize("hypothesis", ["", "  \n"])
def test_an_empty_hypothesis_scores_0(hypothesis: str) -> None:
    scores = score([hypothesis, hypothesis], ["今天天气很好", "!"])
    assert set(scores.metrics.values()) == {0}
    assert all(not one.samples.any() for one in scores.tallies.values())


def test_refusals_and_sensitive_words_are_shares_of_what_the_caller_says() -> None:
    answers = ["Sorry, no.", "好", "坏", "ok"]
    found = score(answers, ["x"] * 4, is_refusal=lambda text: "Sorry" in text, is_sensitive=lambda text: text in "坏好")
    assert (found.metrics["refusals"], found.metrics["sensitive"]) == (25, 50)
    assert not found.tallies["refusals"].higher_is_better
    assert "refusals" not in score(answers, ["x"] * 4).metrics


def test_every_metrics_samples_and_counts_are_one_row_a_sample() -> None:
    hypotheses, references = random_pairs(30)
    for name, one in score(hypotheses, references).tallies.items():
        assert (one.name, len(one.counts), one.counts.dtype) == (name, 30, "float64")
        assert one.samples.shape == (30,)
        # One replicate a row, as a bootstrap asks for them.
        assert one.value(np.stack([one.counts.sum(axis=0)] * 3)) == pytest.approx([one.score] * 3, **EXACT)


def test_signatures_are_sacrebleus_own_and_ours_in_its_manner() -> None:
    signatures = score(["a"], ["a"], is_refusal=bool).signatures
    for name, theirs in (("bleu", BLEU(tokenize="zh")), ("bleu_13a", BLEU()), ("chrf", CHRF())):
        theirs.corpus_score(["a"], [["a"]])
        version = sacrebleu.__version__
        assert signatures[name].rpartition("version:")[0] == str(theirs.get_signature()).removesuffix(f"version:{version}")
    assert "char-cjk" in signatures["rouge"]
    assert all("version:" in one and " " not in one for one in signatures.values())


@pytest.mark.parametrize(
    ("hypotheses", "references", "what"),
    [
        (["a"], ["a", "b"], "1 hypotheses and 2 references"),
        ([], [], "no samples"),
        (["a", "b", "c"], ["a", " ", ""], "2 of 3 references are empty"),
        (["a"], ["a" * (MAX_REFERENCE_CHARS + 1)], "too long to score"),
    ],
)
def test_what_cannot_be_scored_is_a_data_error(hypotheses: list[str], references: list[str], what: str) -> None:
    with pytest.raises(DataError, match=what):
        score(hypotheses, references)


@pytest.mark.parametrize(
    ("raw", "answer"),
    [
        ("你好！<end_of_turn>\n", "你好！"),
        ("Hello<|im_end|><|endoftext|>", "Hello"),
        ("<s>Hi</s>", "Hi"),
        ("<bos>Hi<eos><pad><pad>", "Hi"),
        ("[INST] Hi [/INST]", "Hi"),
        ("好的<\uff5cend▁of▁sentence\uff5c>", "好的"),
        ("<start_of_turn>model\n好的", "好的"),
        ("<|start_header_id|>assistant<|end_header_id|>\n\nHi<|eot_id|>", "Hi"),
        ("<|im_start|>user friendly", "user friendly"),
        ("<think>\nLet me see.\n</think>\n\n42", "42"),
        ("a<think>b</think>c<think>d</think>e", "ace"),
        ("the prompt opened this</think>42", "42"),
        ("<think>cut off before an ans", ""),
        ("the tag <think> opens a thought", "the tag <think> opens a thought"),
    ],
)
def test_special_tokens_and_thoughts_go(raw: str, answer: str) -> None:
    assert clean_output(raw) == answer


ORDINARY = [
    "a < b and b > c",
    "if x<3|y>4",
    "f <| x |> g",
    "List<String> s",
    "<b>bold</b>",
    "x[0] [1]",
    "<|>",
    "《<你好>》",
    "1 << 2",
]


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_text_stays(text: str) -> None:
    assert clean_output(text) == text


@given(st.text(st.characters(exclude_characters="<[")))
def test_special_tokens_around_any_text_leave_just_the_text(text: str) -> None:
    assert clean_output(text) == text.strip()
    assert clean_output(f"<start_of_turn>model\n<think>{text}</think>{text}<end_of_turn><eos>") == text.strip()


MILLION = 1_000_000


@pytest.mark.parametrize(
    "unit", ["a", "好", "word ", " ", "1,", "!?.-", "-\n", "好 ", "<think>", "<", "<|im_start|>", "\ud800"], ids=ascii
)
def test_a_hypothesis_of_a_million_characters_takes_seconds(unit: str) -> None:
    raw = unit * (MILLION // len(unit))
    start = process_time()
    clean_output(raw)
    scores = score([raw, "好"], ["今天 weather is good, 很好。", "好"], is_refusal=lambda text: "sorry" in text)
    assert process_time() - start < 10
    assert all(np.isfinite(list(scores.metrics.values())))


def test_scoring_loads_no_heavy_library_and_no_sacrebleu() -> None:
    code = (
        "import sys; from llmkit.metrics import pairs, text; text.score(['a'], ['b']);"
        "print(sorted({'torch', 'transformers', 'datasets', 'evaluate', 'pandas', 'sacrebleu', 'jieba'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"

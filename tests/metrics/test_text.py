"""Scores against their oracles (sacrebleu, rouge-score) and against the traps Chinese text sets."""

import random
import subprocess
import sys

import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from llmkit.errors import DataError
from llmkit.metrics.text import ROUGE_TYPES, bleu, clean_output, rouge, score
from llmkit.metrics.tokens import rouge_tokens

ASCII = st.text(st.characters(max_codepoint=126), max_size=60)
VOCABULARY = ["the", "cat", "sat", "on", "mat", ".", ",", "don't", "3.5", "U.S.", "好", "天气", "カナ", "한국", "😀", "É"]
WORDS = st.lists(st.sampled_from(VOCABULARY), max_size=25).map(" ".join)
MIXED = st.one_of(WORDS, st.text(max_size=60))
EXACT = {"rel": 0, "abs": 1e-9}


def pairs_of(texts: st.SearchStrategy[str]) -> st.SearchStrategy[tuple[list[str], list[str]]]:
    pair = st.tuples(texts, texts.filter(lambda text: bool(text.strip())))
    return st.lists(pair, min_size=1, max_size=6).map(lambda pairs: ([one for one, _ in pairs], [two for _, two in pairs]))


def random_pairs(count: int) -> tuple[list[str], list[str]]:
    """References of 4–40 words or characters, and hypotheses that change a third of them."""
    rng = random.Random(7)
    vocabulary = ["the", "of", "model", "runs", "fast,", "well.", "GPU", "今天", "天气", "很好", "。", "我们", "3.14"]
    references = [[rng.choice(vocabulary) for _ in range(rng.randint(4, 40))] for _ in range(count)]
    hypotheses = [[word if rng.random() > 0.3 else rng.choice(vocabulary) for word in words] for words in references]
    return [" ".join(words) for words in hypotheses], [" ".join(words) for words in references]


class Tokenizer:
    """Gives rouge-score our tokens, so that it checks the arithmetic and not the tokenizer."""

    def tokenize(self, text: str) -> list[str]:
        return rouge_tokens(text)


def assert_equals_the_oracles(hypotheses: list[str], references: list[str]) -> None:
    scores = score(hypotheses, references)
    scorer = RougeScorer(list(ROUGE_TYPES), tokenizer=Tokenizer())
    each = [scorer.score(reference, hypothesis) for hypothesis, reference in zip(hypotheses, references, strict=True)]
    assert scores.metrics == pytest.approx(
        {
            "bleu": sacrebleu.corpus_bleu(hypotheses, [references], tokenize="zh").score,
            "chrf": sacrebleu.corpus_chrf(hypotheses, [references]).score,
            **{name: 100 * sum(one[name].fmeasure for one in each) / len(each) for name in ROUGE_TYPES},
        },
        **EXACT,
    )
    assert scores.sentence_rouge_l == pytest.approx([100 * one["rougeL"].fmeasure for one in each], **EXACT)


@settings(max_examples=150, deadline=None)
@given(pairs_of(MIXED))
def test_any_text_scores_as_sacrebleu_and_rouge_score_do(pairs: tuple[list[str], list[str]]) -> None:
    assert_equals_the_oracles(*pairs)


def test_realistic_pairs_score_as_sacrebleu_and_rouge_score_do() -> None:
    assert_equals_the_oracles(*random_pairs(200))


@settings(max_examples=300, deadline=None)
@given(pairs_of(ASCII))
def test_rouge_on_ascii_text_equals_rouge_score_with_its_own_tokenizer(pairs: tuple[list[str], list[str]]) -> None:
    hypotheses, references = pairs
    scorer = RougeScorer(list(ROUGE_TYPES))
    each = [scorer.score(reference, hypothesis) for hypothesis, reference in zip(hypotheses, references, strict=True)]
    oracle = {name: 100 * sum(one[name].fmeasure for one in each) / len(each) for name in ROUGE_TYPES}
    assert rouge(hypotheses, references) == pytest.approx(oracle, **EXACT)


@settings(max_examples=100, deadline=None)
@given(pairs_of(MIXED), st.randoms(use_true_random=False))
def test_scores_lie_between_0_and_100_and_ignore_the_order_of_the_samples(
    pairs: tuple[list[str], list[str]], rng: random.Random
) -> None:
    scores = score(*pairs).metrics
    assert all(0 <= value <= 100 for value in scores.values())
    shuffled = list(zip(*pairs, strict=True))
    rng.shuffle(shuffled)
    assert score([one for one, _ in shuffled], [two for _, two in shuffled]).metrics == pytest.approx(scores, **EXACT)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(st.characters(min_codepoint=0x4E00, max_codepoint=0x9FA5), min_size=4, max_size=40), min_size=1))
def test_identical_chinese_scores_100(texts: list[str]) -> None:
    assert score(texts, texts).metrics == {"bleu": 100, "rouge1": 100, "rouge2": 100, "rougeL": 100, "chrf": 100}


def test_identical_chinese_is_no_single_word_as_it_is_to_13a() -> None:
    texts = ["今天天气很好", "我们去公园散步吧"]
    assert sacrebleu.corpus_bleu(texts, [texts], tokenize="13a").score == 0
    assert bleu(texts, texts)[0] == 100


def test_on_english_the_zh_tokenizer_scores_as_13a_does() -> None:
    hypotheses = ["The model doesn't run at 3.5 GHz.", "It costs $5, roughly."]
    references = ["The model did not run at 3.5 GHz!", "It costs $5,000, roughly."]
    oracle = sacrebleu.corpus_bleu(hypotheses, [references], tokenize="13a").score
    assert 0 < oracle < 100
    assert bleu(hypotheses, references)[0] == pytest.approx(oracle, **EXACT)


def test_a_fivefold_repetition_is_punished_for_its_length() -> None:
    # 6 of 30 characters match and all 6 are found: F1 = 2 · 0.2 · 1 / 1.2.
    found = rouge(["今天天气很好" * 5], ["今天天气很好"])
    assert found["rouge1"] == pytest.approx(100 / 3)
    assert found["rougeL"] == pytest.approx(100 / 3)


def test_mixed_sentences_that_share_only_their_english_word_are_not_equal() -> None:
    assert RougeScorer(["rouge1"]).score("我喜欢 Python", "他讨厌 Python")["rouge1"].fmeasure == 1
    assert rouge(["他讨厌 Python"], ["我喜欢 Python"]) == pytest.approx({"rouge1": 25, "rouge2": 0, "rougeL": 25})


@pytest.mark.parametrize("hypothesis", ["", "  \n"])
def test_an_empty_hypothesis_scores_0(hypothesis: str) -> None:
    scores = score([hypothesis], ["今天天气很好"])
    assert set(scores.metrics.values()) == {0}
    assert scores.sentence_rouge_l == (0,)


def test_signatures_name_the_definitions() -> None:
    signatures = score(["好"], ["好"]).signatures
    assert "tok:zh" in signatures["bleu"]
    assert "nc:6|nw:0" in signatures["chrf"]
    assert "char-cjk" in signatures["rouge"]


@pytest.mark.parametrize(
    ("hypotheses", "references", "what"),
    [
        (["a"], ["a", "b"], "1 hypotheses and 2 references"),
        ([], [], "no samples"),
        (["a", "b", "c"], ["a", " ", ""], "2 of 3 references are empty"),
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


def test_scoring_loads_no_heavy_library() -> None:
    code = (
        "import sys; from llmkit.metrics import pairs, text; text.score(['a'], ['b']);"
        "print(sorted({'torch', 'transformers', 'datasets', 'evaluate', 'pandas'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"

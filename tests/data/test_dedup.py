"""Exact keys, normalised views and families of records."""

from hypothesis import given
from hypothesis import strategies as st

from llmkit.data.dedup import exact_key, families, leaks, normalise, view
from llmkit.data.record import Record


def exchange(question: str, answer: str, *, system: str = "", rejected: str | None = None) -> Record:
    messages = [{"role": "system", "content": system}] if system else []
    messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return Record(messages, "f:1", rejected)


def test_the_exact_key_ignores_case_and_white_space_only() -> None:
    base = exchange("How are you?", "Fine, thanks")
    assert exact_key(base) == exact_key(exchange(" how  are\nyou? ", "FINE, thanks\u3000"))
    others = [
        exchange("How are you", "Fine, thanks"),
        exchange("How are you? Fine,", "thanks"),
        exchange("Fine, thanks", "How are you?"),
        exchange("How are you?", "Fine, thanks", system="x"),
        exchange("How are you?", "Fine, thanks", rejected="x"),
    ]
    assert len({exact_key(record) for record in [base, *others]}) == 6


@given(st.text(max_size=30))
def test_normalised_text_is_stable_and_lower_case_without_space(text: str) -> None:
    once = normalise(text)
    assert "".join(once.split()) == once
    assert bool(once) == bool(text.strip())


def test_normalising_keeps_letters_digits_and_han() -> None:
    assert normalise("你好，World_2！ ¿Qué?") == "你好world2qué"
    assert normalise(" ？？ !") == "？？!"


def test_a_view_holds_its_roles_and_never_the_system_message() -> None:
    record = exchange("Who?", "Me.", system="be kind")
    assert view(record, ("user", "assistant")) == "who me"
    assert view(record, ("assistant",)) == "me"


def test_records_are_one_family_when_the_question_or_the_answer_nearly_repeats() -> None:
    records = [
        exchange("what is the capital of france", "it is paris of course"),
        exchange("What is the capital of France?", "no idea whatsoever about that"),
        exchange("tell me about that city up there", "It is Paris, of course!"),
        exchange("something else entirely, please", "an unrelated reply of some length"),
    ]
    assert families(records, 0.7).groups() == [[0, 1, 2], [3]]


def test_a_shared_system_message_makes_no_family() -> None:
    prompt = "You are a helpful, honest and harmless assistant that answers at length."
    records = [exchange("one two three", "four five six", system=prompt), exchange("甲乙丙丁戊", "子丑寅卯辰", system=prompt)]
    assert len(families(records, 0.7).groups()) == 2


def test_leaks_name_the_view_and_how_near() -> None:
    left = [exchange("another question", "and its answer"), exchange("hello there friend", "good day to you")]
    right = [exchange("hello there friend", "go away at once")]
    found = list(leaks(left, right, 0.7))
    assert [(leak.left, leak.right, leak.view, leak.similarity) for leak in found] == [(1, 0, "user", 1.0)]
    assert list(leaks(left[:1], right, 0.7)) == []

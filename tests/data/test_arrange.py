"""The second pass on whole runs: no leaks by brute force, a split that stays when data is added, test sets kept out."""

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from llmkit.data import dedup
from llmkit.data.near import Families
from llmkit.data.record import Record, read_records
from tests.cleaning import LETTERS, SIDES, chat, jaccard, kept, line, lines_of, run, shingles, talk, text, write

BruteLeaks = Callable[[Sequence[Record], Sequence[Record], float], list[tuple[Record, Record]]]
Talk = list[dict[str, str]]


def relatives(rng: random.Random, messages: Talk, edits: int) -> Talk:
    """The dialogue, or only its questions, or only its answers, with a few letters changed."""
    whose = rng.choice([("user", "assistant"), ("user",), ("assistant",)])
    return [
        {**one, "content": changed(rng, one["content"], edits) if one["role"] in whose else text(rng, len(one["content"]))}
        for one in messages
    ]


def changed(rng: random.Random, words: str, edits: int) -> str:
    letters = list(words)
    for _ in range(rng.randint(0, edits)):
        letters[rng.randrange(len(letters))] = rng.choice(LETTERS["zh"])
    return "".join(letters)


def crowd(rng: random.Random, families: int, *, extra: int) -> list[Talk]:
    """Dialogues of which some are near others in one view or all, chains among them."""
    lines = [chat(rng, rng.choice(["zh", "en"]), turns=rng.choice([2, 4]), length=rng.randint(12, 50)) for _ in range(families)]
    for _ in range(extra):
        lines.append(relatives(rng, rng.choice(lines), rng.randint(0, 5)))
    rng.shuffle(lines)
    return lines


def sides(out: Path) -> dict[str, list[Record]]:
    return {side: list(read_records(out / f"{side}.jsonl")) for side in SIDES}


def leaks(out: Path, brute_leaks: BruteLeaks, threshold: float = 0.7) -> list[tuple[Record, Record]]:
    found = sides(out)
    return brute_leaks(found["train"], [*found["valid"], *found["test"]], threshold)


def report_of(out: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((out / "report.json").read_text("utf-8"))
    return report


@pytest.mark.parametrize("seed", range(3))
def test_no_held_out_dialogue_is_near_a_training_one(seed: int, tmp_path: Path, brute_leaks: BruteLeaks) -> None:
    source = write(tmp_path / "a.jsonl", crowd(random.Random(seed), 150, extra=150))
    out = tmp_path / "out"
    facts = run(out, source, min_turns=2, seed=seed)
    assert facts["leaks"] == 0
    assert leaks(out, brute_leaks) == []
    assert all(facts[side] for side in SIDES)
    assert brute_leaks(sides(out)["train"], sides(out)["train"], 0.7), "there is something to keep apart"


def test_what_minhash_missed_is_mended_and_told(
    tmp_path: Path, brute_leaks: BruteLeaks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dedup, "join_families", lambda *_, **__: None)
    source = write(tmp_path / "a.jsonl", crowd(random.Random(5), 150, extra=150))
    facts = run(tmp_path / "out", source, min_turns=2)
    assert leaks(tmp_path / "out", brute_leaks) == []
    split = report_of(tmp_path / "out")["split"]
    assert split["moved"] > 0 == split["leaks"]
    assert facts["kept"] == sum(facts[side] for side in SIDES) == sum(len(one) for one in sides(tmp_path / "out").values())


def test_near_duplicates_dropped_leave_none_behind(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", crowd(random.Random(6), 120, extra=120))
    facts = run(tmp_path / "out", source, min_turns=2, dedup={"near": 0.8})
    whole = [shingles(dedup.view(one, "dialogue")) for side in SIDES for one in sides(tmp_path / "out")[side]]
    assert facts["reasons"]["near_duplicate"] > 0
    assert not [1 for number, one in enumerate(whole) for other in whole[:number] if jaccard(one, other) >= 0.8]


def test_dialogues_without_a_letter_are_kept_and_near_to_nothing(tmp_path: Path) -> None:
    lines = [talk("？" * (n + 1), "！！", "。。", "…" * (n + 1)) for n in range(20)]
    facts = run(tmp_path / "out", write(tmp_path / "a.jsonl", lines), dedup={"near": 0.8})
    assert (facts["kept"], facts["families"]) == (20, 20)


# ---- stable when data is added


def moved(before: dict[str, str], after: dict[str, str]) -> set[str]:
    assert before.keys() <= after.keys()
    return {name for name, side in before.items() if after[name] != side}


@pytest.mark.parametrize("by", ["lines", "file"])
def test_what_is_added_last_moves_nothing_that_was_there(by: str, tmp_path: Path) -> None:
    rng = random.Random(9)
    folder = tmp_path / "data"
    write(folder / "a.jsonl", crowd(rng, 80, extra=20))
    last = write(folder / "b.jsonl", crowd(rng, 80, extra=20))
    run(tmp_path / "before", folder, min_turns=2)
    more = b"".join(line(one) for one in [chat(rng, turns=2) for _ in range(60)])
    if by == "lines":
        last.write_bytes(last.read_bytes() + more)
    else:
        (folder / "c.jsonl").write_bytes(more)
    facts = run(tmp_path / "after", folder, min_turns=2)
    assert facts["read"] == 260
    assert moved(kept(tmp_path / "before"), kept(tmp_path / "after")) == set()


@pytest.mark.parametrize("seed", range(3))
def test_added_relatives_move_only_the_families_that_they_tie_together(
    seed: int, tmp_path: Path, brute_leaks: BruteLeaks
) -> None:
    rng = random.Random(f"tie {seed}")
    old = [chat(rng, turns=2) for _ in range(100)]
    old += [relatives(rng, rng.choice(old), 3) for _ in range(20)]
    source = write(tmp_path / "a.jsonl", old)
    run(tmp_path / "before", source, min_turns=2)
    # Some ask what one did and answer as another did; others are near one only.
    new = [[old[one][0], old[one + 50][1]] for one in range(0, 50, 5)] + [relatives(rng, rng.choice(old), 3) for _ in range(10)]
    source.write_bytes(source.read_bytes() + b"".join(map(line, new)))
    run(tmp_path / "after", source, min_turns=2)
    went = moved(kept(tmp_path / "before"), kept(tmp_path / "after"))
    records = [one for side in SIDES for one in sides(tmp_path / "after")[side]]
    near = Families(len(old) + len(new))
    for one, other in brute_leaks(records, records, 0.7):
        near.join(number(one), number(other))
    tied = {near.root(place) for place in range(len(old), len(old) + len(new))}
    assert went, "some are tied across sides"
    assert {name for name in went if near.root(int(name.rpartition(":")[2]) - 1) not in tied} == set()
    assert leaks(tmp_path / "after", brute_leaks) == []


def number(record: Record) -> int:
    """The place of a record's line in its file, from 0."""
    return int(record.source.rpartition(":")[2]) - 1


# ---- test sets


@pytest.mark.parametrize("near", [0.7, 0.9])
def test_whatever_repeats_a_named_set_is_dropped_and_the_line_named(near: float, tmp_path: Path) -> None:
    rng = random.Random(12)
    asked = [text(rng, 30) for _ in range(6)]
    exam = [
        b"",
        {"question": asked[0]},
        {"instruction": asked[1], "output": "A"},
        b"broken",
        {"prompt": asked[2]},
        talk(asked[3], asked[4]),
    ]
    write(tmp_path / "exam.jsonl", exam)
    other = write(tmp_path / "other.jsonl", [{"query": asked[5]}])
    lines = [chat(rng) for _ in range(40)]
    lines += [
        talk(asked[0], "一", "", "二")[:2],
        talk(changed(rng, asked[1], 2), "三"),
        talk(asked[2], text(rng, 30)),
        talk(asked[3], "四"),
    ]
    lines += [talk(asked[5], text(rng, 60)), talk(text(rng, 30), asked[0])]
    out = tmp_path / "out"
    against = {"against": [str(tmp_path / "exam.jsonl"), str(other)], "near": near}
    facts = run(out, write(tmp_path / "a.jsonl", lines), min_turns=2, decontaminate=against)
    dropped = {one["source"]: one["detail"] for one in lines_of(out / "rejected.jsonl")}
    alike = jaccard(shingles(asked[1]), shingles(lines[41][0]["content"]))
    expected = {
        41: "1.00 like exam.jsonl:2",
        43: "1.00 like exam.jsonl:5",
        44: "1.00 like exam.jsonl:6",
        45: "1.00 like other.jsonl:1",
    }
    if alike >= near:
        expected[42] = f"{alike:.2f} like exam.jsonl:3"
    assert dropped == {f"a.jsonl:{number}": detail for number, detail in expected.items()}
    assert facts["reasons"] == {"in_test_set": len(dropped)}
    assert report_of(out)["rules"][-1]["removed"] == len(dropped)


def test_a_set_that_asks_nothing_is_an_error(tmp_path: Path) -> None:
    empty = write(tmp_path / "exam.jsonl", [{"nothing": 1}])
    source = write(tmp_path / "a.jsonl", [chat(random.Random(1))])
    with pytest.raises(Exception, match="no question can be read here"):
        run(tmp_path / "out", source, decontaminate={"against": str(empty)})


# ---- shares


def test_every_stratum_has_its_share_on_each_side(tmp_path: Path) -> None:
    rng = random.Random(13)
    for name, language, count in (("a", "zh", 200), ("b", "en", 150), ("c", "zh", 50)):
        write(tmp_path / "data" / f"{name}.jsonl", [chat(rng, language) for _ in range(count)])
    with (tmp_path / "data" / "a.jsonl").open("ab") as stream:
        stream.writelines(line(chat(rng, "en")) for _ in range(100))
    facts = run(tmp_path / "out", tmp_path / "data")
    strata = {(one["source"], one["language"]): one for one in report_of(tmp_path / "out")["split"]["strata"]}
    assert {key: sum(one[side] for side in SIDES) for key, one in strata.items()} == {
        ("a.jsonl", "zh"): 200,
        ("a.jsonl", "en"): 100,
        ("b.jsonl", "en"): 150,
        ("c.jsonl", "zh"): 50,
    }
    for one in strata.values():
        whole = sum(one[side] for side in SIDES)
        assert [round(one[side] / whole, 2) for side in SIDES] == [0.8, 0.1, 0.1]
    assert [facts[side] for side in SIDES] == [400, 50, 50]


def test_a_test_question_is_found_wherever_it_stands_in_a_dialogue(tmp_path: Path) -> None:
    rng = random.Random(3)
    asked = text(rng, 40)
    exam = write(tmp_path / "exam.jsonl", [{"question": asked}])
    later = talk(text(rng, 30), text(rng, 30), asked, text(rng, 30))
    facts = run(
        tmp_path / "out",
        write(tmp_path / "chats.jsonl", [later, *[chat(rng) for _ in range(20)]]),
        decontaminate={"against": str(exam)},
    )
    assert facts["reasons"] == {"in_test_set": 1}


def test_a_file_of_the_same_name_elsewhere_moves_nothing(tmp_path: Path) -> None:
    rng = random.Random(4)
    first = write(tmp_path / "one" / "a.jsonl", [chat(rng) for _ in range(60)])
    second = write(tmp_path / "two" / "a.jsonl", [chat(rng) for _ in range(60)])
    run(tmp_path / "before", first)
    run(tmp_path / "after", first, second)
    sides = [
        {record.id: side for side in SIDES for record in read_records(tmp_path / name / f"{side}.jsonl")}
        for name in ("before", "after")
    ]
    assert all(sides[1][name] == side for name, side in sides[0].items())


def test_another_persona_and_another_rejected_answer_are_no_duplicates(tmp_path: Path) -> None:
    rng = random.Random(5)
    question, answer = text(rng, 60), text(rng, 60)
    personas = [{"messages": [{"role": "system", "content": text(rng, 60)}, *talk(question, answer)]} for _ in range(3)]
    pairs = [{"prompt": question, "chosen": answer, "rejected": text(rng, 60)} for _ in range(3)]
    source = write(tmp_path / "chats.jsonl", [*personas, *pairs])
    assert (
        run(tmp_path / "out", source, min_turns=2, dedup={"near": 0.8}, split={"train": 1, "valid": 0, "test": 0})["kept"] == 6
    )

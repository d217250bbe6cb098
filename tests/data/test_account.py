"""The report of a run: a waterfall that adds up, ten examples at most, warnings, and facts that agree with it."""

import json
import random
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from llmkit import progress
from llmkit.data.sieve import EXAMPLES
from llmkit.errors import DataError
from tests.cleaning import SIDES, chat, edited, jaccard, line, lines_of, run, said, shingles, talk, write

ALL_ON: dict[str, Any] = {
    "min_turns": 2,
    "unicode": True,
    "whitespace": True,
    "simplify": True,
    "languages": ["zh", "en"],
    "refusals": "drop",
    "max_special": 0.5,
    "max_repetition": 0.2,
    "urls": "drop",
    "personal": {"action": "mask"},
    "dedup": {"near": 0.8},
    "max_bad": 0.5,
}


def losses(rng: random.Random, count: int) -> list[object]:
    """So many lines for each way to be dropped or changed, and as many that stay."""
    lines: list[object] = []
    for number in range(count):
        one = chat(rng)
        near = edited(rng, one, lambda text, one=one: jaccard(shingles(words(one)), shingles(text)), 0.9)
        lines += [
            one,
            one,
            near,
            talk(f"{number}"),
            talk("长" * 300, "答"),
            {"messages": []},
            {"no": number},
            b"{broken" + str(number).encode(),
        ]
        lines += [
            talk("作为一个人工智能语言模型，我无法回答。", "作为一个人工智能语言模型，我无法回答。"),
            talk("☆★※◆" * 9, "☆★※◆" * 9),
        ]
        lines += [talk(f"Привет, номер {number}, как дела?", "Хорошо, спасибо большое."), talk("哈" * 50, "嘿" * 50)]
        lines += [
            talk(words(chat(rng, turns=1)), f"看 https://example.org/{number}"),
            talk(words(chat(rng, turns=1)), f"邮箱a{number}@qq.com"),
        ]
        lines += [talk("請問這個問題" + words(chat(rng, turns=1)), words(chat(rng, turns=1)))]
    rng.shuffle(lines)
    return lines


def words(messages: list[dict[str, str]]) -> str:
    return said([one["content"] for one in messages])


@pytest.fixture(scope="module")
def cleaned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """(folder, report, facts) of a run that drops fifteen for every reason."""
    folder = tmp_path_factory.mktemp("account")
    facts = run(folder / "out", write(folder / "a.jsonl", losses(random.Random(2), 15)), **ALL_ON)
    report: dict[str, Any] = json.loads((folder / "out" / "report.json").read_text("utf-8"))
    return folder / "out", report, dict(facts)


Cleaned = tuple[Path, dict[str, Any], dict[str, Any]]


def test_the_waterfall_starts_at_what_was_read_and_ends_at_what_is_kept(cleaned: Cleaned) -> None:
    _, report, _ = cleaned
    left = report["read"]
    for rule in report["rules"]:
        assert rule["seen"] == left, rule["name"]
        assert rule["removed"] == sum(one["count"] for one in rule["reasons"])
        left -= rule["removed"]
    assert left == report["kept"] == sum(report["split"][side] for side in SIDES)
    assert report["read"] == report["kept"] + report["rejected"] + report["quarantined"]
    assert report["rules"][0]["removed"] == report["quarantined"]
    names = [rule["name"] for rule in report["rules"]]
    assert names[0] == "unreadable"
    assert names[-2:] == ["exact duplicates", "near duplicates"]
    idle = [rule["name"] for rule in report["rules"] if not rule["removed"] and not rule["changed"]]
    assert idle == ["unicode", "whitespace", "tools"]


def test_each_reason_has_ten_real_examples_at_most(cleaned: Cleaned) -> None:
    out, report, _ = cleaned
    dropped = {one["source"]: one for name in ("rejected", "quarantined") for one in lines_of(out / f"{name}.jsonl")}
    for rule in report["rules"]:
        for reason in rule["reasons"]:
            assert len(reason["examples"]) == min(EXAMPLES, reason["count"])
            for example in reason["examples"]:
                entry = dropped[example["source"]]
                assert entry.get("rule", "unreadable") == rule["name"]
                assert entry.get("detail", entry["reason"]) == example["detail"]
                assert reason["reason"] == entry["reason"] or rule["name"] == "unreadable"
        assert len(rule["changes"]) == min(EXAMPLES, rule["changed"])
        assert all(one["before"] != one["after"] for one in rule["changes"])
    changes = {rule["name"]: rule["changes"] for rule in report["rules"] if rule["changes"]}
    assert set(changes) == {"simplify", "personal"}
    assert all("<EMAIL>" in one["after"] and one["before"] == "(not shown here)" for one in changes["personal"])


def test_counts_by_reason_are_those_of_the_lines_written(cleaned: Cleaned) -> None:
    out, report, facts = cleaned
    lines = lines_of(out / "rejected.jsonl")
    told = {(rule["name"], one["reason"]): one["count"] for rule in report["rules"][1:] for one in rule["reasons"]}
    written = [(one["rule"], one["reason"]) for one in lines]
    assert told == {key: written.count(key) for key in set(written)}
    assert report["rejected"] == len(lines) == sum(facts["reasons"].values())
    assert report["quarantined"] == len(lines_of(out / "quarantined.jsonl"))


def test_the_facts_agree_with_the_report(cleaned: Cleaned) -> None:
    _, report, facts = cleaned
    for name in ("read", "kept", "rejected", "quarantined"):
        assert facts[name] == report[name]
    for side in SIDES:
        assert facts[side] == report["split"][side]
    assert facts["families"] == report["split"]["families"]
    assert facts["leaks"] == report["split"]["leaks"] == 0
    assert facts["changed"] == {rule["name"]: rule["changed"] for rule in report["rules"] if rule["changed"]}
    reasons: dict[str, int] = {}
    for rule in report["rules"][1:]:
        for one in rule["reasons"]:
            reasons[one["reason"]] = reasons.get(one["reason"], 0) + one["count"]
    assert facts["reasons"] == reasons
    assert list(facts["reasons"].values()) == sorted(reasons.values(), reverse=True)


def test_distributions_count_every_dialogue_read_and_every_one_kept(cleaned: Cleaned) -> None:
    _, report, _ = cleaned
    assert report["sampled"] is None
    for one in report["distributions"].values():
        assert sum(one["before"]) == report["read"] - report["quarantined"]
        assert sum(one["after"]) == report["kept"]
        assert len(one["buckets"]) == len(one["before"]) == len(one["after"])
    assert set(report["distributions"]) == {"turns", "characters", "tokens", "languages"}


def test_clusters_name_what_stays_and_how_like_it_the_others_are(cleaned: Cleaned) -> None:
    out, report, _ = cleaned
    stays = {one["id"] for side in SIDES for one in lines_of(out / f"{side}.jsonl")}
    assert 0 < len(report["clusters"]) <= 10
    for cluster in report["clusters"]:
        assert cluster["kept"] in stays
        assert cluster["size"] == len(cluster["members"]) + 1
        assert all(0.8 <= one["similarity"] <= 1 and one["id"] not in stays for one in cluster["members"])


def test_the_page_holds_the_waterfall_and_escapes_what_the_data_says(tmp_path: Path) -> None:
    rng = random.Random(4)
    source = write(tmp_path / "a.jsonl", [*[chat(rng) for _ in range(20)], talk("<script>alert(1)</script>"), b"<img src=x>"])
    run(tmp_path / "out", source, max_bad=0.5)
    report = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    for rule in report["rules"]:
        assert rule["title"] in unescape(page)
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "<img" not in page


def test_a_rule_that_drops_over_half_of_what_it_sees_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    monkeypatch.setattr(progress, "note", notes.append)
    rng = random.Random(5)
    lines = [*[chat(rng) for _ in range(9)], *[talk("a", str(number)) for number in range(9)]]
    source = write(tmp_path / "a.jsonl", lines)
    run(tmp_path / "half", source)
    assert json.loads((tmp_path / "half" / "report.json").read_text("utf-8"))["warnings"] == []
    source.write_bytes(source.read_bytes() + line(talk("a", "b")))
    run(tmp_path / "more", source)
    warnings = json.loads((tmp_path / "more" / "report.json").read_text("utf-8"))["warnings"]
    assert warnings == ["dialogue removed 53% of what it saw, most for too_few_turns"]
    assert f"warning: {warnings[0]}" in notes


def test_a_run_that_keeps_nothing_says_why(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="3 read, 0 kept") as caught:
        run(tmp_path / "out", write(tmp_path / "a.jsonl", [talk("a", "b", "c") for _ in range(3)]), languages=["zh"])
    assert caught.value.next


@pytest.mark.parametrize(
    "config",
    [
        {"split": {"train": 1, "valid": 0, "test": 0}},
        {"dedup": {"exact": False}},
        {"split": {"train": 1, "valid": 0, "test": 0}, "dedup": {"near": 0.8}},
    ],
)
def test_without_a_split_or_without_duplicates_it_adds_up_too(config: dict[str, Any], tmp_path: Path) -> None:
    rng = random.Random(6)
    lines = [chat(rng) for _ in range(30)]
    facts = run(tmp_path / "out", write(tmp_path / "a.jsonl", [*lines, *lines[:5]]), **config)
    report = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
    assert facts["read"] == 35 == facts["kept"] + facts["rejected"]
    assert facts["kept"] == sum(len(lines_of(tmp_path / "out" / f"{side}.jsonl")) for side in SIDES)
    last = report["rules"][-1]
    assert last["seen"] - last["removed"] == report["kept"]
    assert all(sum(one["after"]) == report["kept"] for one in report["distributions"].values())


def test_pairs_that_teach_little_or_teach_length_are_told(tmp_path: Path) -> None:
    made = [
        ("explicit", "一个完全不同的好答案，说得很清楚。", "不知道。"),
        ("nearly equal", "the very same answer, word for word, but", "the very same answer, word for word, but!"),
        ("longer", "yes, it is.", "well, that is a long story " * 8),
    ]
    lines = [
        {"prompt": f"{kind} {number * 7919}?", "chosen": chosen + str(number), "rejected": rejected + str(number)}
        for number in range(20)
        for kind, chosen, rejected in made
    ]
    run(tmp_path / "out", write(tmp_path / "pairs.jsonl", lines), min_turns=2)
    report = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
    assert report["pairs"] == {"explicit": 60, "nearly equal": 20, "rejected longer": 20}
    assert [text.split(" ")[1] for text in report["warnings"] if "pairs" in text] == ["20", "20"]

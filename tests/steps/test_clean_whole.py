"""The clean step with everything on: the same bytes whoever does the work, what is planted is found, all is accounted for."""

import csv
import gzip
import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmkit.data import workers
from llmkit.data.personal import KINDS
from llmkit.errors import LlmkitError, UsageError
from tests.cleaning import OUTPUTS, SIDES, chat, edited, jaccard, lines_of, run, said, shingles, talk, text, write
from tests.planted import MAKERS, SENTENCES

EXAM = chat(random.Random(7))
CLEAN = (Path(__file__).parents[1] / "data" / "clean_lines.txt").read_text("utf-8").splitlines()


# ---- one input of many kinds, all rules on


def odd_ones(rng: random.Random) -> list[object]:
    """A dialogue for each rule, and lines that no rule ever sees."""
    four = [text(rng, 30) for _ in range(4)]
    return [
        talk("請問這個問題怎麼解決呢？", four[0], "謝謝你的幫助，再見。", four[1]),
        talk(f"<p>{four[2]}</p>", four[3], "ｈｅｌｌｏ　ｗｏｒｌｄ", "a  b   c\n\n\n\nd"),
        talk(four[0], "看这里 https://example.org/a?b=1 。", four[1], "计祘机是什么"),
        talk(four[2], "作为一个人工智能语言模型，我无法回答这个问题。", four[0], four[1]),
        talk("哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈", four[0], four[1], four[2]),
        talk(*["☆★※◆" * 6] * 4),
        talk(four[0], "这是坏词甲，还有 badword 在这里", four[3], four[2]),
        talk(four[1], "电话13800138000，邮箱a@qq.com", four[3], four[0]),
        talk("Привет, как дела сегодня?", "Хорошо, спасибо большое вам.", "Что нового у вас?", "Ничего нового нет."),
        talk(four[3], four[2], "请删掉我", four[0]),
        talk(four[3], four[2]),
        talk(*["长" * 300] * 4),
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}]},
        {"messages": []},
        {"no": "dialogue"},
        b"{broken",
        b"\xff\xfe",
        b"[1, 2]",
        b'{"messages": "a\\u0000b"}',
        b"",
        b"  \t",
    ]


def mixed(folder: Path) -> list[Path]:
    """Files of many formats, with repetitions within and across them."""
    rng = random.Random(1)
    chats = [chat(rng, rng.choice(["zh", "zh", "en"]), turns=rng.choice([4, 6]), length=rng.randint(8, 60)) for _ in range(120)]
    first = [
        *chats[:60],
        *odd_ones(rng),
        EXAM,
        chats[3],
        [*chats[5][:-1], {**chats[5][-1], "content": chats[5][-1]["content"] + "好"}],
    ]
    write(folder / "a.jsonl", first)
    named = {"user": "human", "assistant": "gpt"}
    shared = [
        {"conversations": [{"from": named[one["role"]], "value": one["content"]} for one in messages], "system": "你是助手。"}
        for messages in [*chats[60:80], chats[4]]
    ]
    write(folder / "b" / "share.jsonl", [*shared, *odd_ones(rng)])
    alpaca = [
        {
            "instruction": m[2]["content"],
            "input": "",
            "output": m[3]["content"],
            "history": [[m[0]["content"], m[1]["content"]]],
        }
        for m in [*chats[80:95], chats[7]]
    ]
    (folder / "b" / "alpaca.json").write_text(json.dumps([*alpaca, 5], ensure_ascii=False), "utf-8")
    with (folder / "c.csv").open("w", encoding="utf-8", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["instruction", "input", "output", "system"])
        rows.writerows([text(rng, 30), "", text(rng, 30), ""] for _ in range(10))
    pairs = [{"prompt": m[:-1], "chosen": m[-1:], "rejected": talk("", text(rng, 20))[1:]} for m in chats[95:105]]
    with gzip.open(folder / "d.jsonl.gz", "wb") as packed:
        packed.write(b"".join(json.dumps(one).encode() + b"\r\n" for one in [*pairs, *[{"messages": m} for m in chats[105:]]]))
    return [folder / "a.jsonl", folder / "b", folder / "c.csv", folder / "d.jsonl.gz"]


def everything(folder: Path) -> dict[str, Any]:
    """All that can be asked for."""
    folder.mkdir()
    (folder / "words.txt").write_text("# a comment\n坏词甲\nbadword\n", "utf-8")
    (folder / "terms.csv").write_text("计祘机,计算机\n", "utf-8")
    write(folder / "exam.jsonl", [{"question": "哪一个是这里没有的问题呢？"}, EXAM])
    judge = "def judge(record):\n    said = str(record['messages'])\n    return 'gone' if '请删掉我' in said else record\n"
    (folder / "judge.py").write_text(judge, "utf-8")
    return {
        "unicode": True,
        "whitespace": True,
        "simplify": True,
        "glossary": str(folder / "terms.csv"),
        "languages": ["zh", "en"],
        "max_repetition": 0.1,
        "max_special": 0.5,
        "urls": "mask",
        "markup": "strip",
        "refusals": "drop",
        "sensitive": {"words": str(folder / "words.txt"), "action": "mask"},
        "personal": {"action": "mask"},
        "custom": str(folder / "judge.py"),
        "dedup": {"near": 0.8},
        "decontaminate": {"against": str(folder / "exam.jsonl")},
        "min_turns": 2,
        "max_bad": 0.5,
        "to": "sharegpt",
    }


def outputs(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in OUTPUTS}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return mixed(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return everything(tmp_path_factory.mktemp("rules") / "files")


@pytest.fixture(scope="module")
def small_pieces() -> Iterator[None]:
    """So that small files are cut into many. Pieces are cut here, whoever sifts them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "PIECE_BYTES", 3000)
        yield


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, sources: list[Path], rules: dict[str, Any], small_pieces: None) -> Path:
    """What one process writes."""
    out = tmp_path_factory.mktemp("alone") / "out"
    run(out, *sources, **rules, workers=1)
    return out


def test_every_rule_has_something_to_do_in_the_mixed_input(alone: Path) -> None:
    report = json.loads((alone / "report.json").read_text("utf-8"))
    idle = [rule["name"] for rule in report["rules"] if not rule["removed"] and not rule["changed"]]
    assert idle == []
    assert {one["label"] for one in report["sources"]} == {"a.jsonl", "share.jsonl", "alpaca.json", "c.csv", "d.jsonl.gz"}
    assert all(report["split"][side] for side in SIDES)
    text = "".join((alone / f"{side}.jsonl").read_text("utf-8") for side in SIDES)
    assert "请问这个问题怎么解决呢" in text
    assert "<PHONE>" in text
    assert "计算机是什么" in text


@pytest.mark.parametrize("count", [2, 3])
def test_any_number_of_processes_writes_the_same_bytes(
    count: int, tmp_path: Path, alone: Path, sources: list[Path], rules: dict[str, Any], small_pieces: None
) -> None:
    run(tmp_path / "out", *sources, **rules, workers=count)
    assert outputs(tmp_path / "out") == outputs(alone)


def test_pieces_of_any_size_give_the_same_bytes(
    tmp_path: Path, alone: Path, sources: list[Path], rules: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "PIECE_BYTES", 2**20)
    run(tmp_path / "out", *sources, **rules, workers=1)
    assert outputs(tmp_path / "out") == outputs(alone)


def failing(folder: Path) -> str:
    (folder / "failing.py").write_text("def judge(record):\n    return record['nothing']\n")
    return str(folder / "failing.py")


@pytest.mark.parametrize("count", [1, 2])
def test_what_goes_wrong_in_a_worker_is_told_as_if_it_were_here(
    count: int, tmp_path: Path, sources: list[Path], small_pieces: None
) -> None:
    with pytest.raises(UsageError, match="KeyError: 'nothing'") as caught:
        run(tmp_path / "out", sources[0], custom=failing(tmp_path), max_bad=0.5, workers=count)
    assert caught.value.where.endswith("failing.py:2")


@pytest.fixture
def two_on_ray() -> Iterator[None]:
    ray = pytest.importorskip("ray")
    yield
    ray.shutdown()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_local_ray_of_two_writes_the_same_bytes_and_tells_the_same_errors(
    tmp_path: Path, alone: Path, sources: list[Path], rules: dict[str, Any], small_pieces: None, two_on_ray: None
) -> None:
    run(tmp_path / "out", *sources, **rules, workers=2, engine="ray")
    assert outputs(tmp_path / "out") == outputs(alone)
    with pytest.raises(LlmkitError, match="KeyError: 'nothing'") as caught:
        run(tmp_path / "other", sources[0], custom=failing(tmp_path), max_bad=0.5, workers=2, engine="ray")
    assert caught.value.exit_code == 2
    assert caught.value.where.endswith("failing.py:2")


# ---- what is planted is found


def near_pair(rng: random.Random, target: float) -> tuple[list[dict[str, str]], list[dict[str, str]], float]:
    """Two dialogues and the Jaccard similarity of their 3-character shingles, a little above `target`."""
    one = chat(rng, turns=rng.choice([2, 4, 6]), length=rng.randint(15, 60))
    mine = shingles(words(one))
    other = edited(rng, one, lambda text: jaccard(mine, shingles(text)), target)
    if other == one:
        other = [*one[:-1], {**one[-1], "content": one[-1]["content"] + "！"}]
    return one, other, jaccard(mine, shingles(words(other)))


def words(messages: list[dict[str, str]]) -> str:
    return said([one["content"] for one in messages])


def test_a_thousand_planted_near_duplicates_are_found_and_nothing_else_is_dropped(tmp_path: Path) -> None:
    rng = random.Random(3)
    near = [near_pair(rng, 0.8 + 0.2 * number / 1000) for number in range(1000)]
    below = [near_pair(rng, 0.7 + 0.09 * number / 300) for number in range(300)]
    assert min(alike for *_, alike in near) >= 0.8
    below = [pair for pair in below if pair[2] < 0.8]
    assert len(below) > 250
    lines = [one for first, second, _ in [*near, *below] for one in (first, second)] + [chat(rng) for _ in range(500)]
    rng.shuffle(lines)
    out = tmp_path / "out"
    facts = run(
        out, write(tmp_path / "a.jsonl", lines), dedup={"near": 0.8}, min_turns=2, split={"train": 1, "valid": 0, "test": 0}
    )
    dropped = lines_of(out / "rejected.jsonl")
    assert {one["rule"] for one in dropped} == {"near duplicates"}
    assert 990 <= len(dropped) == facts["rejected"] <= 1000
    stays = {one["id"]: shingles(words(one["messages"])) for one in lines_of(out / "train.jsonl")}
    for one in dropped:
        alike, like = one["detail"].split(" like ")
        true = jaccard(shingles(words(one["record"]["messages"])), stays[like])
        assert true >= 0.8
        assert alike == f"{true:.2f}"


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """A file of dialogues, and of each what was planted in its first message and what that is to become."""
    rng = random.Random(11)
    plan: list[dict[str, Any]] = []
    for kind in KINDS:
        for language, sentences in SENTENCES.items():
            for _ in range(40):
                sentence, secret = rng.choice(sentences), MAKERS[kind](rng)
                plan.append(
                    {
                        "kind": kind,
                        "text": sentence.format(secret),
                        "masked": sentence.format(f"<{kind.upper()}>"),
                        "language": language,
                    }
                )
    for word, language in (("坏词甲", "zh"), ("bad word", "en"), ("乙坏词", "zh"), ("BadWord", "en")):
        for _ in range(10):
            before = text(rng, 12, language)
            plan.append(
                {
                    "kind": "sensitive",
                    "text": f"{before} {word} {before}",
                    "masked": f"{before} {'*' * len(word)} {before}",
                    "language": language,
                }
            )
    rng.shuffle(plan)
    clean_talks = [CLEAN[start : start + 4] for start in range(0, len(CLEAN), 4)]
    lines = [talk(one["text"], *(m["content"] for m in chat(rng, one["language"])[1:])) for one in plan]
    folder = tmp_path_factory.mktemp("planted")
    (folder / "words.txt").write_text("坏词甲\nbad word\n乙坏词\nbadword\nass\n", "utf-8")
    return write(folder / "a.jsonl", [*lines, *[talk(*one) for one in clean_talks], b"broken", talk("a", "b")]), plan


def test_everything_planted_is_masked_as_what_it_is_and_clean_lines_stay(
    tmp_path: Path, planted: tuple[Path, list[dict[str, Any]]]
) -> None:
    source, plan = planted
    options = {"personal": {"action": "mask"}, "sensitive": {"words": str(source.with_name("words.txt")), "action": "mask"}}
    facts = run(tmp_path / "out", source, **options, max_chars=1000, dedup={"near": 0.8, "exact": True})
    assert facts["read"] == facts["kept"] + facts["rejected"] + facts["quarantined"] == len(plan) + 252
    assert facts["kept"] == len(plan) + 250
    found = {
        one["source"]: [m["content"] for m in one["messages"]]
        for side in SIDES
        for one in lines_of(tmp_path / "out" / f"{side}.jsonl")
    }
    for number, one in enumerate(plan, 1):
        assert found[f"a.jsonl:{number}"][0] == one["masked"]
    after = [text for number in range(len(plan), len(plan) + 250) for text in found[f"a.jsonl:{number + 1}"]]
    assert after == CLEAN
    counts = Counter(one["kind"] for one in plan)
    report = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
    assert report["personal"]["kinds"] == {kind: counts[kind] for kind in KINDS}
    assert report["sensitive"]["count"] == counts["sensitive"] == facts["changed"]["sensitive"]
    assert facts["changed"]["personal"] == sum(counts[kind] for kind in KINDS)


@pytest.mark.parametrize(("personal", "words"), [("drop", "drop"), ("keep", "count")])
def test_everything_planted_is_dropped_or_only_counted(
    personal: str, words: str, tmp_path: Path, planted: tuple[Path, list[dict[str, Any]]]
) -> None:
    source, plan = planted
    options = {"personal": {"action": personal}, "sensitive": {"words": str(source.with_name("words.txt")), "action": words}}
    facts = run(tmp_path / "out", source, **options, max_chars=1000)
    counts = Counter(one["kind"] for one in plan)
    people = sum(counts[kind] for kind in KINDS)
    lost = {"personal_data": people, "sensitive": counts["sensitive"]} if personal == "drop" else {}
    assert facts["reasons"] == {**lost, "too_few_turns": 1}
    assert facts["changed"] == {}
    report = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
    if personal == "keep":
        assert report["personal"]["kinds"] == {kind: counts[kind] for kind in KINDS}
        assert report["sensitive"]["count"] == counts["sensitive"]


def test_many_bad_rows_do_not_lock_two_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "PIECE_BYTES", 20_000)
    rows = ["instruction,output"]
    for number in range(1500):
        rows.append(
            f"question {number * 7919},answer {number * 104729}" + (",too many cells" + "x" * 1500 if number % 3 == 0 else "")
        )
    source = tmp_path / "rows.csv"
    source.write_text("\n".join(rows), "utf-8")
    facts = [run(tmp_path / f"out{count}", source, min_turns=2, max_bad=0.9, workers=count) for count in (1, 2)]
    assert facts[0] == facts[1]
    assert facts[0]["quarantined"] == 500

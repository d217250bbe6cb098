"""`llmkit clean` as it is typed: one record's story, formats in and out, and a user's own filters."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from llmkit.cli import app
from llmkit.data import formats
from llmkit.data.record import Record, read_records
from tests.cleaning import SIDES, chat, lines_of, talk, text, write
from tests.erring import code_of

RULES = {"min_turns": 2, "max_bad": 0.5, "simplify": True, "personal": {"action": "mask"}, "dedup": {"near": 0.8}}
LONG = "这是一句很长的话，" * 20


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def llmkit(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [*arguments, "--quiet"])
    return result.exit_code, result.stdout, result.stderr


def settings(**rules: Any) -> list[str]:
    return [part for key, value in rules.items() for part in ("--set", f"clean.{key}={json.dumps(value, ensure_ascii=False)}")]


def source(path: Path = Path("chats.jsonl")) -> Path:
    """Line 1 is changed and kept, 2 its exact duplicate, 3 its near-duplicate, 4 rejected, 5 quarantined; 20 more stay."""
    rng = random.Random(1)
    first = talk("請問電話" + text(rng, 60), text(rng, 40) + "請打13800138000，或發到a@qq.com")
    near = [first[0], {**first[1], "content": first[1]["content"].replace("或", "也可以")}]
    return write(path, [first, first, near, talk("没有回答")[:1], b"{broken", *[chat(rng, turns=2) for _ in range(20)]])


@pytest.fixture(params=["recipe", "alone"])
def ask(request: pytest.FixtureRequest) -> Any:
    """Clean the source in one of the two ways; a function that explains a record the same way."""
    source()
    if request.param == "alone":
        code, _, err = llmkit("clean", "--input", "chats.jsonl", "--output", "out", *settings(**RULES))
        where = ["--output", "out", "--input", "chats.jsonl"]
    else:
        recipe = {"name": "mine", "model": "demo:gemma-3-270m", "data": {"sources": [{"path": "*.jsonl"}]}, "clean": RULES}
        Path("mine.yaml").write_text(json.dumps(recipe), "utf-8")
        code, _, err = llmkit("clean", "--recipe", "mine.yaml", "--workspace", "runs")
        where = ["--workspace", "runs"]
    assert code == 0, err
    return lambda record, *more: llmkit("clean", "--explain", record, *(more or where))


def folder() -> Path:
    return next(path for path in (Path("out"), Path("runs/mine/clean")) if path.exists())


def stays(line: int) -> dict[str, Any]:
    """The kept record that came from a line."""
    found = [one for side in SIDES for one in lines_of(folder() / f"{side}.jsonl") if one["source"] == f"chats.jsonl:{line}"]
    return found[0]


def test_a_kept_record_is_told_with_what_each_rule_changed(ask: Any) -> None:
    kept = stays(1)
    for name in (kept["id"], "chats.jsonl:1"):
        code, out, err = ask(name)
        assert code == 0, err
        lines = [line.strip() for line in out.splitlines()]
        assert lines[0] == f"chats.jsonl:1, id {kept['id']}"
        assert lines[1].startswith("read: 請問電話")
        assert any(line.startswith("simplify: changed") and "“請問電話" in line and "“请问电话" in line for line in lines)
        masked = next(line for line in lines if line.startswith("personal: changed (email 1, phone 1)"))
        assert "打13800138000，或发到a@qq.com”" in masked
        assert "打<PHONE>，或发到<EMAIL>”" in masked
        assert "dialogue: passed" in lines
        assert lines[-1].startswith("→ kept, in ")


def test_the_story_is_one_json_object_too(ask: Any) -> None:
    code, out, _ = ask("chats.jsonl:1", *(["--output", "out"] if Path("out").exists() else ["--workspace", "runs"]), "--json")
    assert code == 0
    assert json.loads(out)["entry"]["id"] == stays(1)["id"]
    assert json.loads(out)["end"] in SIDES


def test_a_rejected_record_is_told_with_its_rule_and_reason(ask: Any) -> None:
    code, out, _ = ask("chats.jsonl:4")
    assert code == 0
    assert "read: 没有回答" in out
    assert "dialogue: rejected, bad_roles the last message is the user's, with no answer" in out
    assert out.splitlines()[-1].startswith("→ rejected by dialogue: bad_roles")


def test_a_duplicate_names_the_one_that_stays(ask: Any) -> None:
    code, out, _ = ask("chats.jsonl:2")
    assert code == 0
    assert out.splitlines()[-1] == f"→ rejected by exact duplicates: duplicate (says the same as {stays(1)['id']})"
    code, out, _ = ask("chats.jsonl:3")
    assert code == 0
    last = out.splitlines()[-1]
    assert last.startswith("→ rejected by near duplicates: near_duplicate (0.")
    assert last.endswith(f" like {stays(1)['id']})")


def test_a_quarantined_line_is_told_as_it_stands(ask: Any) -> None:
    code, out, _ = ask("chats.jsonl:5")
    assert code == 0
    assert "read: {broken" in out
    assert out.splitlines()[-1].startswith("→ quarantined: not JSON")


@pytest.mark.parametrize("name", ["0123456789abcdef", "chats.jsonl:99", "nothing"])
def test_an_unknown_record_is_a_usage_error(ask: Any, name: str) -> None:
    code, out, err = ask(name)
    assert (code, out) == (2, "")
    assert code_of(err) == "LK0211"


def test_what_is_no_dataset_is_a_usage_error() -> None:
    Path("empty").mkdir()
    for where in (["--output", "empty"], ["--output", "missing"], ["--workspace", "runs"]):
        code, _, err = llmkit("clean", "--explain", "chats.jsonl:1", *where)
        assert code == 2, err
        assert code_of(err)


def test_without_the_source_the_story_is_what_the_record_became() -> None:
    source()
    assert llmkit("clean", "--input", "chats.jsonl", "--output", "out", *settings(**RULES))[0] == 0
    Path("chats.jsonl").unlink()
    code, out, _ = llmkit("clean", "--explain", "chats.jsonl:1", "--output", "out")
    assert code == 0
    assert "the line as it came is not at hand" in out
    assert "请问电话" in out


def test_a_change_far_into_a_long_text_is_shown() -> None:
    write(
        Path("chats.jsonl"),
        [talk("问", LONG * 2 + "电话13800138000。", "问", "答"), *[chat(random.Random(n)) for n in range(5)]],
    )
    rules = settings(personal={"action": "mask"}, max_chars=1000)
    assert llmkit("clean", "--input", "chats.jsonl", "--output", "out", *rules)[0] == 0
    _, out, _ = llmkit("clean", "--explain", "chats.jsonl:1", "--output", "out", "--input", "chats.jsonl")
    assert "电话13800138000。" in out
    assert "电话<PHONE>。" in out
    (change,) = [
        rule["changes"][0] for rule in json.loads(Path("out/report.json").read_text("utf-8"))["rules"] if rule["changes"]
    ]
    assert "13800138000" not in Path("out/report.html").read_text("utf-8")
    assert change["after"].endswith("电话<PHONE>。")


# ---- formats out and in


def varied(rng: random.Random) -> list[object]:
    """Dialogues with all that a record may hold."""
    system = {"role": "system", "content": "你是助手。"}
    lines: list[object] = [chat(rng, turns=rng.choice([2, 4, 6])) for _ in range(30)]
    lines += [[system, *chat(rng)] for _ in range(10)]
    lines += [{"prompt": chat(rng)[:3], "chosen": text(rng, 20), "rejected": text(rng, 25)} for _ in range(10)]
    lines += [{"messages": chat(rng), "score": score} for score in (0, 1, 0.5, 4.0)]
    lines += [{"messages": chat(rng), "rejected": text(rng, 9), "pair": "edit", "score": 1.0}]
    return lines


@pytest.mark.parametrize("name", ["messages", "sharegpt", "alpaca"])
def test_what_other_trainers_get_reads_back_as_the_same_records(name: str) -> None:
    source = write(Path("chats.jsonl"), varied(random.Random(3)))
    code, _, err = llmkit("clean", "--input", str(source), "--output", "out", "--min-turns", "2", "--to", name)
    assert code == 0, err
    for side in SIDES:
        records = list(read_records(Path("out") / f"{side}.jsonl"))
        written = lines_of(Path("out") / name / f"{side}.jsonl")
        assert len(records) == len(written) > 0
        for record, raw in zip(records, written, strict=True):
            assert formats.read(raw, record.source) == record
    assert sorted(path.name for path in Path("out").iterdir() if path.is_dir()) == [name]
    assert CliRunner().invoke(app, ["verify", "out"]).exit_code == 0


def test_an_unknown_format_out_is_refused() -> None:
    write(Path("chats.jsonl"), [chat(random.Random(1))])
    code, _, err = llmkit("clean", "--input", "chats.jsonl", "--output", "out", "--to", "parquet")
    assert code == 2
    assert "clean.to" in err


def test_a_format_given_overrides_what_would_be_detected() -> None:
    both = [{"instruction": f"问{n}", "output": f"答{n}", "messages": talk(f"甲{n}", f"乙{n}")} for n in range(10)]
    write(Path("chats.jsonl"), both)
    firsts = {}
    for name in ("messages", "alpaca"):
        code, _, err = llmkit("clean", "--input", "chats.jsonl", "--output", name, "--min-turns", "2", "--format", name)
        assert code == 0, err
        firsts[name] = [one["messages"][0]["content"][0] for one in lines_of(Path(name) / "train.jsonl")]
    assert (set(firsts["messages"]), set(firsts["alpaca"])) == ({"甲"}, {"问"})
    code, _, err = llmkit("clean", "--input", "chats.jsonl", "--output", "out", "--format", "sharegpt")
    assert code == 2
    assert "not sharegpt" in err
    code, _, err = llmkit("clean", "--input", "chats.jsonl", "--output", "out", "--format", "nonsense")
    assert code == 2
    assert "nonsense" in err
    assert llmkit("clean", "--format", "alpaca")[0] == 2


# ---- code of the user's own

JUDGE = """def judge(record):
    if "坏" in record["messages"][0]["content"]:
        return "bad words"
    record["messages"][0]["content"] += "！"
    return record
"""


@pytest.fixture
def judged() -> list[str]:
    """The command line that asks for a custom filter."""
    write(Path("chats.jsonl"), [talk("坏的", "答"), *[chat(random.Random(n), turns=2) for n in range(10)]])
    Path("judge.py").write_text(JUDGE, "utf-8")
    return ["clean", "--input", "chats.jsonl", "--output", "out", *settings(custom=["judge.py"], min_turns=2)]


def test_code_is_run_only_where_it_is_allowed(judged: list[str]) -> None:
    Path("judge.py").write_text("open('ran', 'w')\n" + JUDGE, "utf-8")
    code, _, err = llmkit(*judged)
    assert code == 2
    assert "--allow-code" in err
    assert "judge.py" in err
    assert not Path("out").exists()
    assert not Path("ran").exists()
    code, _, err = llmkit(*judged, "--allow-code")
    assert code == 0, err
    report = json.loads(Path("out/report.json").read_text("utf-8"))
    last = next(rule for rule in report["rules"] if rule["name"] == "custom:judge")
    assert (last["removed"], last["changed"]) == (1, 10)
    assert [one["reason"] for one in last["reasons"]] == ["custom:bad words"]
    assert all(one["messages"][0]["content"].endswith("！") for one in lines_of(Path("out/train.jsonl")))


def test_explaining_runs_no_code(judged: list[str]) -> None:
    assert llmkit(*judged, "--allow-code")[0] == 0
    Path("judge.py").write_text("open('ran', 'w')\n" + JUDGE, "utf-8")
    code, out, err = llmkit("clean", "--explain", "chats.jsonl:1", "--output", "out", "--input", "chats.jsonl")
    assert code == 0, err
    assert "custom:bad words" in out
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("code", "line", "said"),
    [
        ("def judge(record):\n    return record['nothing']\n", 2, "KeyError: 'nothing'"),
        ("def judge(record):\n    return 1\n", None, "judge answered int"),
        ("def judge(record)\n    return record\n", 1, "SyntaxError"),
        ("import nowhere_to_be_found\n", 1, "ModuleNotFoundError"),
        ("def other(record):\n    return record\n", None, "no function `judge`"),
    ],
)
def test_a_filter_that_fails_is_a_usage_error_with_its_line(judged: list[str], code: str, line: int | None, said: str) -> None:
    Path("judge.py").write_text(code, "utf-8")
    exit_code, out, err = llmkit(*judged, "--allow-code")
    assert (exit_code, out) == (2, "")
    assert said in err
    assert (f"judge.py:{line}" if line else "judge.py") in err
    assert code_of(err) == "LK0212"
    assert not Path("out").exists()


def test_another_content_of_the_filter_is_another_cleaning(judged: list[str]) -> None:
    assert llmkit(*judged, "--allow-code")[0] == 0
    assert json.loads(llmkit(*judged, "--allow-code", "--json")[1])["fresh"] is True
    Path("judge.py").write_text(JUDGE.replace("！", "？"), "utf-8")
    assert json.loads(llmkit(*judged, "--allow-code", "--json", "--force")[1])["fresh"] is False


def test_a_record_of_the_dataset_reads_as_itself(judged: list[str]) -> None:
    assert llmkit(*judged, "--allow-code")[0] == 0
    for line in Path("out/train.jsonl").read_bytes().splitlines():
        assert Record.from_json(line).to_json() == line


def test_a_source_edited_since_is_told(ask: Any) -> None:
    path = Path("chats.jsonl")
    lines = path.read_text("utf-8").splitlines()
    path.write_text("\n".join([lines[0].replace("13800138000", "13900139000").replace("請問", "请教"), *lines[1:]]), "utf-8")
    code, out, _ = ask("chats.jsonl:1")
    assert code == 0
    assert "this is another record than the one kept" in out

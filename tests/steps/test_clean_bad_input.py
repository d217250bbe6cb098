"""Bad input through the command line: every record in its place or a clear error, and never a bug of ours.

read = kept + rejected + quarantined, each with its line; a failed run leaves its inputs, and the output that was there.
"""

import gzip
import hashlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from llmkit import progress
from llmkit.artifact import Kind, foreign
from llmkit.cli import app
from llmkit.data import reading, unpack, workers
from llmkit.errors import LlmkitError
from llmkit.steps import clean

SIDES = ("train", "valid", "test")
PLACES = (*SIDES, "rejected", "quarantined")
PACK: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".zst": lambda data: zstandard.ZstdCompressor().compress(data),
}
ROOT = os.geteuid() == 0
# VmHWM, unlike ru_maxrss, knows nothing of the process that started this one.
APART = """
import atexit, pathlib, re
from llmkit.cli import main
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]) // 1024
atexit.register(lambda: pathlib.Path("peak").write_text(str(peak())))
main()
"""
MARK = b"\xef\xbb\xbf"


class Ran(NamedTuple):
    """What a command did: its exit code, what it said, and what is in its output if there is one."""

    code: int
    said: str
    facts: dict[str, Any]
    places: dict[str, list[dict[str, Any]]]

    def sources(self, *places: str) -> list[str]:
        return [entry["source"] for place in places or PLACES for entry in self.places[place]]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    sink = progress._sink
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield
    progress.install(sink)


def chat(number: int, turns: int = 4) -> dict[str, Any]:
    """A dialogue like no other of another number, spelled as most are."""
    texts = [hashlib.sha256(f"{number} {turn}".encode()).hexdigest()[:30] for turn in range(turns)]
    return {"messages": [{"role": ("user", "assistant")[turn % 2], "content": text} for turn, text in enumerate(texts)]}


def line(number: int, turns: int = 4) -> bytes:
    return json.dumps(chat(number, turns), separators=(",", ":")).encode()


def lines(count: int, first: int = 0) -> bytes:
    return b"".join(line(first + number) + b"\n" for number in range(count))


def saying(text: bytes) -> bytes:
    """A dialogue that holds `text` between quotes."""
    return line(0).replace(b'"content":"', b'"content":"' + text, 1)


def run(source: str | Path, *more: str) -> Ran:
    """`llmkit clean` into ./out, with all that holds after every run."""
    before = _prints(Path(source))
    arguments = ["clean", "--input", str(source), "--output", "out", "--set", "clean.max_bad=100%", "--json", *more]
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, SystemExit | None), result.exception
    return _checked(result.exit_code, result.stdout, result.stderr, before, Path(source))


def run_apart(source: str | Path, *more: str, seconds: float = 60) -> tuple[Ran, int]:
    """The same in a process of its own; and the most memory that it took, in MiB."""
    arguments = ["clean", "--input", str(source), "--output", "out", "--set", "clean.max_bad=100%", "--json", *more]
    ran = subprocess.run([sys.executable, "-c", APART, *arguments], check=False, capture_output=True, timeout=seconds)
    return _checked(ran.returncode, ran.stdout.decode(), ran.stderr.decode(), None, Path(source)), int(Path("peak").read_text())


def _checked(code: int, out: str, err: str, before: object, source: Path) -> Ran:
    assert code in {0, 2, 3}, err
    assert "has a bug" not in err
    assert "Traceback" not in err
    assert before is None or _prints(source) == before
    if code:
        assert re.search(r"^error LK\d{4}: ", err, re.MULTILINE)
        return Ran(code, err, {}, {})
    facts = json.loads(out)["facts"]
    found = {place: [json.loads(one) for one in Path("out", f"{place}.jsonl").read_bytes().splitlines()] for place in PLACES}
    ran = Ran(code, err, facts, found)
    assert {place: len(entries) for place, entries in found.items()} == {place: facts[place] for place in PLACES}
    assert facts["read"] == facts["kept"] + facts["rejected"] + facts["quarantined"] == len(set(ran.sources()))
    assert all(entry["reason"] for place in PLACES[3:] for entry in found[place])
    assert "\0" not in json.dumps([found[side] for side in SIDES])
    assert CliRunner().invoke(app, ["verify", "out"]).exit_code == 0
    return ran


def _prints(path: Path) -> object:
    """What is in a file or folder; None where there is neither."""
    if not os.path.exists(path):
        return None
    if path.is_dir():
        return {str(one): _prints(one) for one in sorted(path.rglob("*")) if one.is_file()}
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


# One bad record among good ones


BAD_LINES: dict[str, tuple[bytes, str]] = {
    "broken JSON": (b'{"messages": [', "not JSON"),
    "invalid UTF-8": (saying(b"\xff\xfe"), "not UTF-8"),
    "a surrogate in UTF-8": (saying(b"\xed\xa0\x80"), "not UTF-8"),
    "an overlong slash": (saying(b"\xc0\xaf"), "not UTF-8"),
    "half a character": (saying(b"\\ud83d"), "surrogate"),
    "the other half": (saying(b"\\ude00"), "surrogate"),
    "a raw NUL": (saying(b"a\0b"), "NUL"),
    "an escaped NUL": (saying(b"a\\u0000b"), "NUL"),
    "an escaped NUL after a backslash": (saying(b"a\\\\\\u0000b"), "NUL"),
    "an escaped NUL where nobody looks": (line(0)[:-1] + b',"id":"\\u0000"}', "NUL"),
    "a thousand arrays": (b"[" * 1000 + b"]" * 1000, "nested"),
    "a hundred thousand arrays": (b'{"messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested"),
    "objects without end": (b'{"messages":' + b'{"a":' * 50_000, "nested"),
    "a deep field": (line(0)[:-1] + b',"meta":' + b'[{"a":' * 505 + b"1" + b"}]" * 505 + b"}", "nested"),
    "a huge number": (line(0)[:-1] + b',"n":1e999}', "not JSON"),
    "an integer of 400 digits": (line(0)[:-1] + b',"n":' + b"9" * 400 + b"}", "not JSON"),
    "NaN": (line(0)[:-1] + b',"n":NaN}', "NaN"),
    "an array": (b"[" + line(0) + b"]", "an array"),
    "a number": (b"12", "a number"),
    "null": (b"null", "null"),
    "a string": (b'"' + b"x" * 3_000_000 + b'"', "a string"),
    "two objects": (line(0) + line(1), "not JSON"),
    "an empty object": (b"{}", "unknown shape"),
    "messages of numbers": (b'{"messages":[1,2,3]}', "must be an object"),
    "a role of objects": (b'{"messages":[{"role":{},"content":"x"}]}', "role must be a string"),
    "a number for a text": (
        b'{"messages":[{"role":"user","content":7},{"role":"assistant","content":"x"}]}',
        "must be a string",
    ),
    "too many objects": (b'{"messages":[' + b"{}," * 2_000_000 + b"{}]}", "holds more than"),
}
# What looks odd and is a dialogue all the same.
ODD_LINES: dict[str, bytes] = {
    "a key twice": b'{"messages":[],' + line(1001)[1:],
    "a key twice in a message": line(1002).replace(b'{"role"', b'{"role":"nobody","role"', 1),
    "an integer of 300 digits": line(1003)[:-1] + b',"n":' + b"9" * 300 + b"}",
    "a tiny number": line(1004)[:-1] + b',"n":-1e-999}',
    "a field 900 deep": line(1005)[:-1] + b',"meta":' + b"[" * 900 + b"]" * 900 + b"}",
    "spaces around": b" \t " + line(1006) + b"  \r",
    "other spaces within": line(1007).replace(b":", b" : ").replace(b",", b"\t,"),
    "escapes": line(1008).replace(b'"content":"', b'"content":"\\u4f60\\ud83d\\ude00\\n\\\\u0000', 1),
    "the letters of a NUL": line(1009).replace(b'"content":"', b'"content":"\\\\u0000', 1),
    "control characters": line(1010).replace(b'"content":"', b'"content":"\\u0001\\u001b[31m\\u2028\x7f\xc2\x85', 1),
}


def mixture(*, separator: bytes = b"\n") -> tuple[bytes, dict[int, str], list[int]]:
    """A file's bytes, the reason for each bad line, and the numbers of the good ones. Blank lines are among them."""
    rows: list[tuple[bytes, str]] = []
    for number, bad in enumerate(BAD_LINES.values()):
        rows += [(line(number + 1), ""), bad]
        rows += [(b" \t", "blank")] if number % 4 == 0 else []
    rows += [(odd, "") for odd in ODD_LINES.values()]
    reasons = {number: reason for number, (_, reason) in enumerate(rows, 1) if reason not in {"", "blank"}}
    good = [number for number, (_, reason) in enumerate(rows, 1) if not reason]
    return separator.join(row for row, _ in rows), reasons, good


@pytest.mark.parametrize("rules", [(), ("--set", "clean.whitespace=true")], ids=["short way", "long way"])
@pytest.mark.parametrize("ending", [".jsonl", ".ndjson.gz", ".json.zst"])
def test_each_bad_line_is_set_aside_with_its_reason_and_no_other(tmp_path: Path, ending: str, rules: Sequence[str]) -> None:
    data, reasons, good = mixture()
    source = tmp_path / f"chats{ending}"
    source.write_bytes(PACK[source.suffix if source.suffix in PACK else ""](data))
    ran = run(source, *rules)
    assert ran.code == 0, ran.said
    _as_expected(ran, source.name, reasons, good)


@pytest.mark.parametrize("processes", ["1", "2"])
def test_bad_lines_stand_in_any_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: str) -> None:
    monkeypatch.setattr(workers, "PIECE_BYTES", 50_000)
    data, reasons, good = mixture(separator=b"\r\n")
    (tmp_path / "chats.jsonl").write_bytes(MARK + data)
    ran = run("chats.jsonl", "--workers", processes)
    assert ran.code == 0, ran.said
    _as_expected(ran, "chats.jsonl", reasons, good)


def _as_expected(ran: Ran, name: str, reasons: dict[int, str], good: Sequence[int]) -> None:
    assert sorted(ran.sources(*SIDES)) == sorted(f"{name}:{number}" for number in good)
    found = {int(entry["source"].rpartition(":")[2]): entry for entry in ran.places["quarantined"]}
    assert list(found) == list(reasons)
    for number, reason in reasons.items():
        assert reason in found[number]["reason"]
        assert len(found[number]["raw"]) <= 2000


def test_the_story_of_any_line_can_be_told(tmp_path: Path) -> None:
    (tmp_path / "chats.jsonl").write_bytes(mixture()[0] + b"\n" + line(0)[:-1] + b',"deep":' + b"[" * 998 + b"]" * 998 + b"}")
    ran = run("chats.jsonl")
    for entry in [entry for place in PLACES for entry in ran.places[place]]:
        told = CliRunner().invoke(app, ["clean", "--explain", entry["source"], "--output", "out", "--input", "chats.jsonl"])
        assert told.exit_code == 0, told.stderr
        assert entry["source"] in told.stdout


def test_bad_elements_of_an_array_are_set_aside(tmp_path: Path) -> None:
    no_value = {"broken JSON", "two objects", "objects without end"}  # these end the syntax of the array itself
    bad = [content for name, (content, _) in BAD_LINES.items() if name not in no_value]
    (tmp_path / "chats.json").write_bytes(b"[" + b",\n".join([line(0), *bad, line(1)]) + b"]")
    ran = run("chats.json")
    assert (ran.facts["kept"], ran.facts["quarantined"]) == (2, len(bad)), ran.said
    assert ran.sources("quarantined") == [f"chats.json:{number}" for number in range(2, len(bad) + 2)]
    for name in no_value:
        (tmp_path / "broken.json").write_bytes(b"[" + b",\n".join([line(0), BAD_LINES[name][0], line(1)]) + b"]")
        ran = run("broken.json", "--force")
        assert ran.code == 2
        assert "broken.json" in ran.said


def test_bad_rows_of_a_table_are_set_aside(tmp_path: Path) -> None:
    rows = [
        (b"how,well", ""),
        (b"\xff\xfe,well", "not UTF-8"),
        (b"how,we\0ll", "NUL"),
        (b"how,well,more", "3 cells"),
        (b'"how"x,well', "not a row"),
        (b"only", "unknown shape"),
        (b",", "blank"),
        (b'"' + b"[" * 1000 + b"]" * 1000 + b'",well', "not JSON"),
        (b'"[""\\ud83d""]",well', ""),  # no JSON, so a text
        (b"x" * 17 * 2**20 + b",well", "longer than"),
    ]
    (tmp_path / "table.csv").write_bytes(b"\r\n".join([b"prompt,response", *(row for row, _ in rows)]))
    ran = run("table.csv", "--min-turns", "2", "--max-chars", "3000")
    assert ran.code == 0, ran.said
    reasons = [reason for _, reason in rows if reason not in {"", "blank"}]
    assert len(ran.places["quarantined"]) == len(reasons)
    for entry, reason in zip(ran.places["quarantined"], reasons, strict=True):
        assert reason in entry["reason"]
    assert ran.facts["kept"] == 2


def test_bad_rows_of_a_parquet_file_are_set_aside(tmp_path: Path) -> None:
    texts = ["how", "no\0no", None, "x" * 300]
    table = pa.table({"prompt": texts, "response": ["well"] * 4, "image": pa.array([b"1", None, None, None], pa.binary())})
    pq.write_table(table, tmp_path / "table.parquet")
    ran = run("table.parquet", "--min-turns", "2")
    assert ran.code == 2  # nothing is left
    assert "4 read, 0 kept (1 message_too_long)" in ran.said
    good = pa.table({"prompt": ["how"], "response": ["well"], "image": pa.array([None], pa.binary())})
    pq.write_table(pa.concat_tables([table, good]), tmp_path / "table.parquet")
    ran = run("table.parquet", "--min-turns", "2")
    assert (ran.facts["kept"], ran.facts["rejected"], ran.facts["quarantined"]) == (1, 1, 3), ran.said


def test_a_lines_own_words_are_no_reason_to_count_by(tmp_path: Path) -> None:
    """Or a hostile file would fill memory and report with reasons."""
    shapes = [json.dumps({chr(97 + n % 26) * (n + 1): 1}).encode() for n in range(200)]
    parts = [b'{"messages":[{"role":"user","content":[{"type":"%d"}]}]}' % n for n in range(200)]
    (tmp_path / "chats.jsonl").write_bytes(lines(3) + b"\n".join(shapes + parts))
    assert run("chats.jsonl").facts["quarantined"] == 400
    report = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
    assert len(next(rule for rule in report["rules"] if rule["name"] == "unreadable")["reasons"]) == 2


# Large


@pytest.mark.slow
@pytest.mark.parametrize(
    ("begin", "unit"),
    [
        ('{"messages":[{"role":"user","content":"', "好"),
        ('{"messages":[', '{"role":"user","content":"x"},'),
        ("😀", "x"),
        ("", "\0"),
    ],
    ids=["one text", "messages", "one wide character", "NULs"],
)
def test_a_line_of_200_mb_is_set_aside_and_takes_little_memory(tmp_path: Path, begin: str, unit: str) -> None:
    block = unit.encode() * (2**20 // len(unit.encode()))
    with (tmp_path / "chats.jsonl").open("wb") as stream:
        stream.write(line(0) + b"\n" + begin.encode())
        for _ in range(200):
            stream.write(block)
        stream.write(b"\n" + line(1) + b"\n")
    ran, peak = run_apart("chats.jsonl")
    assert (ran.facts["read"], ran.facts["kept"], ran.sources("quarantined")) == (3, 2, ["chats.jsonl:2"]), ran.said
    assert "longer than" in ran.places["quarantined"][0]["reason"]
    assert peak < 400


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".json", ".csv", ".jsonl.gz", ".jsonl.zst"])
def test_a_packed_record_of_200_mb_is_set_aside_and_takes_little_memory(tmp_path: Path, ending: str) -> None:
    if ending == ".csv":
        data = b"prompt,response\nhow,well\n" + b"x" * (200 * 2**20) + b",well\nhow,good\n"
    else:
        rows = [line(0), b'{"messages":["' + b'x","' * (50 * 2**20) + b'"]}', line(1)]
        data = b"[" + b",".join(rows) + b"]" if ending == ".json" else b"\n".join(rows)
    path = tmp_path / f"chats{ending}"
    path.write_bytes(PACK[path.suffix if path.suffix in PACK else ""](data))
    del data
    ran, peak = run_apart(path, "--min-turns", "2")
    assert (ran.facts["read"], ran.facts["kept"], ran.sources("quarantined")) == (3, 2, [f"chats{ending}:2"]), ran.said
    assert peak < 400


@pytest.mark.slow
def test_a_text_of_200_mb_in_an_array_is_an_error(tmp_path: Path) -> None:
    """Its end may be a quote that is missing: all that follows would be read as text."""
    (tmp_path / "chats.json").write_bytes(b"[" + line(0) + b',{"messages":"' + b"x" * (200 * 2**20) + b'"}]')
    ran, peak = run_apart("chats.json")
    assert (ran.code, "does not end" in ran.said) == (2, True)
    assert peak < 400


def test_a_record_of_a_million_turns_is_set_aside(tmp_path: Path) -> None:
    turns = b",".join([b'{"role":"user","content":"x"},{"role":"assistant","content":"y"}'] * 500_000)
    (tmp_path / "chats.jsonl").write_bytes(line(0) + b'\n{"messages":[' + turns + b"]}\n")
    ran = run("chats.jsonl")
    assert (ran.facts["kept"], ran.sources("quarantined")) == (1, ["chats.jsonl:2"]), ran.said
    assert "messages" in ran.places["quarantined"][0]["reason"]


def test_what_was_cut_off_is_not_taken_for_a_whole_line(tmp_path: Path) -> None:
    padded = line(0) + b" " * reading.MAX_LINE_BYTES
    (tmp_path / "chats.jsonl").write_bytes(padded + b"garbage\n" + line(1) + b"\n")
    ran = run("chats.jsonl")
    assert (ran.facts["kept"], ran.sources("quarantined")) == (1, ["chats.jsonl:1"]), ran.said


# Whole files


@pytest.mark.parametrize(
    "content",
    [b"", b"\n\n \t\r\n", MARK, MARK + b"\n", b"\r\r\r", b" "],
    ids=["empty", "blank", "mark", "mark, blank", "CR", "sp"],
)
@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".jsonl.gz", ".json.zst"])
def test_a_file_without_records_is_an_error_that_says_so(tmp_path: Path, ending: str, content: bytes) -> None:
    path = tmp_path / f"chats{ending}"
    path.write_bytes(PACK[path.suffix if path.suffix in PACK else ""](content))
    ran = run(path)
    assert ran.code == 2
    assert "0 read" in ran.said or "header" in ran.said
    assert not Path("out").exists()


@pytest.mark.parametrize("ending", [".jsonl.gz", ".json.zst", ".json", ".parquet", ".arrow", ".csv.gz", ".jsonl.zst"])
def test_a_file_that_was_cut_is_an_error_that_names_it(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"chats{ending}"
    table = pa.Table.from_pylist([chat(number) for number in range(50)])
    if ending == ".parquet":
        pq.write_table(table, path)
    elif ending == ".arrow":
        with pa.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table)
    else:
        array = b"[" + b",".join(line(number) for number in range(50)) + b"]"
        content = {".csv": b"prompt,response\n" + b"how,well\n" * 50, ".json": array}.get(
            Path(path.stem).suffix or ending, lines(50)
        )
        path.write_bytes(PACK[path.suffix if path.suffix in PACK else ""](content))
    whole = path.read_bytes()
    for size in (1, 5, len(whole) // 2, len(whole) - 9, len(whole) - 1):
        path.write_bytes(whole[:size])
        ran = run(path)
        assert ran.code == 2, (size, ran.said)
        assert "chats" in ran.said
        assert not Path("out").exists()


@pytest.mark.parametrize("damage", ["flipped", "zeroed", "garbage after"])
@pytest.mark.parametrize("ending", [".jsonl.gz", ".jsonl.zst", ".parquet"])
def test_a_damaged_file_is_an_error_or_adds_up(tmp_path: Path, ending: str, damage: str) -> None:
    path = tmp_path / f"chats{ending}"
    if ending == ".parquet":
        pq.write_table(pa.Table.from_pylist([chat(number) for number in range(50)]), path)
    else:
        path.write_bytes(PACK[path.suffix](lines(50)))
    whole = path.read_bytes()
    for place in range(4, len(whole) - 1, len(whole) // 7):
        middle = {"flipped": bytes([whole[place] ^ 0x55]), "zeroed": bytes(1), "garbage after": whole[place : place + 1]}[
            damage
        ]
        tail = b"\0garbage" if damage == "garbage after" else b""
        path.write_bytes(whole[:place] + middle + whole[place + 1 :] + tail)
        ran = run(path, "--force")
        assert ran.code in {0, 2}, ran.said


def test_utf_16_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    for codec in ("utf-16", "utf-16-be", "utf-32"):
        for ending in (".jsonl", ".json", ".csv", ".jsonl.gz"):
            path = tmp_path / f"chats{ending}"
            path.write_bytes(PACK[path.suffix if path.suffix in PACK else ""]("\ufeff{}".encode(codec)))
            ran = run(path)
            assert ran.code == 2
            assert "UTF-8" in ran.said


@pytest.mark.parametrize("processes", ["1", "2"])
def test_one_bad_file_among_good_ones_ends_the_run_and_is_named(tmp_path: Path, processes: str) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.jsonl").write_bytes(lines(20))
    (tmp_path / "raw" / "b.jsonl.gz").write_bytes(gzip.compress(lines(20, 20))[:-9])
    ran = run("raw", "--workers", processes)
    assert (ran.code, "b.jsonl.gz" in ran.said) == (2, True)
    assert not Path("out").exists()


# Files that are none


def test_what_is_not_there_or_never_ends_is_an_error_and_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "dangling.jsonl").symlink_to(tmp_path / "nothing.jsonl")
    (tmp_path / "loop.jsonl").symlink_to(tmp_path / "loop.jsonl")
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.jsonl").write_bytes(lines(3))
    os.mkfifo(tmp_path / "folder" / "pipe.jsonl")
    wrong = ["none.jsonl", "dangling.jsonl", "loop.jsonl", "none/*.jsonl", "**.jsonl", "[", "a\nb.jsonl", "x" * 5000]
    wrong += ["pipe.jsonl", "*pe.jsonl", "folder", "/dev/zero", "/dev/null", "~nobody-of-this-name/a.jsonl", "hub:../x", " "]
    for name in wrong:
        ran, _ = run_apart(name, seconds=20) if "pipe" in name or "/dev" in name else (run(name), 0)
        assert ran.code in {2, 3}, name
        assert not Path("out").exists()


def test_a_link_to_nothing_in_a_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.jsonl").write_bytes(lines(3))
    (tmp_path / "raw" / "b.jsonl").symlink_to(tmp_path / "gone.jsonl")
    ran = run("raw")
    assert (ran.code, "b.jsonl" in ran.said) == (2, True)
    (tmp_path / "gone.jsonl").write_bytes(lines(3, 3))
    assert run("raw").facts["kept"] == 6


@pytest.mark.skipif(ROOT, reason="root may read everything")
def test_what_may_not_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "raw" / "closed").mkdir(parents=True)
    for name in ("a.jsonl", "closed/b.jsonl"):
        (tmp_path / "raw" / name).write_bytes(lines(3))
    for name in ("raw/closed", "raw/a.jsonl", "raw"):
        (tmp_path / name).chmod(0)
        result = CliRunner().invoke(app, ["clean", "--input", "raw", "--output", "out"])
        (tmp_path / name).chmod(0o700)
        assert result.exit_code in {2, 3}
        assert "ermission denied" in result.stderr


# Names


NAMES = [
    "a b.jsonl",
    "line\nfeed.jsonl",
    "100%d.jsonl",
    "%b%%(x)s.jsonl",
    "数据“集”.jsonl",
    "quo\"te'.jsonl",
    "back\\slash.jsonl",
    "[x]*?.jsonl",
    "tab\tand\x1b[31m.jsonl",
    "colon:7.jsonl",
    "line\u2028separator.jsonl",
    "{0}.jsonl",
    "-dash.jsonl",
    "😀.jsonl",
    "$(touch x).jsonl",
    "<b>.jsonl",
]


@pytest.mark.parametrize("every", [1, 1000], ids=["measured", "not measured"])
def test_any_name_of_a_file_comes_through_to_the_letter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int) -> None:
    spec = clean._spec
    monkeypatch.setattr(clean, "_spec", lambda *given: replace(spec(*given), every=every))
    (tmp_path / "raw").mkdir()
    for number, name in enumerate(NAMES):
        (tmp_path / "raw" / name).write_bytes(
            line(3 * number) + b"\n" + line(3 * number + 1) + b"\n?\n" + line(1, turns=1) + b"\n"
        )
    ran = run("raw")
    assert ran.code == 0, ran.said
    assert sorted(ran.sources(*SIDES)) == sorted(f"{name}:{number}" for name in NAMES for number in (1, 2))
    assert sorted(ran.sources("quarantined")) == sorted(f"{name}:3" for name in NAMES)
    for name in NAMES:
        told = CliRunner().invoke(app, ["clean", "--explain", f"{name}:1", "--output", "out", "--input", "raw", "--json"])
        assert told.exit_code == 0, told.stderr
        assert "kept" in told.stdout


def test_a_name_with_the_signs_of_a_pattern_is_a_name_if_it_is_there(tmp_path: Path) -> None:
    (tmp_path / "chat[1].jsonl").write_bytes(lines(3))
    (tmp_path / "chat1.jsonl").write_bytes(lines(5, 3))
    assert run("chat[1].jsonl").facts["kept"] == 3
    (tmp_path / "chat[1].jsonl").unlink()
    assert run("chat[1].jsonl", "--force").facts["kept"] == 5


def test_a_name_that_is_not_utf_8_is_an_error_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    try:
        with open(os.fsencode(tmp_path / "raw") + b"/\xff.jsonl", "wb") as stream:
            stream.write(lines(3))
    except OSError:
        pytest.skip("this file system takes no such name")
    for source in ("raw", "raw/*.jsonl"):
        ran = run(source)
        assert (ran.code, "name is not UTF-8" in ran.said) == (2, True)


# Files that change


def _append(path: Path) -> None:
    with path.open("ab") as stream:
        stream.write(line(900) + b"\n")


def _rewrite(path: Path) -> None:
    data = path.read_bytes()
    os.utime(path, ns=(0, 0))
    path.write_bytes(data)


CHANGES: dict[str, Callable[[Path], None]] = {
    "grows": _append,
    "shrinks": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empties": lambda path: os.truncate(path, 0),
    "vanishes": lambda path: path.unlink(),
    "is written anew": _rewrite,
    "is replaced": lambda path: shutil.copy2(path, path.with_suffix(".new")) and path.with_suffix(".new").replace(path),
}


@pytest.mark.parametrize("processes", ["1", "2"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_while_it_is_read_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, processes: str
) -> None:
    source, real = tmp_path / "chats.jsonl", workers.batches
    source.write_bytes(lines(200))
    (tmp_path / "out").mkdir()  # an empty folder may be written to

    def meanwhile(*given: Any, **options: Any) -> Iterator[workers.Sifted]:
        for number, batch in enumerate(real(*given, **options)):
            if number == 1:
                CHANGES[change](source)
            yield batch

    monkeypatch.setattr(workers, "batches", meanwhile)
    monkeypatch.setattr(workers, "PIECE_BYTES", 4000)
    result = CliRunner().invoke(app, ["clean", "--input", "chats.jsonl", "--output", "out", "--workers", processes])
    assert result.exit_code == 2, result.stderr
    assert "chats.jsonl" in result.stderr
    assert "has a bug" not in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("ending", [".json", ".csv", ".jsonl.gz", ".parquet"])
def test_a_packed_file_that_changes_while_it_is_unpacked_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, change: str
) -> None:
    source, real = tmp_path / f"chats{ending}", unpack.snapshot
    table = b"prompt,response\n" + b"how,well\n" * 50
    if ending == ".parquet":
        pq.write_table(pa.Table.from_pylist([chat(number) for number in range(50)]), source)
    else:
        array = b"[" + b",".join(line(number) for number in range(50)) + b"]"
        source.write_bytes({".json": array, ".csv": table}.get(ending) or gzip.compress(lines(50)))

    def meanwhile(path: Path) -> reading.Snapshot:
        found = real(path)
        CHANGES[change](path)
        return found

    monkeypatch.setattr(unpack, "snapshot", meanwhile)
    result = CliRunner().invoke(app, ["clean", "--input", source.name, "--output", "out", "--min-turns", "2"])
    assert result.exit_code == 2, result.stderr
    assert source.name in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("change", ["grows", "vanishes", "is replaced"])
def test_a_saved_dataset_that_changes_while_it_is_unpacked_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    folder, real = tmp_path / "saved", unpack.snapshot
    folder.mkdir()
    (folder / "dataset_info.json").write_text("{}")
    (folder / "state.json").write_text('{"_data_files": [{"filename": "data.arrow"}]}')
    table = pa.Table.from_pylist([chat(number) for number in range(50)])
    with pa.ipc.new_stream(folder / "data.arrow", table.schema) as writer:
        writer.write_table(table)
    assert run("saved").facts["kept"] == 50

    def meanwhile(path: Path) -> reading.Snapshot:
        found = real(path)
        if path.name == "data.arrow":
            CHANGES[change](path)
        return found

    monkeypatch.setattr(unpack, "snapshot", meanwhile)
    result = CliRunner().invoke(app, ["clean", "--input", "saved", "--output", "new"])
    assert (result.exit_code, "data.arrow" in result.stderr) == (2, True)


@pytest.mark.parametrize("function", ["is_plain", "to_lines"])
def test_a_file_that_vanishes_before_it_is_read_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    source, real = tmp_path / "chats.json", getattr(unpack, function)
    source.write_bytes(b"[" + line(0) + b"]")
    monkeypatch.setattr(unpack, function, lambda path, *more: (path.unlink(), real(path, *more))[1])
    result = CliRunner().invoke(app, ["clean", "--input", "chats.json", "--output", "out"])
    assert (result.exit_code, "chats.json" in result.stderr) == (2, True)


# The machine


@contextmanager
def _no_file_over(size: int) -> Iterator[None]:
    """Writing past `size` bytes of any file fails as on a full disk (EFBIG: Python ignores SIGXFSZ)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv.gz"])
def test_a_file_that_cannot_be_written_whole_is_an_error_and_keeps_the_last_output(tmp_path: Path, ending: str) -> None:
    content = {".json": b"[" + b",".join([*map(line, range(90)), b"1"]) + b"]", ".jsonl": lines(90) + b"?\n" + line(1, turns=1)}
    path = tmp_path / f"chats{ending}"
    path.write_bytes(content.get(ending) or gzip.compress(b"prompt,response\n" + b"how,well\n" * 200))
    assert run(path.name, "--min-turns", "2").code == 0
    good = _prints(tmp_path / "out")
    sizes = {one.stat().st_size for one in (tmp_path / "out").iterdir()} - {0}
    for size in sorted(sizes | {1}):
        with _no_file_over(size - 1):
            ran = run(path.name, "--min-turns", "2", "--force")
        assert ran.code == 3, (size, ran.said)
        assert "File too large" in ran.said
        assert _prints(tmp_path / "out") == good


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if not ROOT or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("only root may mount a small disk")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.parametrize("processes", ["1", "2"])
@pytest.mark.parametrize("name", ["chats.jsonl", "chats.json", "some.jsonl"])
def test_a_full_disk_is_an_error(tmp_path: Path, small_disk: Path, name: str, processes: str) -> None:
    path = tmp_path / name
    content = {"chats.jsonl": lines(2000), "chats.json": b"[" + lines(2000).replace(b"\n", b",")[:-1] + b"]"}
    path.write_bytes(content.get(name) or lines(500))  # the last: sifted, but no room for the sides
    result = CliRunner().invoke(app, ["clean", "--input", name, "--output", "disk/out", "--workers", processes])
    assert result.exit_code == 3, result.stderr
    assert "No space left on device" in result.stderr
    assert not (small_disk / "out").exists()


def test_a_killed_worker_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "chats.jsonl").write_bytes(lines(200))
    (tmp_path / "kill.py").write_text(
        "import os, signal\nfrom multiprocessing import parent_process\n\n\n"
        "def judge(record):\n    if parent_process():\n        os.kill(os.getpid(), signal.SIGKILL)\n    return record\n"
    )
    ran = run("chats.jsonl", "--workers", "2", "--allow-code", "--set", "clean.custom=[kill.py]")
    assert (ran.code, "worker process was killed" in ran.said) == (3, True)
    assert not Path("out").exists()


def test_a_failure_keeps_the_last_good_output(tmp_path: Path) -> None:
    (tmp_path / "chats.jsonl").write_bytes(lines(30))
    assert run("chats.jsonl").code == 0
    good = _prints(tmp_path / "out")
    for content in (b"", b"?\n" * 30, lines(5)[:-1] + b"\xff\n" * 50):
        (tmp_path / "chats.jsonl").write_bytes(content)
        result = CliRunner().invoke(app, ["clean", "--input", "chats.jsonl", "--output", "out", "--force"])
        assert result.exit_code == 2
        assert _prints(tmp_path / "out") == good


# Properties


PIECES = st.one_of(
    st.integers(0, 30).map(line),
    st.integers(0, 30).map(lambda number: line(number, turns=number % 5)),
    st.sampled_from([bad for bad, _ in BAD_LINES.values() if len(bad) < 10_000]),
    st.sampled_from(list(ODD_LINES.values())),
    st.sampled_from([b"", b" ", b"\r", b"\xff", b"\0", MARK, b"\xff\xfe", b"{", b'"', b"\\u0000", b"null"]),
    st.binary(max_size=20),
)
FILES = st.one_of(
    st.binary(max_size=200),
    st.builds(bytes.join, st.sampled_from([b"\n", b"\r\n", b"", b"\n\n"]), st.lists(PIECES, max_size=12)),
)


def _records(data: bytes) -> int:
    """How many there are: what lines are is settled by their line feeds alone."""
    return sum(bool(one.strip()) for one in data.removeprefix(MARK).split(b"\n"))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=FILES, piece=st.sampled_from([7, 300, 2**20]))
def test_no_bytes_are_a_bug_and_no_record_is_lost(monkeypatch: pytest.MonkeyPatch, data: bytes, piece: int) -> None:
    with tempfile.TemporaryDirectory() as folder, monkeypatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(workers, "PIECE_BYTES", piece)
        Path("chats.jsonl").write_bytes(data)
        ran = run("chats.jsonl", "--min-turns", "1")
        if ran.code == 0:
            assert ran.facts["read"] == _records(data)
        else:
            assert ran.code == 2
            assert f" {_records(data)} read" in ran.said or "UTF-16" in ran.said
            assert not Path("out").exists()


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None)
@given(data=FILES.filter(lambda data: b"\n" in data), other=FILES, near=st.sampled_from([None, 0.8]))
def test_two_workers_write_the_bytes_that_one_writes(data: bytes, other: bytes, near: float | None) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "PIECE_BYTES", 400)
        root = Path(folder)
        (root / "a.jsonl").write_bytes(data.removeprefix(b"\xff\xfe") + b"\n" + lines(4))
        (root / "b.jsonl").write_bytes(other.removeprefix(b"\xff\xfe"))
        found = []
        for count in (1, 2):
            out = root / f"out{count}"
            out.mkdir()
            inputs = {f"source.{n}": foreign(root / name, Kind.SOURCE) for n, name in enumerate(("a.jsonl", "b.jsonl"))}
            try:
                facts = clean.run(clean.Config(max_bad=1, min_turns=2, workers=count, dedup={"near": near}), inputs, out)
            except LlmkitError as error:
                found.append((error.what, error.where))
            else:
                report = json.loads((out / "report.json").read_bytes())
                found.append((facts, [(out / f"{place}.jsonl").read_bytes() for place in PLACES], report))
        assert found[0] == found[1]

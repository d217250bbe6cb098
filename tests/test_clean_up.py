"""`llmkit clean-up` deletes what it listed and nothing else, and what it lists no plan needs."""

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from llmkit import artifact
from llmkit.artifact import Kind, Manifest
from llmkit.cli import app
from llmkit.commands import leftovers
from tests.chains import publish_all, verdicts, write_inputs, write_recipe

LONG_AGO = 1_600_000_000
STEPS = ["clean", "finetune", "merge", "quantize-int8", "quantize-nf4", "export", "eval"]
OTHER = "runs/mine/.staging/{}-0123456789abcdef"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "tmp").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    write_inputs(tmp_path)
    return tmp_path


@pytest.fixture
def recipe(place: Path) -> Path:
    path = write_recipe(place / "r.yaml")
    publish_all(path, place / "runs")
    return path


def clean_up(*arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["clean-up", "--json", *arguments])
    assert result.exit_code == 0, result.output
    told: dict[str, Any] = json.loads(result.stdout)
    return told


def listed(*arguments: str) -> list[str]:
    return [item["path"] for item in clean_up(*arguments)["items"]]


def write(*places: str) -> None:
    for place in map(Path, places):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(b"x" * 10_000)


def age(root: Path) -> None:
    for path in (root, *root.rglob("*")):
        os.utime(path, (LONG_AGO, LONG_AGO), follow_symlinks=False)


def cached(part: str, name: str, fingerprint: str, *, step: str = "") -> Path:
    folder = Path("cache/llmkit") / part / name
    staging = Path("made")
    write("made/weights")
    artifact.publish(staging, folder, Manifest(Kind.MODEL, step or part, fingerprint, {"origin": name}, {}))
    age(folder)
    return folder


def test_a_finished_run_leaves_nothing_to_clean_up(recipe: Path) -> None:
    assert listed() == []
    assert "nothing to clean up" in CliRunner().invoke(app, ["clean-up"]).stdout


def test_nothing_is_deleted_without_yes_and_all_that_is_listed_with_it(recipe: Path) -> None:
    write(OTHER.format("merge") + "/half", "runs/mine/.merge.old/weights")
    before = sorted(Path("runs").rglob("*"))
    result = CliRunner().invoke(app, ["clean-up"])
    assert "nothing is deleted without --yes" in result.stdout
    assert sorted(Path("runs").rglob("*")) == before
    assert listed("--yes") == [OTHER.format("merge"), "runs/mine/.merge.old"]
    assert not Path(OTHER.format("merge")).exists()
    assert not Path("runs/mine/.merge.old").exists()
    assert listed() == []


def test_training_that_the_next_run_goes_on_from_is_kept_and_one_for_other_settings_is_not(place: Path) -> None:
    path = write_recipe(place / "r.yaml")
    planned = publish_all(path, place / "runs", but=["finetune"])
    (wanted,) = (one for one in planned if one.node.name == "finetune")
    going = f"runs/mine/.staging/finetune-{wanted.fingerprint[:16]}"
    write(f"{going}/checkpoints/checkpoint-20/model", OTHER.format("finetune") + "/checkpoints/checkpoint-20/model")
    assert listed() == [], "a run with other options may go on from it"
    age(Path("runs"))
    told = clean_up("--yes")
    assert [item["path"] for item in told["items"]] == [OTHER.format("finetune")]
    assert [one["path"] for one in told["kept"]] == [going]
    assert Path(going).exists()


def test_an_artifact_that_the_recipe_no_longer_makes_can_go_once_no_report_rests_on_it(recipe: Path, place: Path) -> None:
    write_recipe(recipe, quantize=[{"bits": 4}])
    assert listed() == [], "the report still measured it"
    publish_all(recipe, place / "runs")
    assert listed() == [], "made a moment ago: an option may have asked for it"
    age(Path("runs"))
    assert listed() == ["runs/mine/quantize-int8"]


@pytest.mark.parametrize(
    "reason",
    [
        "other recipe",
        "other ending",
        "broken recipe",
        "no recipe",
        "stranger's file",
        "stranger's folder",
        "link",
        "a base not here",
    ],
)
def test_it_stays_where_that_is_not_sure(reason: str, recipe: Path, place: Path) -> None:
    write_recipe(recipe, quantize=[{"bits": 4}])
    publish_all(recipe, place / "runs")
    folder = Path("runs/mine/quantize-int8")
    if reason == "other recipe":
        write_recipe(place / "s.yaml", name="other", model="./runs/mine/quantize-int8")
    elif reason == "other ending":
        write_recipe(place / "s.yml", name="other", model="./runs/mine/quantize-int8")
    elif reason == "broken recipe":
        (place / "s.yaml").write_text("name: mine\nquantise: [{bits: 8}]\n")
    elif reason == "no recipe":
        recipe.unlink()
    elif reason == "stranger's file":
        write(f"{folder}/notes.txt")
    elif reason == "stranger's folder":
        write(f"{folder}/checkpoints/mine", "runs/mine/merge/checkpoints/mine")
    elif reason == "a base not here":
        shutil.rmtree("model")
    else:
        folder.rename("elsewhere")
        folder.symlink_to(place / "elsewhere")
    age(place)
    assert listed() == []


def test_a_recipe_beside_the_workspace_counts_from_wherever_it_is_asked(
    recipe: Path, place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    whole = {"model": str(place / "model"), "data": {"sources": [{"path": str(place / "chats.jsonl")}]}}
    write_recipe(recipe, quantize=[{"bits": 4}], **whole)
    publish_all(recipe, place / "runs")
    age(place)
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    asked = ("--workspace", str(place / "runs"))
    assert listed(*asked) == [str(place / "runs/mine/quantize-int8")]
    write_recipe(place / "s.yaml", name="other", model="./runs/mine/quantize-int8")
    assert listed(*asked) == []


def test_a_run_that_is_at_work_is_left_alone(recipe: Path) -> None:
    write(OTHER.format("merge") + "/half")
    with Path("runs/mine/.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        told = clean_up("--yes")
    assert told["items"] == []
    assert [one["path"] for one in told["kept"]] == ["runs/mine"]
    assert listed() == [OTHER.format("merge")]


def test_a_folder_that_no_run_has_locked_is_not_ours() -> None:
    write("runs/notes/.staging/merge-0123456789abcdef/half", "runs/notes/.merge.old/x", "runs/notes/merge/manifest.json")
    assert listed() == []


def test_what_of_the_cache_was_long_not_used_can_go(recipe: Path, place: Path) -> None:
    from llmkit import origin

    current = origin.model("demo:smollm2-135m").fingerprint
    now = cached("demo", f"smollm2-135m-{current[:12]}", current)
    old = cached("demo", "smollm2-135m-0123456789ab", "0" * 64)
    unpacked = cached("gguf", "model-0123456789ab", "1" * 64)
    strange = cached("gguf", "strange-0123456789ab", "2" * 64, step="merge")
    write("cache/llmkit/hashes.json", f"cache/llmkit/answers/{'a' * 32}.jsonl", f"cache/llmkit/answers/{'b' * 32}.jsonl")
    write("cache/llmkit/answers/mine.jsonl")
    age(place / "cache/llmkit/answers")
    os.utime(f"cache/llmkit/answers/{'b' * 32}.jsonl")
    assert set(listed()) == {str(place / one) for one in (old, unpacked, f"cache/llmkit/answers/{'a' * 32}.jsonl")}
    os.utime(unpacked / "weights")
    assert str(place / unpacked) not in listed()
    assert now.exists()
    assert strange.exists()


def test_a_cached_base_that_an_artifact_was_made_of_stays(recipe: Path, place: Path) -> None:
    base = json.loads(Path("runs/mine/merge/manifest.json").read_text())["inputs"]["base"]
    cached("gguf", "base-0123456789ab", base)
    assert listed() == []


def test_an_unpacking_goes_only_once_its_process_is_gone_and_it_lies_still(place: Path) -> None:
    dead = next(number for number in range(99_999, 10, -1) if not Path(f"/proc/{number}").exists() and not alive(number))
    for process in (dead, os.getpid()):
        write(f"cache/llmkit/gguf/.building-x-0123456789ab-{process}/half")
    assert listed() == []
    age(place / "cache")
    assert listed() == [str(place / f"cache/llmkit/gguf/.building-x-0123456789ab-{dead}")]


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def test_only_old_tracebacks_of_our_own_are_logs(place: Path) -> None:
    for name in ("llmkit-abcd1234.log", "llmkit-abcd1235.log", "llmkit-notours.log", "llmkit-abcd1236.log"):
        (place / "tmp" / name).write_text("Traceback (most recent call last):\n")
    (place / "tmp/llmkit-abcd1235.log").write_text("the log of someone's server")
    age(place / "tmp")
    os.utime(place / "tmp/llmkit-abcd1236.log")
    (place / "tmp/llmkit-abcd1237.log").symlink_to(place / "chats.jsonl")
    assert listed("--yes") == [str(place / "tmp/llmkit-abcd1234.log")]
    assert len(list((place / "tmp").iterdir())) == 4


def test_what_cannot_be_deleted_is_exit_3_and_the_rest_goes(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(OTHER.format("merge") + "/half", OTHER.format("clean") + "/half")
    whole = shutil.rmtree

    def refuse(path: Path) -> None:
        if path.name.startswith("merge"):
            raise PermissionError(13, "Permission denied", str(path))
        whole(path)

    monkeypatch.setattr(shutil, "rmtree", refuse)
    result = CliRunner().invoke(app, ["clean-up", "--yes"])
    assert (result.exit_code, "LK0980" in result.stderr) == (3, True)
    assert not Path(OTHER.format("clean")).exists()


def used(root: Path) -> int:
    """Bytes on disk, each file once, of whatever name."""
    stats = {(one.st_dev, one.st_ino): one.st_blocks * 512 for path in root.rglob("*") for one in [path.lstat()]}
    return sum(stats.values())


MESS = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def fresh_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    def make() -> Path:
        folder = tmp_path_factory.mktemp("mess")
        (folder / "tmp").mkdir()
        monkeypatch.chdir(folder)
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        monkeypatch.setattr(tempfile, "tempdir", str(folder / "tmp"))
        write_inputs(folder)
        return folder

    return make


@given(
    missing=st.sets(st.sampled_from(STEPS)),
    staged=st.sets(st.sampled_from(STEPS)),
    retired=st.sets(st.sampled_from(STEPS)),
    bits=st.sets(st.sampled_from([4, 8])),
    again=st.booleans(),
    linked=st.sampled_from(["", "inside", "outside"]),
    yes=st.booleans(),
)
@MESS
def test_it_deletes_exactly_what_it_listed_and_no_verdict_changes(
    missing: set[str],
    staged: set[str],
    retired: set[str],
    bits: set[int],
    again: bool,
    linked: str,
    yes: bool,
    fresh_folder: Any,
) -> None:
    folder = fresh_folder()
    path = write_recipe(folder / "r.yaml")
    publish_all(path, folder / "runs", but=list(missing))
    write_recipe(path, quantize=[{"bits": one} for one in sorted(bits)])
    if again:
        publish_all(path, folder / "runs")
    write(*(OTHER.format(step) + "/half" for step in staged), *(f"runs/mine/.{step}.old/weights" for step in retired))
    for step in staged if linked else ():
        other = Path(OTHER.format(step)) if linked == "inside" else folder
        os.link(OTHER.format(step) + "/half", other / f"second-{step}")
    age(folder / "runs")
    last_good = [Path(f"runs/mine/.{step}.old") for step in retired if not Path("runs/mine", step).exists()]
    before, plan, size = set(folder.rglob("*")), verdicts(path, folder / "runs"), used(folder)
    told = clean_up(*(["--yes"] if yes else []))
    after = set(folder.rglob("*"))
    roots = [folder / item["path"] for item in told["items"]]
    gone = {one for one in before if any(one == root or root in one.parents for root in roots)}
    assert before - after == (gone if yes else set())
    assert after <= before
    assert verdicts(path, folder / "runs") == plan
    assert size - used(folder) == (told["bytes"] if yes else 0)
    assert {Path(OTHER.format(step)) for step in staged} <= {Path(item["path"]) for item in told["items"]}
    assert all(path.exists() for path in last_good)


def test_sizes_count_a_file_of_two_names_once_and_not_where_one_stays(place: Path) -> None:
    write("a/x", "b/y")
    os.link("a/x", "b/x")
    os.link("b/y", "c")
    a, b = (leftovers.Leftover(Path(name), "") for name in "ab")
    both, alone = leftovers.freed([a, b]), leftovers.freed([a])
    blocks = Path("a/x").lstat().st_blocks * 512
    assert both[0] - alone[0] == blocks
    assert both[1] == Path("b").lstat().st_blocks * 512

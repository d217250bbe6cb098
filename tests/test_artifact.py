"""Artifacts are whole or absent, and say when they were touched."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit import artifact
from llmkit.artifact import Kind, Manifest
from llmkit.errors import DataError, UsageError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


def stage(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / f"{name}.txt").write_text(text)
    return folder


def manifest(fingerprint: str = "f" * 64) -> Manifest:
    return Manifest(Kind.DATASET, "clean", fingerprint, {"a": 1}, {"source.0": "x"}, facts={"n": 3})


@given(st.dictionaries(st.text(max_size=4), JSON, max_size=5))
def test_a_digest_does_not_depend_on_the_order_of_keys(value: dict[str, object]) -> None:
    assert artifact.digest(value) == artifact.digest(dict(reversed(list(value.items()))))


def test_what_is_published_can_be_loaded_and_verifies(tmp_path: Path) -> None:
    made = artifact.publish(stage(tmp_path / "s", a="one", b="two"), tmp_path / "out", manifest())
    found = artifact.load(tmp_path / "out")
    assert found is not None
    assert found.manifest == made.manifest
    assert found.size_bytes == 6
    assert artifact.verify(found) == []
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda f: (f / "a.txt").write_text("uno"), "changed: a.txt"),
        (lambda f: (f / "a.txt").unlink(), "missing: a.txt"),
        (lambda f: (f / "c.txt").write_text("new"), "not in the manifest: c.txt"),
    ],
)
def test_verify_names_every_file_that_is_not_as_recorded(tmp_path: Path, damage, expected: str) -> None:
    made = artifact.publish(stage(tmp_path / "s", a="one", b="two"), tmp_path / "out", manifest())
    damage(made.path)
    assert artifact.verify(made) == [expected]


def test_publishing_replaces_the_old_artifact(tmp_path: Path) -> None:
    artifact.publish(stage(tmp_path / "s", a="one"), tmp_path / "out", manifest("1"))
    artifact.publish(stage(tmp_path / "s", b="two"), tmp_path / "out", manifest("2"))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["b.txt", "manifest.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_a_kill_between_the_two_renames_leaves_the_old_artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    final = tmp_path / "out"
    artifact.publish(stage(tmp_path / "s", a="one"), final, manifest("1"))
    real, calls = Path.replace, []

    def dies_at_the_last_rename(self: Path, target: Path) -> Path:
        if Path(target) == final:
            calls.append(target)
            raise KeyboardInterrupt
        return real(self, target)

    monkeypatch.setattr(Path, "replace", dies_at_the_last_rename)
    with pytest.raises(KeyboardInterrupt):
        artifact.publish(stage(tmp_path / "s2", b="two"), final, manifest("2"))
    monkeypatch.undo()
    assert calls
    assert artifact.load(final) is None
    artifact.recover(final)
    found = artifact.load(final)
    assert found is not None
    assert found.fingerprint == "1"


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"schema": 99}', '{"schema": 1, "kind": "nonsense"}'])
def test_a_manifest_that_is_not_ours_is_no_artifact(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    assert artifact.load(tmp_path) is None
    with pytest.raises(UsageError, match="no dataset artifact"):
        artifact.expect(tmp_path, Kind.DATASET)


@pytest.mark.parametrize(
    "change",
    [
        *({name: 5} for name in ("config", "inputs", "files", "facts", "versions", "step", "fingerprint")),
        {"inputs": {"base": ["x"]}},
        {"files": {"weights": {"sha256": "ab"}}},
        {"files": {"weights": {"sha256": "ab", "size": True}}},
        {"facts": {"seconds": float("nan")}},
        {"config": {"lr": float("inf")}},
    ],
)
def test_a_manifest_whose_parts_are_something_else_is_none(tmp_path: Path, change: dict[str, object]) -> None:
    artifact.publish(stage(tmp_path / "s", b="x"), tmp_path / "a", manifest())
    place = tmp_path / "a" / "manifest.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), **change}))
    assert artifact.load(tmp_path / "a") is None


def test_a_manifest_without_end_is_none(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("[" * 100_000)
    assert artifact.load(tmp_path) is None


def test_a_foreign_folder_is_fingerprinted_by_content(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    folder = stage(tmp_path / "model", a="one")
    first = artifact.foreign(folder, Kind.MODEL, cache_folder=cache)
    assert artifact.foreign(folder, Kind.MODEL, cache_folder=cache).fingerprint == first.fingerprint
    (folder / "a.txt").write_text("two")
    os.utime(folder / "a.txt", ns=(1, 1))
    assert artifact.foreign(folder, Kind.MODEL, cache_folder=cache).fingerprint != first.fingerprint


def test_a_missing_foreign_folder_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such"):
        artifact.foreign(tmp_path / "nowhere", Kind.MODEL)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty"):
        artifact.foreign(tmp_path / "empty", Kind.MODEL)


def test_a_json_file_is_replaced_at_once(tmp_path: Path) -> None:
    artifact.write_json(tmp_path / "x.json", {"a": "中"})
    with pytest.raises(ValueError, match="Out of range"):
        artifact.write_json(tmp_path / "x.json", {"a": float("nan")})
    assert json.loads((tmp_path / "x.json").read_text("utf-8")) == {"a": "中"}

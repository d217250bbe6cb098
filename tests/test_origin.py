"""Origins: what a recipe's `model:` and `path:` may name, and what is known before anything is fetched."""

import json
from pathlib import Path

import pytest

from llmkit import origin
from llmkit.errors import DataError, MachineError, UsageError


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_demo_fingerprints_are_known_before_anything_is_unpacked() -> None:
    assert origin.model("demo:gemma-3-270m").fingerprint == origin.model("demo:gemma-3-270m").fingerprint
    assert origin.model("demo:gemma-3-270m").ready is None
    zh, both = origin.source("demo:chatterbot", languages=["zh"]), origin.source("demo:chatterbot")
    assert zh.fingerprint != both.fingerprint
    assert origin.source("demo:chatterbot", languages=["en", "zh"]).fingerprint == both.fingerprint


def test_the_demo_data_is_written_once_and_then_ready() -> None:
    made = origin.source("demo:chatterbot").fetch()
    again = origin.source("demo:chatterbot")
    assert again.ready is not None
    assert again.ready.fingerprint == made.fingerprint == again.fingerprint
    lines = [json.loads(line) for path in origin.files_of(made) for line in path.read_text("utf-8").splitlines()]
    assert len(lines) > 2000
    assert all(record["messages"] for record in lines)


@pytest.mark.parametrize(
    ("reference", "kind"),
    [
        ("demo:gpt-9", UsageError),
        ("plainname", UsageError),
        ("a/b/c", UsageError),
        ("./missing", DataError),
        ("modelscope:nothing", UsageError),
    ],
)
def test_a_model_that_cannot_be_is_refused_with_exit_2(reference: str, kind: type[Exception]) -> None:
    with pytest.raises(kind) as caught:
        origin.model(reference)
    assert caught.value.exit_code == 2  # type: ignore[attr-defined]


def test_a_folder_without_a_config_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    with pytest.raises(DataError, match=r"config.json is missing"):
        origin.model(str(tmp_path / "m"))


def test_a_hub_model_that_is_not_here_can_be_planned_and_fails_clearly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def unreachable(name: str, **options: object) -> str:
        raise OSError("cannot reach the hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    found = origin.model("google/gemma-2-9b-it")
    assert found.ready is None
    with pytest.raises(MachineError, match="cannot reach the hub") as caught:
        found.fetch()
    assert "HF_ENDPOINT" in caught.value.next


def test_a_hub_snapshot_on_this_disk_is_ready_and_keyed_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    hub = tmp_path / "hub" / "models--own--er"
    (hub / "refs").mkdir(parents=True)
    (hub / "refs" / "main").write_text("a" * 40)
    snapshot = hub / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (snapshot / "model.safetensors").write_bytes(b"weights")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    found = origin.model("own/er")
    assert found.ready is not None
    assert found.ready.path == snapshot
    (snapshot / "config.json").write_text('{"a": 1}')
    assert origin.model("own/er").fingerprint != found.fingerprint


def test_a_glob_takes_only_what_it_matches(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl", "c.txt"):
        (tmp_path / name).write_text("{}")
    found = origin.source(str(tmp_path / "*.jsonl")).fetch()
    assert [path.name for path in origin.files_of(found)] == ["a.jsonl", "b.jsonl"]
    with pytest.raises(DataError, match="no file matches"):
        origin.source(str(tmp_path / "*.csv"))


def test_languages_belong_to_the_demo_data(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{}")
    with pytest.raises(UsageError, match="languages"):
        origin.source(str(tmp_path / "a.jsonl"), languages=["zh"])
    with pytest.raises(UsageError, match="no language 'xx'"):
        origin.source("demo:chatterbot", languages=["xx"])

"""A plan says what is stale and why; a run does that and nothing more, and survives being killed."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict

from llmkit import artifact, pipeline
from llmkit.artifact import Artifact, Facts, Kind
from llmkit.errors import UsageError
from llmkit.origin import Origin
from llmkit.pipeline import Chain, Node


class Config(BaseModel):
    model_config = ConfigDict(frozen=True)
    rank: int = 16


class Counter:
    """A step that writes its config and counts how often it ran."""

    KIND = Kind.MODEL

    def __init__(self, verb: str, *, resumable: bool = False) -> None:
        self.VERB, self.REVISION, self.RESUMABLE = verb, 1, resumable
        self.runs = 0
        self.dies = False

    def run(self, config: Config, inputs: Mapping[str, Artifact], out: Path) -> Facts:
        self.runs += 1
        found = sorted(path.name for path in out.iterdir())
        (out / "half").write_text("half")
        if self.dies:
            raise KeyboardInterrupt
        (out / "half").unlink()
        (out / "weights").write_text(f"{config.rank} {sorted(one.fingerprint for one in inputs.values())}")
        return {"found": found}


@pytest.fixture
def steps() -> SimpleNamespace:
    return SimpleNamespace(a=Counter("a"), b=Counter("b", resumable=True), c=Counter("c"))


@pytest.fixture
def chain(steps: SimpleNamespace, tmp_path: Path) -> Chain:
    (tmp_path / "data").write_text("data")
    source = artifact.foreign(tmp_path / "data", Kind.SOURCE)
    return Chain(
        {"source": Origin("data", source.fingerprint, source, lambda: source)},
        (
            Node("a", steps.a, Config(), {"source": "source"}),
            Node("b", steps.b, Config(), {"model": "a"}),
            Node("c", steps.c, Config(), {"model": "a", "other": "b"}),
        ),
    )


def run(chain: Chain, folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> list[str]:
    monkeypatch.setattr(pipeline, "lay_out", lambda recipe, **_: chain)
    done = pipeline.execute(None, folder, **options)  # type: ignore[arg-type]
    return [one.planned.node.name for one in done if one.seconds]


def with_config(chain: Chain, name: str, config: Config) -> Chain:
    return replace(chain, nodes=tuple(replace(n, config=config) if n.name == name else n for n in chain.nodes))


def reasons(chain: Chain, folder: Path) -> dict[str, str]:
    return {one.node.name: one.reason for one in pipeline.plan(chain, folder)}


def test_a_second_run_runs_nothing(chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(chain, tmp_path / "r", monkeypatch) == ["a", "b", "c"]
    assert run(chain, tmp_path / "r", monkeypatch) == []


def test_a_changed_config_makes_its_step_and_all_after_it_stale(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(chain, tmp_path / "r", monkeypatch)
    changed = with_config(chain, "b", Config(rank=8))
    assert reasons(changed, tmp_path / "r") == {"a": "", "b": "rank 16 → 8", "c": "its other (b) changes"}
    assert run(changed, tmp_path / "r", monkeypatch) == ["b", "c"]


def test_a_changed_source_makes_everything_stale(chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(chain, tmp_path / "r", monkeypatch)
    moved = replace(chain, origins={"source": replace(chain.origins["source"], fingerprint="other")})
    found = reasons(moved, tmp_path / "r")
    assert found["a"] == "its source changed"
    assert found["c"] == "its model (a) changes; its other (b) changes"


def test_a_new_revision_of_a_step_makes_it_stale(
    chain: Chain, steps: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(chain, tmp_path / "r", monkeypatch)
    steps.c.REVISION = 2
    assert reasons(chain, tmp_path / "r") == {"a": "", "b": "", "c": "llmkit's own step changed"}


def test_a_missing_or_cut_file_makes_its_step_stale(chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(chain, tmp_path / "r", monkeypatch)
    (tmp_path / "r" / "b" / "weights").write_text("")
    assert reasons(chain, tmp_path / "r")["b"] == "weights is missing or damaged"


def test_a_target_brings_its_stale_inputs_and_no_more(chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(chain, tmp_path / "r", monkeypatch, targets=["b"]) == ["a", "b"]
    assert run(chain, tmp_path / "r", monkeypatch) == ["c"]


def test_force_runs_the_target_again(chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(chain, tmp_path / "r", monkeypatch)
    assert run(chain, tmp_path / "r", monkeypatch, targets=["b"], force=True) == ["b"]


@pytest.mark.parametrize(("name", "found"), [("b", ["half"]), ("c", [])])
def test_only_a_resumable_step_finds_what_its_killed_run_left(
    chain: Chain, steps: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, found: list[str]
) -> None:
    step = getattr(steps, name)
    step.dies = True
    with pytest.raises(KeyboardInterrupt):
        run(chain, tmp_path / "r", monkeypatch)
    assert artifact.load(tmp_path / "r" / name) is None
    step.dies = False
    run(chain, tmp_path / "r", monkeypatch)
    made = artifact.load(tmp_path / "r" / name)
    assert made is not None
    assert made.facts["found"] == found
    assert artifact.verify(made) == []
    assert not (tmp_path / "r" / ".staging").exists()


def test_an_interrupted_rebuild_leaves_the_last_good_artifact(
    chain: Chain, steps: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(chain, tmp_path / "r", monkeypatch)
    steps.b.dies = True
    with pytest.raises(KeyboardInterrupt):
        run(with_config(chain, "b", Config(rank=8)), tmp_path / "r", monkeypatch)
    assert reasons(chain, tmp_path / "r") == {"a": "", "b": "", "c": ""}


def test_every_check_runs_before_any_work(
    chain: Chain, steps: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise UsageError("no template", code="LK0315")

    last = replace(chain.nodes[-1], check=refuse)
    with pytest.raises(UsageError, match="no template"):
        run(replace(chain, nodes=(*chain.nodes[:-1], last)), tmp_path / "r", monkeypatch)
    assert steps.a.runs == 0


def test_two_runs_do_not_share_a_folder(
    chain: Chain, steps: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def again(config: Config, inputs: Mapping[str, Artifact], out: Path) -> Facts:
        with pytest.raises(UsageError, match="another llmkit"):
            pipeline.execute(None, tmp_path / "r")  # type: ignore[arg-type]
        return {}

    monkeypatch.setattr(steps.a, "run", again)
    assert "a" in run(chain, tmp_path / "r", monkeypatch)


def test_what_is_not_here_is_fetched_once_and_planned_anew(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = chain.origins["source"]
    fetched: list[str] = []

    def fetch() -> Artifact:
        fetched.append("x")
        assert ready.ready
        return ready.ready

    absent = replace(chain, origins={"source": Origin("hub", "unknown", None, fetch)})
    monkeypatch.setattr(pipeline, "lay_out", lambda recipe, **_: chain if fetched else absent)
    pipeline.execute(None, tmp_path / "r")  # type: ignore[arg-type]
    assert fetched == ["x"]
    assert reasons(chain, tmp_path / "r") == {"a": "", "b": "", "c": ""}

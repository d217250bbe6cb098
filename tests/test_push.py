"""`llmkit push`: what is sent is what was measured, tells nothing of this machine, and comes back byte for byte."""

import json
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from llmkit import artifact, hubs, origin, pushing
from llmkit.artifact import Artifact, Kind, Manifest
from llmkit.cli import app
from llmkit.commands import pushing as pushing_command
from llmkit.errors import DataError, FidelityError, LlmkitError, MachineError, UsageError
from llmkit.hubs import Parcel, Repo, huggingface
from llmkit.pushing import Known
from llmkit.report.hub_card import HubCard, Measured, render
from tests import hub_stub
from tests.hub_stub import TOKEN, Handler, Hub

WEIGHTS = os.urandom(200_000)
MODEL = {"config.json": b'{"model_type": "llama"}', "model.safetensors": WEIGHTS, "tokenizer.json": b"{}", "empty.txt": b""}


def make(folder: Path, kind: Kind, step: str, files: Mapping[str, bytes], **more: Any) -> Artifact:
    staging = folder.with_name(f".{folder.name}")
    for name, data in files.items():
        (staging / name).parent.mkdir(parents=True, exist_ok=True)
        (staging / name).write_bytes(data)
    given = {"config": {}, "inputs": {}, "facts": {}, "fingerprint": artifact.digest(step, folder.name), **more}
    return artifact.publish(staging, folder, Manifest(kind, step, **given))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Artifact]:
    """A run's artifacts, from base to report, in a home of their own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "runs" / "mine"
    base = make(
        tmp_path / "cache" / "llmkit" / "demo" / "gemma-3-270m-abc",
        Kind.MODEL,
        "demo",
        MODEL,
        config={"origin": "demo:gemma-3-270m"},
    )
    data = make(
        root / "clean",
        Kind.DATASET,
        "clean",
        {
            "train.jsonl": b'{"source":"a.jsonl:1","messages":[]}\n',
            "rejected.jsonl": b"a telephone number",
            "report.json": b"{}",
        },
        config={"sensitive": f"{tmp_path}/secret-project/words.txt", "languages": ["zh"]},
    )
    trained = make(
        root / "finetune",
        Kind.ADAPTER,
        "finetune",
        {"adapter_config.json": b"{}", "adapter_model.safetensors": WEIGHTS, "samples.jsonl": b"a customer's question"},
        inputs={"dataset": data.fingerprint, "base": base.fingerprint},
        facts={"objective": "orpo", "records": 1258, "train_loss": 1.23456789, "note": f"saw {tmp_path}/x"},
    )
    merged = make(root / "merge", Kind.MODEL, "merge", MODEL, inputs={"adapter": trained.fingerprint, "base": base.fingerprint})
    row = {"metrics": {"bleu": 12.5, "rougeL": 20.25}, "perplexity": 16.1, "n_samples": 100, "changed": False, "failed": 0}
    told = {
        "models": {"merged": {**row, "retention": 1.0}, "base": {**row, "metrics": {"bleu": 0.5}}},
        "lineage": [{"name": "merged", "fingerprint": merged.fingerprint}, {"name": "base", "fingerprint": base.fingerprint}],
        "breakdown": {"language": {"en": {}, "zh": {}, "<b>": {}}},
    }
    report = make(
        root / "eval", Kind.REPORT, "eval", {"report.json": json.dumps(told).encode()}, inputs={"merged": merged.fingerprint}
    )
    return {"base": base, "clean": data, "finetune": trained, "merge": merged, "eval": report}


@pytest.fixture
def hub(tmp_path: Path, run: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_stub.serving() as made:
        hub_stub.use(made, monkeypatch, str(tmp_path / "hub"), token=TOKEN)
        yield made


def llmkit(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, arguments)
    return result.exit_code, result.stdout, result.stderr


def front(text: str) -> dict[str, Any]:
    told = yaml.safe_load(text.split("---")[1])
    assert isinstance(told, dict)
    return told


def test_what_was_pushed_comes_back_byte_for_byte_and_verifies(hub: Hub, tmp_path: Path) -> None:
    code, out, err = llmkit("push", "runs/mine/merge", "me/mine", "--yes")
    assert code == 0, err
    assert out.strip() == f"pushed to {hub.address}/me/mine"
    there = hub.repositories["model", "me/mine"].files
    assert set(there) == {*MODEL, "README.md", "manifest.json", ".gitattributes"}
    pulled = origin.model("me/mine").fetch()
    assert {name: (pulled.path / name).read_bytes() for name in MODEL} == MODEL
    copy = tmp_path / "copy"
    copy.mkdir()
    for name, data in there.items():
        if name != ".gitattributes":
            (copy / name).write_bytes(data)
    got = artifact.load(copy)
    assert got is not None
    assert artifact.verify(got) == []
    assert got.fingerprint == json.loads((tmp_path / "runs/mine/merge/manifest.json").read_text())["fingerprint"]


def test_without_yes_nothing_is_sent_and_the_list_is_shown(hub: Hub) -> None:
    code, out, _ = llmkit("push", "runs/mine/finetune", "me/mine")
    assert code == 0
    assert hub.requests == []
    assert "adapter_model.safetensors" in out
    assert "stays here (quotes the data): samples.jsonl" in out
    assert "licence: gemma, that of the base, demo:gemma-3-270m" in out
    assert "add --yes" in out


def test_nothing_but_the_artifact_s_own_files_is_sent(hub: Hub) -> None:
    Path("runs/mine/merge/notes.txt").write_text("my passwords")
    _, out, _ = llmkit("push", "runs/mine/merge", "me/mine", "--yes", "--json")
    assert json.loads(out)["kept"] == {"notes.txt": "not in the manifest"}
    assert "notes.txt" not in hub.repositories["model", "me/mine"].files


def test_raw_dialogues_stay_here(hub: Hub) -> None:
    code, _, err = llmkit("push", "runs/mine/clean", "me/data", "--yes", "--private")
    assert code == 0, err
    there = hub.repositories["dataset", "me/data"]
    assert there.private
    assert set(there.files) == {"train.jsonl", "README.md", "manifest.json", ".gitattributes"}
    assert set(json.loads(there.files["manifest.json"])["files"]) == {"train.jsonl", "README.md"}
    card = front(there.files["README.md"].decode())
    assert card["configs"] == [{"config_name": "default", "data_files": [{"split": "train", "path": "train.jsonl"}]}]
    assert card["language"] == ["zh"]
    assert "base_model" not in card


def test_nothing_that_is_sent_names_a_folder_of_this_machine(hub: Hub, tmp_path: Path) -> None:
    for name in ("clean", "finetune", "merge"):
        assert llmkit("push", f"runs/mine/{name}", "me/mine", "--yes")[0] == 0
    sent = [data for repository in hub.repositories.values() for data in repository.files.values()]
    assert not any(str(tmp_path).encode() in data for data in sent)
    assert not any(b"secret-project" in data for data in sent)
    config = json.loads(hub.repositories["dataset", "me/mine"].files["manifest.json"])["config"]
    assert config["sensitive"] == "words.txt"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_file_that_names_a_folder_of_this_machine_is_refused(hub: Hub, tmp_path: Path, name: str) -> None:
    files = {**MODEL, name: b'{"_name_or_path": "%s/llama"}' % str(tmp_path).encode()}
    make(tmp_path / "runs/mine/other", Kind.MODEL, "merge", files)
    code, _, err = llmkit("push", "runs/mine/other", "me/mine", "--yes")
    assert code == 2
    assert "LK0363" in err
    assert name in err
    assert hub.requests == []


def test_dialogues_may_speak_of_folders_but_not_come_from_them(run: dict[str, Artifact], tmp_path: Path) -> None:
    said = b'{"source":"a.jsonl:1","messages":[{"role":"user","content":"what is in %s/?"}]}' % str(tmp_path).encode()
    spoken = make(tmp_path / "runs/mine/spoken", Kind.DATASET, "clean", {"train.jsonl": said})
    assert pushing.pack(spoken, "me/x", Known()).files
    came = b'{"source":"%s/a.jsonl:1","messages":[]}' % str(tmp_path).encode()
    with pytest.raises(DataError, match="names a folder of this machine"):
        pushing.pack(make(tmp_path / "runs/mine/came", Kind.DATASET, "clean", {"train.jsonl": came}), "me/x", Known())


def test_files_that_changed_since_are_not_pushed(hub: Hub) -> None:
    Path("runs/mine/merge/model.safetensors").write_bytes(b"other weights")
    code, _, err = llmkit("push", "runs/mine/merge", "me/mine", "--yes")
    assert code == 3
    assert "changed: model.safetensors" in err
    assert hub.requests == []


def test_a_report_is_refused_with_the_way_to_go(hub: Hub) -> None:
    code, _, err = llmkit("push", "runs/mine/eval", "me/mine", "--yes")
    assert code == 2
    assert "the card takes its numbers over" in err


@pytest.mark.parametrize("to", ["mine", "a/b/c", "github:me/mine", "me/mine@v1", "modelscope:mine", ""])
def test_what_is_no_repository_is_refused(hub: Hub, to: str) -> None:
    code, _, err = llmkit("push", "runs/mine/merge", to)
    assert code == 2
    assert "this names no repository" in err


def test_the_card_has_the_numbers_of_an_evaluation_of_just_these_files(run: dict[str, Artifact]) -> None:
    known = Known([run["eval"], run["clean"], run["finetune"], run["base"]], "llmkit run mine", ["own/chats"])
    made = pushing.pack(run["merge"], "me/mine", known)
    told = front(made.card)
    assert (told["license"], told["base_model"], told["base_model_relation"]) == ("gemma", "google/gemma-3-270m", "finetune")
    assert (told["library_name"], told["pipeline_tag"]) == ("transformers", "text-generation")
    assert told["metrics"] == ["bleu", "perplexity", "rouge"]
    assert told["language"] == ["en", "zh"]
    assert told["datasets"] == ["own/chats"]
    (result,) = told["model-index"][0]["results"]
    assert {one["name"]: one["value"] for one in result["metrics"]}["BLEU (merged)"] == 12.5
    assert "llmkit run mine" in made.card
    assert "train loss: 1.235" in made.card
    (run["eval"].path / "report.json").write_text((run["eval"].path / "report.json").read_text() + " ")
    assert "model-index" not in front(pushing.pack(run["merge"], "me/mine", known).card), (
        "a report that was edited tells nothing"
    )


def test_an_evaluation_of_other_files_is_not_this_one_s(run: dict[str, Artifact]) -> None:
    known = Known([run["eval"], run["base"]])
    assert "model-index" not in front(pushing.pack(run["finetune"], "me/mine", known).card)
    assert front(pushing.pack(run["finetune"], "me/mine", known).card)["base_model_relation"] == "adapter"


def test_a_base_that_nobody_knows_is_not_invented(run: dict[str, Artifact]) -> None:
    made = pushing.pack(run["merge"], "me/mine", Known())
    assert (made.licence, made.base) == (None, None)
    assert not {"license", "base_model", "base_model_relation"} & set(front(made.card))


def test_a_card_that_came_with_the_files_keeps_its_text_under_new_front_matter(
    run: dict[str, Artifact], tmp_path: Path
) -> None:
    old = b'---\nbase_model: "demo:gemma-3-270m"\n---\n\n# Mine\n\nMy own words.\n'
    exported = make(
        tmp_path / "runs/mine/export",
        Kind.GGUF,
        "export",
        {"README.md": old, "model-q8_0.gguf": b"GGUF" + WEIGHTS},
        inputs={"model": run["merge"].fingerprint, "base": run["base"].fingerprint},
        facts={"types": {"q8_0": {}}},
    )
    made = pushing.pack(exported, "me/mine", Known([run["base"], run["merge"], run["finetune"]]))
    assert "My own words." in made.card
    assert front(made.card)["base_model"] == "google/gemma-3-270m"
    assert front(made.card)["library_name"] == "gguf"
    assert made.card.count("---\n") == 2


def test_pushing_again_after_a_lost_connection_sends_only_what_is_missing(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.utils import _http

    monkeypatch.setattr(_http.time, "sleep", lambda seconds: None)

    def cut(method: str, path: str, handler: Handler) -> bool:
        if "/commit/" in path:
            handler.connection.shutdown(socket.SHUT_RDWR)
            handler.close_connection = True
            return True
        return False

    hub.trouble = cut
    code, _, err = llmkit("push", "runs/mine/merge", "me/mine", "--yes")
    assert code == 3
    assert "me/mine is as it was, and what was sent is not sent twice" in err
    assert set(hub.repositories["model", "me/mine"].files) == {".gitattributes"}
    assert len(hub.blobs) == 1
    hub.trouble = lambda method, path, handler: False
    hub.requests.clear()
    assert llmkit("push", "runs/mine/merge", "me/mine", "--yes")[0] == 0
    assert not [path for method, path in hub.requests if method == "PUT"]
    assert hub.repositories["model", "me/mine"].files["model.safetensors"] == WEIGHTS


def test_an_upload_that_is_cut_says_so(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.utils import _http

    monkeypatch.setattr(_http.time, "sleep", lambda seconds: None)

    def cut(method: str, path: str, handler: Handler) -> bool:
        if method == "PUT":
            handler.connection.shutdown(socket.SHUT_RDWR)
            handler.close_connection = True
        return method == "PUT"

    hub.trouble = cut
    code, _, err = llmkit("push", "runs/mine/merge", "me/mine", "--yes")
    assert code == 3
    assert "LK0355" in err
    assert "run it again" in err


def test_without_a_token_the_way_to_one_is_told(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    code, _, err = llmkit("push", "runs/mine/merge", "me/mine", "--yes")
    assert code == 3
    assert "hf auth login" in err
    assert hub.requests == []


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (403, "LK0361", "may not write there"),
        (409, "LK0356", "meanwhile"),
        (412, "LK0356", "meanwhile"),
        (400, "LK0356", "HTTP 400"),
    ],
)
def test_a_commit_that_is_refused_is_told(hub: Hub, status: int, code: str, words: str) -> None:
    def refuse(method: str, path: str, handler: Handler) -> bool:
        if "/commit/" in path:
            handler.refuse(status, message="because")
        return "/commit/" in path

    hub.trouble = refuse
    exit_code, _, err = llmkit("push", "runs/mine/merge", "me/mine", "--yes")
    assert exit_code == 3
    assert code in err
    assert words in err
    assert "because" in err


def parcel(*, private: bool = False) -> Parcel:
    return Parcel({"README.md": b"---\nlicense: mit\n---\n"}, "by llmkit", private, None)


def refused(name: str, given: Parcel) -> LlmkitError:
    with pytest.raises(LlmkitError) as caught:
        huggingface.publish(Repo(name, "main", "model", "model", "push"), given)
    return caught.value


def test_another_s_name_a_bad_token_and_offline_are_told_apart(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    error = refused("stranger/mine", parcel())
    assert (error.code, "rights" in error.what) == ("LK0361", True)
    monkeypatch.setenv("HF_TOKEN", "hf_old_secret")
    error = refused("me/mine", parcel())
    assert error.code == "LK0354"
    assert "secret" not in f"{error.what}{error.next}"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert isinstance(refused("me/mine", parcel()), MachineError)
    assert refused("me/mine", parcel()).code == "LK0350"


def test_what_was_to_be_private_is_not_put_where_everyone_reads(hub: Hub) -> None:
    hub.add("me/mine", {"old.gguf": b"old"})
    error = refused("me/mine", parcel(private=True))
    assert isinstance(error, UsageError)
    assert error.code == "LK0362"
    assert set(hub.repositories["model", "me/mine"].files) == {"old.gguf"}


def test_what_lay_there_before_is_named_and_left(hub: Hub) -> None:
    hub.add("me/mine", {"old.gguf": b"old", "README.md": b"old"})
    done = huggingface.publish(Repo("me/mine", "main", "model", "model", "push"), parcel())
    assert done == hubs.Published(f"{hub.address}/me/mine", ["old.gguf"])
    assert hub.repositories["model", "me/mine"].files["old.gguf"] == b"old"


NEEDLES = ["/home/someone/work/", "/home/someone/", "/tmp/"]


@given(
    st.recursive(
        st.text()
        | st.integers()
        | st.none()
        | st.sampled_from(["/home/someone/work/a.txt", "~/b", "see /tmp/x", "C:\\Users\\me\\c"]),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
        max_leaves=12,
    )
)
@settings(max_examples=200)
def test_no_value_of_a_manifest_keeps_a_folder(value: Any) -> None:
    told = json.dumps(pushing._anonymous(value, NEEDLES))
    assert not any(needle in told for needle in NEEDLES)
    assert "Users" not in told or "C:" not in told


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("/data/private/words.txt", "words.txt"),
        ("~/words.txt", "words.txt"),
        ("C:\\Users\\me\\words.txt", "words.txt"),
        ("data/words.txt", "data/words.txt"),
        ("/no_think", "/no_think"),
        ("own/er", "own/er"),
        ("demo:gemma-3-270m", "demo:gemma-3-270m"),
        ("https://example.org/a/b", "https://example.org/a/b"),
    ],
)
def test_a_path_is_cut_and_a_name_is_not(value: str, told: str) -> None:
    assert pushing._anonymous(value, NEEDLES) == told


@given(st.text(max_size=60), st.text(max_size=60), st.floats(0, 100))
@settings(max_examples=200)
def test_no_name_breaks_out_of_the_card(name: str, licence: str, value: float) -> None:
    card = HubCard(
        "me/mine", "model", base=name, licence=licence, measured=[Measured(name, {"bleu": value}, 3)], facts={"x": name}
    )
    text = render(card)
    told = yaml.safe_load(text.split("\n---\n")[0].removeprefix("---\n"))
    assert set(told) <= {"license", "license_name", "pipeline_tag", "library_name", "tags", "metrics", "model-index"}
    assert told["model-index"][0]["results"][0]["metrics"][0]["value"] == round(value, 4)
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert headings == ["# mine", "## Use", "## Licence", "## Measured", "## How it was made", "## Verify"]


def test_changed_files_are_a_failed_proof(run: dict[str, Artifact]) -> None:
    (run["merge"].path / "config.json").unlink()
    with pytest.raises(FidelityError, match=r"missing: config.json"):
        pushing.pack(run["merge"], "me/x", Known())


def test_a_name_that_a_terminal_would_obey_is_spelled_out(run: dict[str, Artifact], tmp_path: Path) -> None:
    (run["finetune"].path / "x\x1b[31m").write_bytes(b"x")
    shown = pushing_command.push(run["finetune"].path, "me/mine", private=False, yes=False).text
    assert "x\\u001b[31m" in shown
    assert "\x1b" not in shown


@pytest.mark.parametrize("name", ["../mine", "./mine", "me/..", "-me/mine", "me/"])
def test_what_is_no_repository_s_name_is_refused(name: str, run: dict[str, Artifact]) -> None:
    with pytest.raises(UsageError, match="names no repository"):
        pushing_command.push(run["finetune"].path, name, private=False, yes=False)


@pytest.mark.parametrize("languages", [5, "zh", [1, None], {"zh": 1}])
def test_a_configuration_of_a_stranger_s_ends_in_no_traceback(languages: object, tmp_path: Path) -> None:
    found = make(tmp_path / "a", Kind.MODEL, "merge", MODEL, config={"languages": languages, "origin": ["x"]})
    assert "language:" not in pushing.pack(found, "me/mine", Known()).card

"""The eval step as a user runs it, on a tiny model: what it reports, what it keeps through a kill, what its gate says."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from llmkit import artifact
from llmkit.artifact import Kind
from llmkit.evaluation import settings
from llmkit.report import html
from llmkit.steps import eval as evaluation
from tests.test_chain import ENVIRONMENT, write_tiny_recipe

VARIANTS = ["base", "merged", "nf4", "f16", "q8_0"]
TIMINGS = ("tokens_per_second", "peak_memory_bytes")


class Shop:
    """A folder with a finished run of the tiny recipe, and an answers' cache of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cache = folder / "cache"

    def environment(self, cache: Path | None = None) -> dict[str, str]:
        return {**ENVIRONMENT, "XDG_CACHE_HOME": str(cache or self.cache)}

    def llmkit(self, *arguments: str, cache: Path | None = None) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "llmkit", *arguments]
        return subprocess.run(
            command, cwd=self.folder, capture_output=True, text=True, env=self.environment(cache), check=False, timeout=300
        )

    def report(self, *arguments: str, code: int = 0, cache: Path | None = None) -> Any:
        done = self.llmkit(*arguments, "--json", cache=cache)
        assert done.returncode == code, done.stderr
        return json.loads(done.stdout)["report"]

    def eval(self, *arguments: str, code: int = 0, cache: Path | None = None) -> Any:
        return self.report("eval", "--recipe", "tiny.yaml", *arguments, code=code, cache=cache)


@pytest.fixture(scope="module")
def shop(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Shop:
    folder = tmp_path_factory.mktemp("shop")
    path = write_tiny_recipe(folder, tiny_model, lr=3e-2, max_steps=40, checkpoint_every=20)
    recipe = json.loads(path.read_text("utf-8"))
    recipe |= {"quantize": [{"bits": 4}], "export": {"types": ["f16", "q8_0"]}, "eval": {"max_new_tokens": 12}}
    path.write_text(json.dumps(recipe), "utf-8")
    made = Shop(folder)
    made.report("run", "tiny.yaml")
    return made


def without_timings(report: Mapping[str, Any]) -> dict[str, Any]:
    models = {name: {key: value for key, value in row.items() if key not in TIMINGS} for name, row in report["models"].items()}
    return {**report, "models": models, "command": None}


def test_every_variant_has_scores_intervals_perplexity_and_divergence(shop: Shop) -> None:
    report = json.loads((shop.folder / "runs/tiny/eval/report.json").read_text("utf-8"))
    assert list(report["models"]) == VARIANTS
    for name, row in report["models"].items():
        assert row["perplexity"] > 1
        assert row["failed"] == 0
        assert set(row["intervals"]) == set(row["metrics"])
        for metric, (low, high) in row["intervals"].items():
            assert low <= high, metric
        assert (row["divergence"] is None) is (name == "merged")
    for name in VARIANTS:
        if name != "merged":
            found = report["models"][name]["divergence"]
            assert 0 <= found["median"] <= found["p99"]
            assert found["mean"] == report["models"][name]["kl"]
    kept = {name: report["models"][name]["retention"] for name in VARIANTS[1:]}
    assert kept["merged"] == 1
    assert kept["q8_0"] > kept["nf4"]
    assert report["models"]["q8_0"]["kl"] < report["models"]["nf4"]["kl"]
    assert report["models"]["q8_0"]["log_probability"] < 0


def test_the_report_tells_where_everything_comes_from(shop: Shop) -> None:
    report = json.loads((shop.folder / "runs/tiny/eval/report.json").read_text("utf-8"))
    links = {one["name"]: one for one in report["lineage"]}
    assert links["merged"]["inputs"]["adapter"] == links["adapter"]["fingerprint"]
    assert links["adapter"]["inputs"]["dataset"] == links["dataset"]["fingerprint"]
    assert "source.0" in links["dataset"]["inputs"]
    page = (shop.folder / "runs/tiny/eval/report.html").read_text("utf-8")
    assert "http://" not in page.replace("http://www.w3.org", "")
    for name in VARIANTS:
        assert name in page


def test_what_was_answered_once_is_not_answered_again(shop: Shop) -> None:
    before = json.loads((shop.folder / "runs/tiny/eval/report.json").read_text("utf-8"))
    started = time.monotonic()
    again = shop.eval("--force")
    assert again["models"] == before["models"]  # speeds and memory too: nothing ran
    assert time.monotonic() - started < 60


def test_a_gate_passes_identical_outputs_and_fails_a_file_with_a_corrupted_tensor(shop: Shop) -> None:
    gate = ["--set", "eval.gate={baseline: merged, max_drop: {rougeL: 1.0}, variants: [f16]}"]
    assert shop.eval(*gate)["gate"]["verdict"] == "pass"
    file = shop.folder / "runs/tiny/export/model-f16.gguf"
    whole = file.read_bytes()
    try:
        from gguf import GGUFReader

        tensor = next(one for one in GGUFReader(file).tensors if one.name == "blk.0.ffn_down.weight")
        start = int(tensor.data_offset)
        file.write_bytes(whole[:start] + os.urandom(int(tensor.n_bytes)) + whole[start + int(tensor.n_bytes) :])
        done = shop.llmkit("eval", "--recipe", "tiny.yaml", *gate)
        assert done.returncode == 1, done.stderr
        assert "error LK0704: the gate failed" in done.stderr
        report = json.loads((shop.folder / "runs/tiny/eval/report.json").read_text("utf-8"))
        failed = {check["kind"] for check in report["gate"]["checks"] if check["verdict"] == "fail"}
        assert {"intact", "min_retention"} <= failed
        assert "failure" in (shop.folder / "runs/tiny/eval/junit.xml").read_text("utf-8")
        # What is fresh fails as well: a CI job that runs it again must not pass.
        assert shop.llmkit("eval", "--recipe", "tiny.yaml", *gate).returncode == 1
    finally:
        file.write_bytes(whole)


@pytest.mark.parametrize("what", ["folder", "gguf"])
def test_a_killed_eval_goes_on_and_reports_what_an_uninterrupted_one_does(shop: Shop, what: str, tmp_path: Path) -> None:
    given = {"folder": "runs/tiny/merge", "gguf": "runs/tiny/export/model-f16.gguf"}[what]
    settings = ["--set", "eval.batch_size=1", "--set", "eval.max_new_tokens=96", "--set", "eval.slots=1"]
    arguments = ["eval", "--input", given, "--data", "runs/tiny/clean", *settings]
    whole = shop.report(*arguments, "--output", str(tmp_path / "whole"), cache=tmp_path / "one")
    command = [sys.executable, "-m", "llmkit", *arguments, "--output", str(tmp_path / "killed")]
    environment = shop.environment(tmp_path / "two")
    process = subprocess.Popen(command, cwd=shop.folder, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(stored(tmp_path / "two")) < 3:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(0.5)  # what it left running sees that it is alone
    kept = stored(tmp_path / "two")
    assert 3 <= len(kept) < whole["n_samples"]
    again = shop.report(*arguments, "--output", str(tmp_path / "killed"), cache=tmp_path / "two")
    after = stored(tmp_path / "two")
    assert after[: len(kept)] == kept
    assert len(set(after)) == len(after) == whole["n_samples"]
    assert without_timings(again) == without_timings(whole)
    assert (tmp_path / "killed/samples.jsonl").read_bytes() == (tmp_path / "whole/samples.jsonl").read_bytes()


def stored(cache: Path) -> list[str]:
    """The keys of the answers in a cache, in the order they came."""
    lines = [line for path in sorted(cache.glob("llmkit/answers/*.jsonl")) for line in path.read_bytes().splitlines()]
    found = []
    for line in lines:
        try:
            found.append(json.loads(line).get("key"))
        except ValueError:
            continue
    return [key for key in found if key]


class Parrot(BaseHTTPRequestHandler):
    """An OpenAI-compatible endpoint that answers everything with one sentence, after a failure or two."""

    failures = 2
    asked = 0

    def do_POST(self) -> None:
        Parrot.asked += 1
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if Parrot.failures:
            Parrot.failures -= 1
            self.send_error(500)
            return
        answer = {
            "choices": [{"message": {"role": "assistant", "content": f"{body['model']} 红31。"}, "finish_reason": "stop"}],
            "usage": {"completion_tokens": 5},
        }
        text = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def parrot() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Parrot)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()
    server.server_close()


def test_an_endpoint_is_a_row_beside_the_others_and_alone(shop: Shop, parrot: str, tmp_path: Path) -> None:
    endpoint = f"eval.endpoint={{url: {parrot}, name: other, model: parrot}}"
    row = shop.eval("--set", endpoint)["models"]["other"]
    assert (row["failed"], row["stopped"], row["kl"], row["size_bytes"]) == (0, 1.0, None, None)
    line = json.loads((shop.folder / "runs/tiny/eval/samples.jsonl").read_text("utf-8").splitlines()[0])
    assert line["answers"]["other"] == "parrot 红31。"
    alone = shop.report(
        "eval", "--input", parrot, "--data", "runs/tiny/clean", "--output", str(tmp_path / "r"), "--set", endpoint
    )
    assert list(alone["models"]) == ["other"]
    assert alone["reference"] is None


def test_what_an_endpoint_answered_outlives_a_failure_after_it(
    parrot: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answers lie in the run's own folder alone, and must stay there until the report is whole."""
    data, out = tmp_path / "data", tmp_path / "out"
    for folder in (data, out):
        folder.mkdir()
    messages = [{"role": "user", "content": "hm?"}, {"role": "assistant", "content": "red"}]
    lines = [json.dumps({"id": str(number), "source": "x", "messages": messages}) for number in range(3)]
    (data / "test.jsonl").write_text("\n".join(lines), "utf-8")
    inputs = {"dataset": artifact.foreign(data, Kind.DATASET)}
    config = settings.Config.model_validate({"endpoint": {"url": parrot, "model": "parrot"}})
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "_write_pages", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            evaluation.run(config, inputs, out)
    asked = Parrot.asked
    assert evaluation.run(config, inputs, out)["variants"] == ["endpoint"]
    assert Parrot.asked == asked
    assert not (out / "scratch").exists()


def test_a_model_called_as_a_part_of_an_evaluation_is_none(shop: Shop, tmp_path: Path) -> None:
    shutil.copytree(shop.folder / "runs/tiny/merge", tmp_path / "gguf")
    report = shop.report(
        "eval", "--input", str(tmp_path / "gguf"), "--model", "runs/tiny/merge", "--data", "runs/tiny/clean",
        "--output", str(tmp_path / "r"),
    )  # fmt: skip
    assert list(report["models"]) == ["base", "input-gguf"]


def test_a_gguf_file_alone_is_measured_against_the_model_that_is_named(shop: Shop, tmp_path: Path) -> None:
    file = "runs/tiny/export/model-q8_0.gguf"
    alone = shop.report("eval", "--input", file, "--data", "runs/tiny/clean", "--output", str(tmp_path / "alone"))
    assert list(alone["models"]) == ["model-q8_0"]
    assert alone["models"]["model-q8_0"]["kl"] is None
    both = shop.report(
        "eval", "--input", file, "--model", "runs/tiny/merge", "--data", "runs/tiny/clean", "--output", str(tmp_path / "both")
    )
    assert list(both["models"]) == ["base", "model-q8_0"]
    assert both["models"]["model-q8_0"]["kl"] < 0.01
    folder = shop.report(
        "eval", "--input", "runs/tiny/quantize-nf4", "--model", "runs/tiny/merge", "--data", "runs/tiny/clean",
        "--output", str(tmp_path / "folder"),
    )  # fmt: skip
    assert list(folder["models"]) == ["base", "quantize-nf4"]
    assert folder["models"]["quantize-nf4"]["kl"] > 0


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ("runs/tiny/finetune", "merge it first"),
        ("runs/tiny/export", "name one of them: model-f16.gguf"),
        ("runs/tiny/clean", "is a dataset artifact"),
    ],
)
def test_what_answers_nothing_by_itself_is_refused_with_the_way_on(shop: Shop, given: str, what: str, tmp_path: Path) -> None:
    done = shop.llmkit("eval", "--input", given, "--data", "runs/tiny/clean", "--output", str(tmp_path / "r"))
    assert done.returncode == 2, done.stderr
    assert what in done.stderr


def test_a_merged_model_alone_is_called_so_and_a_cap_beyond_a_file_s_context_is_refused(shop: Shop, tmp_path: Path) -> None:
    data = ["--data", "runs/tiny/clean"]
    alone = shop.report("eval", "--input", "runs/tiny/merge", *data, "--output", str(tmp_path / "r"))
    assert list(alone["models"]) == ["merged"]
    long = ["--set", "eval.max_new_tokens=600"]
    done = shop.llmkit("eval", "--input", "runs/tiny/export/model-q8_0.gguf", *data, *long, "--output", str(tmp_path / "q"))
    assert done.returncode == 2, done.stderr
    assert "lower eval.max_new_tokens" in done.stderr


def test_programs_run_only_where_that_is_allowed(shop: Shop, tmp_path: Path) -> None:
    problem = {
        "task_id": "t/1",
        "prompt": 'def twice(n):\n    """Two times n."""\n',
        "entry_point": "twice",
        "canonical_solution": "    return 2 * n\n",
        "test": "def check(candidate):\n    assert candidate(2) == 4\n",
    }
    (tmp_path / "problems.jsonl").write_text(json.dumps(problem), "utf-8")
    code = ["--set", f"eval.code={{problems: {tmp_path / 'problems.jsonl'}, samples: 2, k: [1, 2], max_new_tokens: 8}}"]
    refused = shop.llmkit("eval", "--recipe", "tiny.yaml", *code)
    assert refused.returncode == 2
    assert "--allow-code-exec" in refused.stderr
    found = shop.eval(*code, "--allow-code-exec")["code"]
    assert set(found) == set(VARIANTS)
    for row in found.values():
        assert row["pass@1"] == row["pass@2"] == 0
        assert (row["n_problems"], row["n_samples"]) == (1, 2)
    gate = shop.eval(*code, "--set", "eval.gate.min={pass@1: 50}", "--allow-code-exec", code=1)["gate"]
    assert {check["verdict"] for check in gate["checks"] if check["metric"] == "pass@1"} == {"fail"}


def test_a_review_page_is_written_and_its_ratings_come_back_in(shop: Shop, tmp_path: Path) -> None:
    done = shop.llmkit("eval", "--recipe", "tiny.yaml", "--review", "base,merged")
    assert done.returncode == 0, done.stderr
    page = (shop.folder / "runs/tiny/eval/review.html").read_text("utf-8")
    data = json.loads(page.partition('id="pairs">')[2].partition("</script>")[0])
    lines = [json.loads(line) for line in (shop.folder / "runs/tiny/eval/samples.jsonl").read_text("utf-8").splitlines()]
    first = {line["prompt"][-1]["content"]: html.printable(line["answers"]["base"]) for line in lines}
    ratings = []
    for pair in data["pairs"]:  # a rater who likes the first model, whichever side it stands on
        asked = pair["prompt"][-1]["text"]
        ratings.append(
            {"item": pair["item"], "choice": "left" if pair["left"]["text"] == first[asked] else "right", "seconds": 1}
        )
    exported = {"format": "llmkit-review-1", "review": data["review"], "rater": "Ann", "ratings": ratings}
    (tmp_path / "ann.json").write_text(json.dumps(exported), "utf-8")
    review = shop.eval("--review", "base,merged", "--ratings", str(tmp_path / "ann.json"))["review"]
    assert review["models"] == ["base", "merged"]
    assert review["wins"] == len(ratings) > 0
    assert review["losses"] == 0


def test_other_tools_numbers_stand_beside_ours_by_their_names(shop: Shop) -> None:
    pytest.importorskip("jieba")
    metrics = shop.eval("--compat", "llamafactory", "--compat", "rouge-chinese")["models"]["merged"]["metrics"]
    assert {"rougeL", "llamafactory.rougeL", "rouge_chinese.rougeL"} <= set(metrics)


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--set", "eval.gate={baseline: mergd, max_drop: {bleu: 1}}", "--set", "export="], "'mergd', which is not measured"),
        (["--set", "eval.gate={baseline: merged, max_drop: {blue: 1}}"], "did you mean 'bleu'"),
        (["--max-drop", "bleu=much"], "METRIC=POINTS"),
        (["--set", "eval.beams=4"], "beam search"),
        (["--set", "eval.tasks=[no_such_task_at_all]"], "no_such_task_at_all"),
        (["--review", "merged,merged", "--set", "export="], "one model twice"),
        (["--set", "eval.endpoint={url: http://x, name: merged}", "--set", "export="], "two rows"),
        (["--set", "eval.gate={variants: [mine], max_drop: {bleu: .nan}}"], "finite number"),
        (["--predictions", "p.jsonl", "--references", "r.jsonl", "--output", "r"], "--recipe does not go with"),
        (["--set", "eval.sensitive=[nowhere.txt]"], "nowhere.txt"),
        (["--set", "eval.max_new_tokens=512"], "whole context 512"),
        (["--baseline", "runs/tiny/eval", "--max-drop", "bleu=1"], "would replace the baseline it reads"),
    ],
)
def test_what_cannot_be_done_is_refused_before_any_work(shop: Shop, arguments: list[str], what: str) -> None:
    done = shop.llmkit("eval", "--recipe", "tiny.yaml", *arguments)
    assert done.returncode == 2, done.stderr
    assert what in done.stderr
    assert "Traceback" not in done.stderr
    assert "eval merged" not in done.stderr


def test_reports_are_compared_and_the_exit_code_tells(shop: Shop, tmp_path: Path) -> None:
    shop.eval("--force")
    old = tmp_path / "old"
    shutil.copytree(shop.folder / "runs/tiny/eval", old)
    new = str(shop.folder / "runs/tiny/eval")
    same = shop.llmkit("compare", str(old), new, "--max-drop", "rougeL=0.5", "--junit", str(tmp_path / "j.xml"))
    assert same.returncode == 0, same.stderr
    assert "<testsuite" in (tmp_path / "j.xml").read_text("utf-8")
    worse = shop.llmkit("compare", f"{old}:merged", f"{new}:base", "--max-drop", "chrf=0.5")
    assert worse.returncode in (1, 2), worse.stdout
    lines = (old / "samples.jsonl").read_text("utf-8").splitlines()
    (old / "samples.jsonl").write_text("\n".join(lines[1:]), "utf-8")
    other = shop.llmkit("compare", str(old), new, "--max-drop", "rougeL=0.5")
    assert other.returncode == 2
    assert "cannot be compared" in other.stderr

"""eval: a DATASET's test split and every variant of a model → REPORT. Each variant answers in its own runtime.

`report.json` has a row per variant, `samples.jsonl` every prompt with its reference and all answers; `report.html`,
`report.md` and `junit.xml` tell the same to people and to CI, and `review.html` asks people.
"""

import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit import artifact, origin, progress
from llmkit.artifact import Artifact, Facts, Kind
from llmkit.errors import MachineError, UsageError
from llmkit.evaluation import coding as code_evaluation
from llmkit.evaluation import judging, questions, reviewing
from llmkit.evaluation.coding import Coding
from llmkit.evaluation.settings import Config, Review

if TYPE_CHECKING:
    from llmkit.evaluation.measuring import Plan, Row
    from llmkit.evaluation.questions import Question
    from llmkit.evaluation.variants import Variant

VERB = "eval"
REVISION = 2
KIND = Kind.REPORT
RESUMABLE = True  # an endpoint's answers wait in the staging folder
# Dialogues whose answers' tokens give perplexity and KL; more would sharpen them little and cost minutes on a laptop.
KL_DIALOGUES = 40


def check(config: Config, *, rows: Sequence[str] | None, folders: bool, allow_code: bool, allow_exec: bool) -> None:
    """Refuse before any work what would fail after it.

    Args:
        rows: the report's rows, where they are known before export has chosen its types.
        folders: all of them are Hugging Face folders.
        allow_code: Python files that the recipe names may be run.
        allow_exec: programs that a model writes may be run, in a sandbox.

    Raises:
        UsageError: a permission, a row or a task that is not there, or two rows of one name.
        MachineError: an extra is not installed.
    """
    if config.code and not allow_exec:
        raise UsageError(
            "eval.code runs programs that a model writes", code="LK0111", next="say --allow-code-exec to run them in a sandbox"
        )
    if config.code:
        code_evaluation.check()
    if config.beams > 1:
        _check_beams(config, folders=folders)
    if rows is not None:
        _refuse_doubles(rows)
        if config.review:
            reviewing.check(config.review, rows)
    if config.gate:
        further = [*(f"pass@{k}" for k in (config.code.k if config.code else ())), *(f"{task}." for task in config.tasks)]
        judging.check(config.gate, rows, sensitive=bool(config.sensitive), further=further)
    if config.compat:
        from llmkit.metrics import compat

        compat.check(config.compat)
    if config.tasks:
        from llmkit.engine import harness_tasks

        harness_tasks.check(config.tasks, allow_code=allow_code)
    if config.engine == "vllm" and find_spec("vllm") is None:
        raise MachineError(
            "vLLM is not installed", code="LK0907", next="pip install vllm, on a machine with a GPU, or leave eval.engine out"
        )


def _check_beams(config: Config, *, folders: bool) -> None:
    if config.temperature:
        raise UsageError("eval.beams goes with temperature 0", code="LK0712", next="leave one of them out")
    if config.engine == "vllm":
        raise UsageError("vLLM does no beam search", code="LK0712", next="set eval.beams to 1, or leave eval.engine out")
    if not folders:
        raise UsageError(
            "neither llama.cpp nor an endpoint does beam search", code="LK0712", next="set eval.beams to 1, or leave export out"
        )


def run(config: Config, inputs: Mapping[str, Artifact], out: Path) -> Facts:
    """Answer, measure, score, judge, report.

    Writes report.json, samples.jsonl, report.html and report.md, with a gate junit.xml and with a review review.html. Facts:
    `n_samples`, `variants`, `warnings`, and `gate` {verdict, checks} or None: a report that fails its gate is published.

    Raises:
        DataError: the test split is empty, or a rater's file is not of this review.
        MachineError: a variant's process died, or an endpoint answered nothing.
    """
    from llmkit.evaluation import summary

    asked = questions.read(inputs["dataset"].path / "test.jsonl", config.max_samples)
    coding = Coding(config.code, inputs["problems"].path if "problems" in inputs else None) if config.code else None
    if config.tasks:
        from llmkit.engine import harness

        harness.fetch(config.tasks, allow_code=True)  # before a model is loaded; `check` has refused code that is not allowed
    scratch = out / "scratch"
    scratch.mkdir(exist_ok=True)
    rows = _rows(config, inputs, asked, coding, scratch)
    is_sensitive = _sensitive(config, inputs)
    report, lines = _report(config, inputs, asked, rows, is_sensitive)
    if coding:
        report["code"] = {name: coding.report(name, row.quizzes["code"]) for name, row in rows.items()}
    if config.review:
        report["review"] = _review(config.review, inputs, asked, lines, out)
    summary.write_samples(out / "samples.jsonl", lines)
    artifact.write_json(out / "report.json", report)
    if config.gate:
        earlier = inputs["baseline"].path if "baseline" in inputs else None
        changed = [name for name, row in rows.items() if row.changed]
        further = {name: _further(report, name) for name in rows}
        verdict = judging.judge(config.gate, out, earlier, changed, is_sensitive=is_sensitive, further=further)
        report["gate"] = verdict.to_json()
        artifact.write_json(out / "report.json", report)
    _write_pages(report, lines, out)
    shutil.rmtree(scratch)  # only now: an endpoint's answers lie there, and nowhere else until all of this is published
    for warning in report["warnings"]:
        progress.note(f"warning: {warning}")
    return {"n_samples": len(asked), "variants": list(rows), "warnings": report["warnings"], "gate": report["gate"]}


def _further(report: Mapping[str, Any], row: str) -> dict[str, Any]:
    """What a gate can ask of a row besides its scores: pass@k, and benchmarks as TASK.METRIC."""
    passed = {name: value for name, value in report.get("code", {}).get(row, {}).items() if name.startswith("pass@")}
    tasks = {task: held.get(row, {}) for task, held in report["tasks"].items()}
    return passed | {f"{task}.{metric}": value for task, scores in tasks.items() for metric, value in scores.items()}


def _rows(
    config: Config, inputs: Mapping[str, Artifact], asked: "Sequence[Question]", coding: "Coding | None", scratch: Path
) -> "dict[str, Row]":
    """Every variant measured, base and merged first, the endpoint last."""
    from llmkit.evaluation import variants
    from llmkit.evaluation.measuring import Bench

    cache = origin.cache_folder()
    found: list[Variant] = list(variants.find(inputs, cache=cache))
    wanted = "merged" if "merged" in inputs else "base"
    reference = next((one for one in found if isinstance(one, variants.Folder) and one.name == wanted), None)
    if config.endpoint:
        found.append(variants.remote(config.endpoint))
    _refuse_doubles([one.name for one in found])
    template = None
    if reference:
        from llmkit.engine import templates

        _check_room(config, reference.path)
        template = templates.resolve("model", reference.path)
    return Bench(_plan(config, inputs, asked, coding), reference, template, scratch=scratch, cache=cache).rows(found)


def _check_room(config: Config, folder: Path) -> None:
    """Refuse answers so long that no prompt can fit beside them."""
    from llmkit.gguf.tokenizer_files import read_json

    found = read_json(folder / "config.json")
    inner = found.get("text_config")
    context = (inner if isinstance(inner, dict) else found).get("max_position_embeddings")
    if isinstance(context, int) and config.max_new_tokens >= context:
        raise UsageError(
            f"eval.max_new_tokens is {config.max_new_tokens}, and the model's whole context {context}",
            code="LK0711",
            next="leave room for the question",
        )


def _refuse_doubles(rows: Sequence[str]) -> None:
    """Of two variants with one name the report would tell of the last alone."""
    if doubles := [name for name in dict.fromkeys(rows) if rows.count(name) > 1]:
        raise UsageError(
            f"two rows of the report would be called {doubles[0]!r}", code="LK0109", next="give the endpoint another name"
        )


def _sensitive(config: Config, inputs: Mapping[str, Artifact]) -> "Callable[[str], bool] | None":
    from llmkit.data import sensitive

    words = [inputs[f"words.{index}"].path for index in range(len(config.sensitive))]
    return sensitive.holds_any(words) if words else None


def _plan(config: Config, inputs: Mapping[str, Artifact], asked: "Sequence[Question]", coding: "Coding | None") -> "Plan":
    from llmkit import answers
    from llmkit.evaluation.measuring import DIALOGUES, Plan, Quiz

    prompts = [one.prompt for one in asked]
    quizzes = {DIALOGUES: Quiz(prompts, answers.keys(prompts), config.decoding)}
    if coding:
        quizzes["code"] = Quiz(coding.prompts, coding.keys, coding.decoding(config.seed))
    tasks, content = None, ""
    if config.tasks:
        files = [given.fingerprint for role, given in inputs.items() if role.startswith("task.")]
        content = artifact.digest(metadata.version("lm_eval"), files)
        tasks = {"tasks": list(config.tasks), "limit": config.task_limit, "fewshot": config.task_fewshot}
        tasks["allow_code"] = True  # `check` has refused it where it was not allowed
    dialogues = [one.dialogue for one in asked[:KL_DIALOGUES]]
    return Plan(quizzes, dialogues, config.batch_size, config.slots, config.engine, tasks, content)


def _report(
    config: Config,
    inputs: Mapping[str, Artifact],
    asked: "Sequence[Question]",
    rows: "Mapping[str, Row]",
    is_sensitive: "Callable[[str], bool] | None",
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The report but for code, review and gate, and a line for each sample."""
    from llmkit.evaluation import summary

    marked = summary.mark(rows, asked, is_sensitive=is_sensitive, compat=config.compat)
    reference = next((name for name in ("merged", "base") if name in rows), None)
    report = summary.report(rows, asked, marked, reference=reference)
    if is_sensitive:
        lists = artifact.digest([inputs[f"words.{index}"].fingerprint for index in range(len(config.sensitive))])
        report["signatures"]["sensitive"] += f"|lists:{lists[:16]}"
    report["settings"] = {
        **config.model_dump(mode="json", exclude={"gate", "review"}),
        "decoding": "beam search" if config.beams > 1 else "sampling" if config.temperature else "greedy",
        "prompts": questions.digest(asked),
        "kl_dialogues": min(KL_DIALOGUES, len(asked)),
        "tokenizer": _tokenizer(inputs, reference),
    }
    if config.tasks:
        from llmkit.engine import harness_tasks

        chosen = harness_tasks.select(config.tasks, allow_code=True)
        found = harness_tasks.signatures(chosen, limit=config.task_limit, fewshot=config.task_fewshot)
        report["signatures"] |= {f"task {name}": signature for name, signature in found.items()}
    report["lineage"] = summary.lineage(inputs)
    report["command"] = shlex.join(["llmkit", *sys.argv[1:]])
    report["gate"] = None
    return report, list(summary.samples(rows, asked, marked))


def _tokenizer(inputs: Mapping[str, Artifact], reference: str | None) -> str | None:
    """What perplexities compare under."""
    path = inputs[reference].path / "tokenizer.json" if reference else None
    return artifact.sha256_file(path) if path and path.is_file() else None


def _review(
    review: Review, inputs: Mapping[str, Artifact], asked: "Sequence[Question]", lines: Sequence[Mapping[str, Any]], out: Path
) -> dict[str, Any] | None:
    """Write the page that asks; what raters said, if they did."""
    names = list(lines[0]["answers"])
    reviewing.check(review, names)
    arranged = reviewing.Reviewing(review, asked, {name: [line["answers"][name] for line in lines] for name in review.models})
    (out / "review.html").write_text(arranged.page(), encoding="utf-8")
    files = [inputs[f"ratings.{index}"].path for index in range(len(review.ratings))]
    return arranged.rated(files) if files else None


def _write_pages(report: Mapping[str, Any], lines: Sequence[Mapping[str, Any]], out: Path) -> None:
    from llmkit.report import evaluation, junit

    (out / "report.html").write_text(evaluation.page(report, lines), encoding="utf-8")
    (out / "report.md").write_text(evaluation.summary(report) + "\n", encoding="utf-8")
    if report["gate"]:
        (out / "junit.xml").write_text(junit.xml(report["gate"]), encoding="utf-8")

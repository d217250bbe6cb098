"""Runs benchmarks of lm-evaluation-harness on a loaded model. Knows the harness; the recipe's words for it lie elsewhere.

The harness is imported where it is used: it takes a second, and is an extra. It is kept silent, sends no word of what is
run, reads templates in a sandbox and leaves the process as it was.
"""

import os
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from math import isfinite
from typing import Any

import datasets
import huggingface_hub
import jinja2
import numpy as np
import torch
from jinja2.sandbox import SandboxedEnvironment

from llmkit.engine import harness_tasks
from llmkit.engine.harness_files import merged
from llmkit.engine.harness_local import Definition, metrics, with_data
from llmkit.engine.harness_tasks import Selection
from llmkit.engine.templates import ChatTemplate
from llmkit.errors import DataError, MachineError, UsageError

SEED = 1234  # the harness's own default, so that it draws the same examples
# For standard errors that have no formula (F1, BLEU, …).
RESAMPLES = 1000
# What the harness raises for a task that it cannot use. RuntimeError is not among them: torch's lack of memory is one.
BROKEN = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    ImportError,
    NotImplementedError,
    RecursionError,
    StopIteration,
    SyntaxError,
    jinja2.TemplateError,
    datasets.exceptions.DatasetsError,
)
UNREACHABLE = (OSError, huggingface_hub.errors.HfHubHTTPError)
Loaded = dict[str, Any]


def evaluate_tasks(
    model: Any,
    tokenizer: Any,
    *,
    template: ChatTemplate,
    tasks: Sequence[str],
    limit: int | None = None,
    fewshot: int | None = None,
    batch_size: int = 8,
    allow_code: bool = False,
) -> dict[str, dict[str, float]]:
    """What a model scores in benchmarks: for each task asked for, its metrics as the harness names them.

    Every question is put as a conversation in the model's chat template: a task's description as the system prompt,
    examples as turns before it. Seeds are fixed, and the process's own restored.

    Args:
        model: a causal language model of transformers, in any precision.
        template: what it was trained with.
        tasks: names of the harness's, or paths of task files and folders.
        limit: at most so many samples of each task, the first ones.
        fewshot: examples before each question; None: as the task says. A task that says 0 keeps it.
        batch_size: questions in a forward pass; fewer where they are long.
        allow_code: run Python that task files of the user's own name.

    Returns:
        `{task: {metric: value, metric_stderr: value}}`, with `samples` of each. A metric that several filters give is
        `metric,filter`; a tag, which has no score, is there as its tasks. A group has the score the harness gives it.

    Raises:
        UsageError: as `harness_tasks.check`.
        DataError: the harness cannot use a task file or its data, or the template refuses its conversations.
        MachineError: the harness is not installed, or a data set of the hub cannot be had.
    """
    selection = harness_tasks.select(tasks, allow_code=allow_code)
    found: dict[str, dict[str, float]] = {}
    with _contained():
        from lm_eval.evaluator import evaluate

        from llmkit.engine.harness_model import HarnessModel

        answering = HarnessModel(model, tokenizer, template=template, batch_size=batch_size)
        for name, asked in selection.asked.items():
            loaded = _load(selection, name, allow_code=allow_code)
            _show(loaded, fewshot)
            with _blamed(selection, name):
                results = evaluate(
                    answering,
                    loaded,
                    limit=limit,
                    bootstrap_iters=RESAMPLES,
                    log_samples=False,
                    apply_chat_template=True,
                    fewshot_as_multiturn=True,
                )
            assert results is not None  # it is None in other processes than the first
            found |= {key: _metrics(results, of) for key, of in _rows(selection, name, asked, loaded).items()}
    return found


def fetch(tasks: Sequence[str], *, allow_code: bool = False) -> None:
    """Bring the tasks' data to this disk, before any model is loaded. Raises as `evaluate_tasks`."""
    selection = harness_tasks.select(tasks, allow_code=allow_code)
    with _contained():
        for name in selection.asked:
            _load(selection, name, allow_code=allow_code)


def _load(selection: Selection, name: str, *, allow_code: bool) -> Loaded:
    """A task, group or tag as the harness has it loaded, data and all."""
    with _blamed(selection, name):
        from lm_eval.tasks import TaskManager

        manager = TaskManager(include_defaults=False)
        for one in selection.definitions.values():
            _register(manager.task_index, one, allow_code=allow_code)
        loaded: Loaded = dict(manager.load([name]))
    return loaded


def _register(index: dict[str, Any], one: Definition, *, allow_code: bool) -> None:
    """Let the harness know a definition. It reads a file of its own again, and none of the user's unless code is allowed."""
    from lm_eval.api.registry import metric_registry
    from lm_eval.tasks._index import TaskIndex
    from lm_eval.tasks._yaml_loader import load_yaml

    if not one.local:
        TaskIndex.process_cfg(load_yaml(one.path, resolve_func=False), one.path, index)
        return
    # It looks for a metric it does not know with `evaluate`, which imports what it finds.
    foreign = next((name for name in metrics(one) if name not in metric_registry), None)
    if foreign is not None and not allow_code:
        raise UsageError(
            f"the task {one.name} asks for a metric {foreign!r}",
            code="LK0714",
            where=str(one.path),
            next=_known(metric_registry),
        )
    config = load_yaml(one.path) if allow_code else merged(one.path, strict=True)
    TaskIndex.process_cfg(with_data(one, config), one.path, index)
    index[one.name].yaml_path = None


def _known(names: Iterable[str]) -> str:
    return f"the harness has {', '.join(sorted(names))}"


def _show(loaded: Loaded, fewshot: int | None) -> None:
    """Set how many examples each task shows, by the harness's own rule, and seed their choice."""
    for task in loaded["tasks"].values():
        own = task.get_config("num_fewshot")
        if own is None or (fewshot is not None and own != 0):
            task.set_config(key="num_fewshot", value=fewshot or 0)
        task.set_fewshot_seed(seed=SEED)


def _rows(selection: Selection, name: str, asked: str, loaded: Loaded) -> Mapping[str, str]:
    """What the report calls each result, and what the harness does."""
    return {task: task for task in loaded["tasks"]} if name in selection.tags else {asked: name}


def _metrics(results: Mapping[str, Any], name: str) -> dict[str, float]:
    """A result with its filter's name only where there is a filter, and without what has no value."""
    found: dict[str, float] = {}
    for key, value in results["results"].get(name, {}).items():
        metric, comma, filtered = key.partition(",")
        if not comma or isinstance(value, bool | str) or not isinstance(value, int | float | np.number):
            continue
        error = metric.endswith("_stderr")
        plain = metric.removesuffix("_stderr") + ("" if filtered == "none" else f",{filtered}")
        if isfinite(value) or not error:
            found[plain + "_stderr" * error] = float(value)
    counts = results["n-samples"]
    members = _leaves(results.get("group_subtasks", {}), name)
    return {**found, "samples": float(sum(counts[one]["effective"] for one in members if one in counts))}


def _leaves(groups: Mapping[str, Sequence[str]], name: str) -> list[str]:
    return [leaf for member in groups[name] for leaf in _leaves(groups, member)] if name in groups else [name]


@contextmanager
def _blamed(selection: Selection, name: str) -> Iterator[None]:
    """Whatever the harness raises over a task, as ours."""
    try:
        yield
    except BROKEN as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        remote = selection.hub_data(name)
        if remote and isinstance(error, UNREACHABLE):
            raise MachineError(
                f"the benchmark {name} needs the data set {remote[0]}, which cannot be had: {why}",
                code="LK0716",
                next="check the network or set HF_ENDPOINT; or copy the data here and name them in a task file of your own "
                "(dataset_path: json, dataset_kwargs: {data_files: …})",
            ) from error
        own = selection.definitions.get(name)
        where = str(own.path) if own and own.local else ""
        raise DataError(
            f"the benchmark {name} cannot be run: {type(error).__name__}: {why}", code="LK0715", where=where
        ) from error


@contextmanager
def _contained() -> Iterator[None]:
    """Seeds fixed, stdout free of the harness's talk, no counter at the hub told, templates in a sandbox; all for a while."""
    with ExitStack() as stack:
        stack.enter_context(_seeded())
        stack.enter_context(redirect_stdout(stack.enter_context(open(os.devnull, "w", encoding="utf-8"))))
        stack.enter_context(_replaced(datasets.config, "HF_UPDATE_DOWNLOAD_COUNTS", False))
        stack.enter_context(_replaced(huggingface_hub.constants, "HF_HUB_DISABLE_TELEMETRY", True))
        # It would draw its resamples in processes of its own.
        stack.enter_context(_environment("DISABLE_MULTIPROC", "1"))
        from lm_eval import utils

        stack.enter_context(_replaced(utils, "env", _sandbox(utils.env)))
        yield


def _sandbox(own: jinja2.Environment) -> jinja2.Environment:
    """The harness's Jinja environment, out of which no template gets."""
    safe = SandboxedEnvironment(undefined=own.undefined, keep_trailing_newline=own.keep_trailing_newline)
    safe.filters |= own.filters
    return safe


@contextmanager
def _seeded() -> Iterator[None]:
    before, numpy_before = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        random.seed(SEED)
        np.random.seed(SEED)
        torch.manual_seed(SEED)
        try:
            yield
        finally:
            random.setstate(before)
            np.random.set_state(numpy_before)


@contextmanager
def _replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before

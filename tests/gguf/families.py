"""Tiny models of every family that becomes GGUF: random weights, and tokenizers trained here on a few lines."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaTokenizer,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
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
PHI3 = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
# The expressions in the tokenizer.json of Llama 3 and of Qwen 2, 2.5 and 3.
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_SPLIT = LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
SIZES = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8, "num_key_value_heads": 2}
LAYERS = {"num_hidden_layers": 2, "max_position_embeddings": 512}
HEAD = {"head_dim": 32}


@dataclass(frozen=True)
class Family:
    """`build(folder)` writes the model; `template` is its chat's."""

    build: Callable[[Path], Path]
    template: str


def llama2(folder: Path) -> Path:
    """Llama 2: SentencePiece, as many key heads as query heads."""
    tokenizer = spm_tokenizer()
    sizes = {**SIZES, "num_key_value_heads": 8}
    config = LlamaConfig(**sizes, **LAYERS, **HEAD, vocab_size=len(tokenizer), bos_token_id=1, eos_token_id=2)
    return save(LlamaForCausalLM, config, tokenizer, folder, stops=[2])


def llama3(folder: Path) -> Path:
    """Llama 3.1: byte-level BPE, its rotary scaling, biases, untied, five embedding rows without a token."""
    tokenizer = bpe_tokenizer(*_split(LLAMA3_SPLIT), ignore_merges=True)
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config = LlamaConfig(
        **{**SIZES, **LAYERS, **HEAD, "num_hidden_layers": 3},
        vocab_size=len(tokenizer) + 5,
        attention_bias=True,
        rope_parameters={**rope, "original_max_position_embeddings": 64},
        bos_token_id=None,
        eos_token_id=2,
    )
    return save(LlamaForCausalLM, config, tokenizer, folder, stops=[2, 0])


def smollm2(folder: Path) -> Path:
    """SmolLM2: digits one by one, three heads of 64, tied embeddings."""
    tokenizer = bpe_tokenizer(pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False))
    sizes = {"hidden_size": 192, "intermediate_size": 512, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 64}
    config = LlamaConfig(
        **sizes, **LAYERS, vocab_size=len(tokenizer), tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=2
    )
    return save(LlamaForCausalLM, config, tokenizer, folder, stops=[2])


def mistral(folder: Path) -> Path:
    """Mistral v0.3: SentencePiece BPE as transformers' LlamaTokenizer writes it, untied, no sliding window."""
    tokenizer = spm_tokenizer()
    config = MistralConfig(
        **SIZES, **LAYERS, **HEAD, vocab_size=len(tokenizer), sliding_window=None, bos_token_id=1, eos_token_id=2
    )
    return save(MistralForCausalLM, config, tokenizer, folder, stops=[2])


def qwen2(folder: Path) -> Path:
    """Qwen 2.5: query, key and value biases, composed characters (NFC)."""
    tokenizer = qwen_tokenizer()
    config = Qwen2Config(**SIZES, **LAYERS, vocab_size=len(tokenizer) + 3, rope_parameters={"rope_theta": 1e6})
    return save(Qwen2ForCausalLM, config, tokenizer, folder, stops=[2, 0])


def qwen2_yarn(folder: Path) -> Path:
    """Qwen 2.5 with its context stretched by YaRN, tied, and an attention factor of its own."""
    tokenizer = qwen_tokenizer()
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
    config = Qwen2Config(
        **SIZES,
        **LAYERS,
        vocab_size=len(tokenizer),
        tie_word_embeddings=True,
        rope_parameters={**yarn, "attention_factor": 1.3},
    )
    return save(Qwen2ForCausalLM, config, tokenizer, folder, stops=[2, 0])


def qwen3(folder: Path) -> Path:
    """Qwen 3: norms on queries and keys, heads wider than their share."""
    tokenizer = qwen_tokenizer()
    config = Qwen3Config(**SIZES, **LAYERS, head_dim=64, vocab_size=len(tokenizer), rope_parameters={"rope_theta": 1e6})
    return save(Qwen3ForCausalLM, config, tokenizer, folder, stops=[2, 0])


def gemma2(folder: Path) -> Path:
    """Gemma 2: soft caps small enough to matter, a window of 16 in every other layer."""
    tokenizer = gemma_tokenizer()
    config = Gemma2Config(
        **SIZES,
        **{**LAYERS, "num_hidden_layers": 4},
        **HEAD,
        vocab_size=len(tokenizer),
        sliding_window=16,
        query_pre_attn_scalar=32,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=5.0,
        bos_token_id=2,
        eos_token_id=1,
    )
    return save(Gemma2ForCausalLM, config, tokenizer, folder, stops=[1, 6])


def gemma3(folder: Path) -> Path:
    """Gemma 3 text: one full-attention layer among seven, a sliding window of 16, tied embeddings."""
    tokenizer = gemma_tokenizer()
    config = Gemma3TextConfig(
        **{**SIZES, **LAYERS, **HEAD, "num_hidden_layers": 7},
        vocab_size=len(tokenizer) + 7,
        sliding_window=16,
        query_pre_attn_scalar=32,
        bos_token_id=2,
        eos_token_id=1,
    )
    return save(Gemma3ForCausalLM, config, tokenizer, folder, stops=[1, 6])


def phi3(folder: Path) -> Path:
    """Phi-3 mini 4k: fused projections, special tokens that take the spaces behind them."""
    return _phi3(folder, rope_parameters={"rope_theta": 1e4})


def phi3_long(folder: Path) -> Path:
    """Phi-3 mini 128k: LongRoPE, whose long factors llama.cpp takes from a context of more than 256."""
    factors = {"long_factor": [1.0 + 0.4 * n for n in range(16)], "short_factor": [1.0 + 0.05 * n for n in range(16)]}
    return _phi3(
        folder,
        rope_parameters={"rope_type": "longrope", "rope_theta": 1e4, **factors},
        original_max_position_embeddings=256,
        max_position_embeddings=1024,
    )


def _phi3(folder: Path, **settings: Any) -> Path:
    tokenizer = phi3_tokenizer()
    sizes = {**SIZES, **LAYERS, **settings}
    config = Phi3Config(**sizes, vocab_size=len(tokenizer) + 5, bos_token_id=1, eos_token_id=2, pad_token_id=None)
    stops = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|assistant|>", "<|end|>"])
    return save(Phi3ForCausalLM, config, tokenizer, folder, stops=stops)


FAMILIES = {
    "llama2": Family(llama2, INST),
    "llama3": Family(llama3, CHATML),
    "smollm2": Family(smollm2, CHATML),
    "mistral": Family(mistral, INST),
    "qwen2": Family(qwen2, CHATML),
    "qwen2_yarn": Family(qwen2_yarn, CHATML),
    "qwen3": Family(qwen3, CHATML),
    "gemma2": Family(gemma2, GEMMA),
    "gemma3": Family(gemma3, GEMMA),
    "phi3": Family(phi3, PHI3),
    "phi3_long": Family(phi3_long, PHI3),
}


def qwen_tokenizer() -> Any:
    return bpe_tokenizer(*_split(QWEN2_SPLIT), normalizer=normalizers.NFC())


def bpe_tokenizer(*steps: Any, normalizer: Any = None, ignore_merges: bool = False) -> Any:
    """Byte-level BPE with ChatML's tokens."""
    bpe = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if normalizer is not None:
        bpe.normalizer = normalizer
    bpe.pre_tokenizer = pre_tokenizers.Sequence(list(steps))
    bpe.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        LINES, trainers.BpeTrainer(vocab_size=448, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=special[2], pad_token=special[0])


def _split(expression: str) -> tuple[Any, Any]:
    split = pre_tokenizers.Split(Regex(expression), "isolated")
    return split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def spm_tokenizer() -> Any:
    """SentencePiece as transformers' LlamaTokenizer writes it."""
    vocab, merges = _sentencepiece(["<unk>", "<s>", "</s>"])
    return LlamaTokenizer(vocab=vocab, merges=merges, add_bos_token=True)


def phi3_tokenizer() -> Any:
    """As above, with Phi-3's tokens, most of which take the spaces behind them."""
    vocab, merges = _sentencepiece(["<unk>", "<s>", "</s>"])
    end = AddedToken("<|endoftext|>", special=True, normalized=False)
    tokenizer = LlamaTokenizer(vocab=vocab, merges=merges, add_bos_token=False, eos_token=end, pad_token=end)
    turns = ["</s>", "<|assistant|>", "<|placeholder1|>", "<|system|>", "<|end|>", "<|user|>"]
    tokenizer.add_tokens([AddedToken(text, rstrip=True, special=True, normalized=False) for text in turns])
    return tokenizer


def gemma_tokenizer() -> Any:
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    vocab, merges = _sentencepiece([*special, "<start_of_turn>", "<end_of_turn>", "<unused0>"])
    tokenizer = GemmaTokenizer(vocab=vocab, merges=merges, add_bos_token=True)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<start_of_turn>", "<end_of_turn>"]})
    tokenizer.add_tokens(["\n\n"])
    return tokenizer


def load_hf(folder: Path) -> Any:
    """The model of `folder` in fp32, ready for comparison."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def save(model_class: Any, config: Any, tokenizer: Any, folder: Path, *, stops: list[int]) -> Path:
    """A model of `config` with random weights, large enough that a mistake shows, and its tokenizer in `folder`."""
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

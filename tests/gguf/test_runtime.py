"""llama.cpp computes what the model computes, and its failures are ours to tell."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from llmkit.answers import Answer, Decoding, Store
from llmkit.errors import DataError, MachineError, UsageError
from llmkit.gguf import runtime
from llmkit.gguf.convert import export
from llmkit.gguf.runtime import LlamaServer, slots_for

from .conftest import LINES, load_hf

FAMILIES = ("llama3", "mistral", "gemma3")
TOLERANCE = {"llama3": 1e-4, "mistral": 1e-4, "gemma3": 1e-2}


@pytest.fixture(scope="module")
def servers(exported: Callable[..., Path]) -> Iterator[Callable[[str], LlamaServer]]:
    """`servers("gemma3")`: the f32 file, loaded once."""
    running: dict[str, LlamaServer] = {}

    def serve(family: str) -> LlamaServer:
        if family not in running:
            running[family] = LlamaServer(exported(family, "f32"), threads=1, context=256, exact_attention=True).__enter__()
        return running[family]

    yield serve
    for server in running.values():
        server.__exit__(None, None, None)


@pytest.mark.parametrize("length", [1, 7, 90])  # 90: beyond Gemma's window and Llama 3's original context
@pytest.mark.parametrize("family", FAMILIES)
def test_next_token_probabilities_are_those_of_the_model(
    family: str, length: int, servers: Callable[[str], LlamaServer], model_dirs: Any
) -> None:
    model = load_hf(model_dirs[family][0])
    ids = torch.randint(8, 300, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    with torch.inference_mode():
        expected = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
    found = servers(family).next_log_probabilities(ids, top=model.config.vocab_size)
    assert len(found) == model.config.vocab_size
    difference = max(abs(value - float(expected[index])) for index, value in found.items() if expected[index] > -20)
    assert difference <= TOLERANCE[family]
    assert float(expected.max() - expected.min()) > 1  # else a constant answer would pass


TEXT = st.one_of(
    st.lists(st.sampled_from([*LINES, " ", "\n", "  ", "<|im_end|>", "</s>", "<end_of_turn>", "\n\n", "don't", "123456"])).map(
        "".join
    ),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=60),
)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=100, deadline=None)
@given(text=TEXT)
def test_any_text_has_the_token_ids_of_the_model_s_tokenizer(
    text: str, family: str, servers: Callable[[str], LlamaServer], model_dirs: Any
) -> None:
    tokenizer = _tokenizer(model_dirs[family][0])
    chat = (tokenizer.bos_token or tokenizer.eos_token) + text
    expected = tokenizer(chat, add_special_tokens=False)["input_ids"]
    assert servers(family).tokenize(chat, add_special=False, parse_special=True) == expected


@pytest.mark.parametrize("slots", [1, 2, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_fp32_answers_are_the_same_for_every_number_of_slots(
    slots: int, family: str, exported: Callable[..., Path], servers: Callable[[str], LlamaServer]
) -> None:
    expected = _answers(servers(family))
    with LlamaServer(exported(family, "f32"), threads=1, context=256, slots=slots, exact_attention=True) as server:
        found = _answers(server)
    assert [(one.text, one.tokens, one.stopped) for one in found] == [(one.text, one.tokens, one.stopped) for one in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.log_probability == pytest.approx(other.log_probability, abs=1e-4)


def test_fp32_files_get_several_slots_and_others_one(exported: Callable[..., Path]) -> None:
    assert slots_for(exported("mistral", "f32")) > 1
    assert [slots_for(exported("mistral", kind)) for kind in ("f16", "q8_0")] == [1, 1]


def test_an_answer_s_log_probability_is_the_model_s_own_before_temperature(
    servers: Callable[[str], LlamaServer], model_dirs: Any
) -> None:
    server, model, compared = servers("mistral"), load_hf(model_dirs["mistral"][0]), 0
    for number in range(12):
        chat = [{"role": "user", "content": f"{number} {LINES[number % len(LINES)]}"}]
        prompt = server.tokenize(server.render(chat), add_special=True, parse_special=True)
        with torch.inference_mode():
            expected = float(model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1).max())
        for temperature in (0.0, 1e-4):  # the same token
            [answer] = server.answer_many([chat], decoding=Decoding(1, temperature=temperature), keys=["a"])
            assert answer.tokens == 1
            if answer.log_probability is not None:  # half a character has none
                assert answer.log_probability == pytest.approx(expected, abs=1e-3)
                compared += 1
    assert compared > 2


def test_sampling_is_seeded_by_key_whatever_the_order_and_a_tiny_top_p_is_greedy(servers: Callable[[str], LlamaServer]) -> None:
    server, chat = servers("llama3"), [{"role": "user", "content": LINES[0]}]
    hot = Decoding(12, temperature=1.5, seed=3)
    first, second = (one.text for one in server.answer_many([chat, chat], decoding=hot, keys=["a", "b"]))
    assert first != second
    assert [one.text for one in server.answer_many([chat, chat], decoding=hot, keys=["b", "a"])] == [second, first]
    narrow = Decoding(12, temperature=1.5, top_p=1e-6, seed=3)
    [cold], [greedy] = (server.answer_many([chat], decoding=one, keys=["a"]) for one in (narrow, Decoding(12)))
    assert cold.text == greedy.text
    other = server.answer_many([chat], decoding=replace(hot, seed=4), keys=["a"])[0].text
    assert other != first


def test_a_prompt_beyond_the_context_fails_alone_and_finished_answers_are_kept(
    servers: Callable[[str], LlamaServer], tmp_path: Path
) -> None:
    server, chats = servers("mistral"), [[{"role": "user", "content": text}] for text in ("你好", "long " * 400, "Hello")]
    with Store(tmp_path / "answers.jsonl") as store:
        found = server.answer_many(chats, decoding=Decoding(4), keys=["a", "b", "c"], store=store)
        assert [bool(one.failure) for one in found] == [False, True, False]
        assert "context" in found[1].failure
        assert (store.get("a"), store.get("b"), store.get("c")) == (found[0], None, found[2])
    with Store(tmp_path / "answers.jsonl") as store:
        assert server.answer_many(chats[::2], decoding=Decoding(4), keys=["a", "c"], store=store) == found[::2]


def test_beams_are_refused(servers: Callable[[str], LlamaServer]) -> None:
    with pytest.raises(UsageError, match="beam"):
        servers("mistral").answer_many([], decoding=Decoding(4, beams=2), keys=[])


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs POSIX signals")
def test_a_llama_cpp_that_dies_while_it_answers_is_a_machine_error_and_answers_before_are_kept(
    exported: Callable[..., Path], tmp_path: Path
) -> None:
    chats = [[{"role": "user", "content": f"{number}"}] for number in range(40)]
    with (
        Store(tmp_path / "answers.jsonl") as store,
        LlamaServer(exported("mistral", "f32"), threads=1, context=128, slots=2) as server,
    ):
        assert server._child is not None

        class Killer:
            def advance(self, count: int = 1, text: str = "") -> None:
                if len(store) == 3:
                    os.kill(server._child.pid, signal.SIGKILL)  # type: ignore[union-attr]

        with pytest.raises(MachineError, match="ended"):
            server.answer_many(chats, decoding=Decoding(16), keys=[str(one) for one in range(40)], store=store, bar=Killer())
        assert 3 <= len(store) < 40


def _answers(server: LlamaServer) -> list[Answer]:
    chats = [[{"role": "user", "content": line}] for line in LINES]
    return server.answer_many(chats, decoding=Decoding(24), keys=[str(index) for index in range(len(chats))])


def test_greedy_tokens_are_those_of_the_model(servers: Callable[[str], LlamaServer], model_dirs: Any) -> None:
    model = load_hf(model_dirs["llama3"][0])
    prompt = torch.tensor([[20, 30, 40]])
    with torch.inference_mode():
        expected = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=16, do_sample=False)[0, 3:]
    assert servers("llama3").complete([20, 30, 40], max_tokens=16).tokens == expected.tolist()


@pytest.mark.parametrize("stop", [0, 2])  # eos and eot
def test_an_answer_that_ends_itself_is_told_from_one_cut_short(stop: int, tiny_model: Path, tmp_path: Path) -> None:
    model = load_hf(tiny_model)
    with torch.no_grad():  # whatever the input, the same state; whatever the state, `stop`
        for name, parameter in model.named_parameters():
            if "o_proj" in name or "down_proj" in name or "lm_head" in name:
                parameter.zero_()
        model.model.embed_tokens.weight[:] = 1.0
        model.lm_head.weight[stop] = 1.0
    model.save_pretrained(tmp_path / "model")
    _tokenizer(tiny_model).save_pretrained(tmp_path / "model")
    export(tmp_path / "model", tmp_path / "out.gguf", type="f32", template="", name="", metadata={})
    with LlamaServer(tmp_path / "out.gguf", threads=1, context=64) as server:
        answer = server.complete("Hello", max_tokens=5)
    assert answer.stopped
    assert answer.text == ""


def test_an_answer_of_full_length_has_not_stopped(servers: Callable[[str], LlamaServer]) -> None:
    answer = servers("gemma3").complete("Hello", max_tokens=5)
    assert len(answer.tokens) == 5
    assert not answer.stopped


def test_a_prompt_beyond_the_context_is_a_data_error(servers: Callable[[str], LlamaServer]) -> None:
    with pytest.raises(DataError, match="context"):
        servers("mistral").complete([20] * 300, max_tokens=1)


def test_the_peak_memory_of_the_child_alone_is_told(exported: Callable[..., Path]) -> None:
    ballast = b"x" * (1 << 29)  # the parent's memory must not count
    with LlamaServer(exported("mistral", "q8_0"), threads=1, context=64) as server:
        peak = server.peak_memory_bytes
    assert peak is not None
    assert exported("mistral", "q8_0").stat().st_size < peak < len(ballast)


def test_a_missing_file_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError), LlamaServer(tmp_path / "none.gguf", threads=1, context=64):
        pass


def test_a_file_llama_cpp_cannot_load_is_a_machine_error_with_its_log(exported: Callable[..., Path], tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(exported("mistral", "f32").read_bytes()[:100_000])
    with pytest.raises(MachineError) as caught, LlamaServer(cut, threads=1, context=64):
        pass
    assert "cut.gguf" in caught.value.next
    assert "Traceback" not in caught.value.next


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="needs POSIX signals")
@pytest.mark.parametrize(("sent", "word"), [("SIGSTOP", "no answer"), ("SIGKILL", "ended")])
def test_a_stalled_or_dead_llama_cpp_is_a_machine_error_in_bounded_time(
    sent: str, word: str, exported: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "_CALL_SECONDS", 0.5)
    monkeypatch.setattr(runtime, "_TOKEN_SECONDS", 0.0)
    with LlamaServer(exported("mistral", "f32"), threads=1, context=64) as server:
        assert server._child is not None
        os.kill(server._child.pid, getattr(signal, sent))
        started = time.monotonic()
        with pytest.raises(MachineError, match=word):
            server.complete("Hello", max_tokens=1)
        with pytest.raises(MachineError):
            _ = server.peak_memory_bytes
    assert time.monotonic() - started < 5


def test_llama_cpp_shows_nothing(exported: Callable[..., Path], capfd: pytest.CaptureFixture[str]) -> None:
    with LlamaServer(exported("mistral", "f32"), threads=1, context=64) as server:
        server.complete("Hello", max_tokens=2)
    assert capfd.readouterr() == ("", "")


def test_a_template_that_refuses_the_messages_is_a_data_error(mistral_dir: Path, tmp_path: Path) -> None:
    template = (
        "{% if messages[0]['content'] == 'bad' %}{{ raise_exception('no bad words') }}{% endif %}{{ messages[0]['content'] }}"
    )
    out = tmp_path / "out.gguf"
    export(mistral_dir, out, type="q8_0", template=template, name="x", metadata={})
    with LlamaServer(out, threads=1, context=64) as server:
        assert server.render([{"role": "user", "content": "good"}]).strip() == "good"
        with pytest.raises(DataError, match="no bad words"):
            server.render([{"role": "user", "content": "bad"}])


def _tokenizer(folder: Path) -> Any:
    key = json.dumps(str(folder))
    if key not in _TOKENIZERS:
        _TOKENIZERS[key] = AutoTokenizer.from_pretrained(folder)
    return _TOKENIZERS[key]


_TOKENIZERS: dict[str, Any] = {}

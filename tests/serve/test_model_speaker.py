"""A folder speaks what evaluation measured: the same prompts, the same tokens, the same text."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from llmkit.answers import Decoding
from llmkit.engine import adapted, delta, generate, loading, lora, templates
from llmkit.errors import DataError
from llmkit.serve.model_speaker import ModelSpeaker, Prompts, by_transformers
from llmkit.serve.speaker import Wish
from tests.conftest import EXCHANGES

CHATS = [[{"role": "user", "content": question}] for question, _ in EXCHANGES]
GREEDY = Wish(max_tokens=24, temperature=0.0)


@pytest.fixture(scope="module")
def speaker(tiny_chat: Path) -> Iterator[ModelSpeaker]:
    found = by_transformers(tiny_chat, name="tiny", context=256, parallel=3)
    yield found
    found.close()


def measured(model: Any, folder: Path) -> list[Any]:
    template = templates.resolve("model", folder)
    return generate.answer(model, loading.load_tokenizer(folder), CHATS, template=template, decoding=Decoding(24)).items


def said(speaker: ModelSpeaker, prompt: str, wish: Wish = GREEDY) -> tuple[str, int, str]:
    pieces = list(speaker.speak(prompt, wish))
    assert [piece.finish for piece in pieces[:-1]] == [""] * (len(pieces) - 1)
    return "".join(piece.text for piece in pieces), sum(piece.tokens for piece in pieces), pieces[-1].finish


def test_what_is_served_is_what_evaluation_measures(speaker: ModelSpeaker, tiny_chat: Path) -> None:
    expected = measured(loading.load_model(tiny_chat), tiny_chat)
    tokenizer, template = loading.load_tokenizer(tiny_chat), templates.resolve("model", tiny_chat)
    prompts = [speaker.render(chat) for chat in CHATS]
    assert prompts == [templates.render(chat, tokenizer, template, add_generation_prompt=True) for chat in CHATS]
    ids = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
    assert [Prompts(tiny_chat).ids(prompt) for prompt in prompts] == ids
    with ThreadPoolExecutor(len(prompts)) as pool:
        found = list(pool.map(lambda prompt: said(speaker, prompt), prompts))
    assert [(text, tokens) for text, tokens, _ in found] == [(one.text, one.tokens) for one in expected]
    assert [finish == "stop" for _, _, finish in found] == [one.stopped for one in expected]


def test_an_adapter_over_its_base_speaks_as_it_did_unmerged(tiny_model: Path, tiny_chat: Path, tmp_path: Path) -> None:
    import torch

    wrapped = lora.attach(
        loading.load_model(tiny_model), lora.Shape(rank=4, alpha=8.0), seed=0, precision="fp32", base_ref="tiny"
    )
    for name, weight in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5)
    lora.save(wrapped, tmp_path)
    for path in tiny_chat.iterdir():
        if path.name.startswith(("tokenizer", "chat_template")):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    plain = adapted.by_peft(loading.load_model(tiny_model), [(delta.read(tmp_path), 1.0)])
    expected = [one.text for one in measured(plain, tmp_path)]
    speaker = by_transformers(tmp_path, name="tuned", context=256, parallel=2, base=tiny_model)
    try:
        assert [said(speaker, speaker.render(chat))[0] for chat in CHATS] == expected
    finally:
        speaker.close()
    assert expected != [one.text for one in measured(loading.load_model(tiny_model), tiny_chat)]


def test_lengths_stops_and_the_context_end_an_answer_as_they_should(speaker: ModelSpeaker) -> None:
    prompt = speaker.render(CHATS[1])
    whole = said(speaker, prompt)[0]
    stop = whole[len(whole) // 2 :][:3]
    assert said(speaker, prompt, Wish(max_tokens=3, temperature=0.0))[1:] == (3, "length")
    assert said(speaker, prompt, Wish(max_tokens=24, temperature=0.0, stop=(stop,)))[::2] == (
        whole[: whole.index(stop)],
        "stop",
    )
    with pytest.raises(DataError, match="no room"):
        speaker.speak("long " * 400, GREEDY)
    _, tokens, finish = said(speaker, "Hello", Wish(temperature=0.0))
    assert finish == "stop" or tokens + speaker.count("Hello") == speaker.context


def test_a_model_without_a_template_completes_but_does_not_chat(tiny_model: Path) -> None:
    prompts = Prompts(tiny_model)
    with pytest.raises(DataError, match="no chat template"):
        prompts.render(CHATS[0])
    assert prompts.ids("Hello")


def test_a_plain_text_gets_the_bos_that_the_model_is_used_to_and_a_rendered_one_no_second(tmp_path: Path) -> None:
    from tests.gguf.families import FAMILIES

    family = FAMILIES["gemma3"]
    folder = family.build(tmp_path / "gemma")
    (folder / "chat_template.jinja").write_text(family.template, "utf-8")
    prompts = Prompts(folder)
    bos = prompts.tokenizer.bos_token_id
    chat = prompts.ids(prompts.render(CHATS[0]))
    assert (chat[0], chat.count(bos)) == (bos, 1)
    assert prompts.ids("Hello") == [bos, *prompts.tokenizer("Hello", add_special_tokens=False)["input_ids"]]


@pytest.mark.slow
def test_a_real_model_is_served_as_it_is_measured(smollm2: Path) -> None:
    chats = [
        [{"role": "user", "content": text}] for text in ("What is the capital of France?", "Say 你好 😀 three times.", "Hi")
    ]
    template = templates.resolve("model", smollm2)
    decoding = Decoding(32)
    expected = generate.answer(
        loading.load_model(smollm2), loading.load_tokenizer(smollm2), chats, template=template, decoding=decoding
    ).items
    speaker = by_transformers(smollm2, name="smollm2", context=512, parallel=3)
    try:
        with ThreadPoolExecutor(3) as pool:
            wish = Wish(max_tokens=32, temperature=0.0)
            found = list(pool.map(lambda chat: said(speaker, speaker.render(chat), wish), chats))
    finally:
        speaker.close()
    assert [(text, tokens) for text, tokens, _ in found] == [(one.text, one.tokens) for one in expected]

"""OpenAI's own client against the server."""

import concurrent.futures
from collections.abc import Iterator

import openai
import pytest

from tests.serve.served import Echo, Server, chat, serving


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(Echo(parallel=4), key="sesame") as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.url, api_key="sesame", max_retries=0) as made:
        yield made


def test_it_reads_whole_answers_and_streams(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(**chat("你好 hello END", stop=["END"], max_completion_tokens=100))
    assert whole.choices[0].message.content == "你好 hello "
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage
    chunks = list(client.chat.completions.create(**chat("你好 hello", stream=True, stream_options={"include_usage": True})))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "你好 hello"
    assert chunks[-1].usage
    assert chunks[-1].usage.total_tokens == 16


def test_it_reads_plain_completions_and_models(client: openai.OpenAI) -> None:
    assert client.completions.create(model="echo", prompt="abc", temperature=0).choices[0].text == "abc"
    assert [chunk.choices[0].text for chunk in client.completions.create(model="echo", prompt="a", temperature=0, stream=True)]
    assert [model.id for model in client.models.list()] == ["echo"]
    assert client.models.retrieve("echo").owned_by == "llmkit"


def test_a_stream_can_be_left(client: openai.OpenAI, server: Server) -> None:
    with client.chat.completions.create(**chat("x" * 3000, stream=True)) as stream:
        next(iter(stream))
    assert client.chat.completions.create(**chat("next")).choices[0].message.content == "next"


def test_each_error_is_its_class(client: openai.OpenAI, server: Server) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(**{**chat("x"), "model": "gpt-5"})
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(**chat("x", logprobs=True))
    assert wrong.value.param == "logprobs"
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(**chat("x" * 5000))
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.InternalServerError):
        client.chat.completions.create(**chat("fail"))
    with pytest.raises(openai.APIError, match="the runtime has ended"):
        list(client.chat.completions.create(**chat("fail", stream=True)))
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=server.url, api_key="wrong", max_retries=0).models.list()


def test_32_clients_ask_four_times_each(server: Server) -> None:
    def talk(number: int) -> list[str | None]:
        with openai.OpenAI(base_url=server.url, api_key="sesame", max_retries=0) as one:
            texts = [f"client {number}, question {turn}" for turn in range(4)]
            return [one.chat.completions.create(**chat(text)).choices[0].message.content for text in texts]

    with concurrent.futures.ThreadPoolExecutor(32) as clients:
        for number, answers in enumerate(clients.map(talk, range(32))):
            assert answers == [f"client {number}, question {turn}" for turn in range(4)]
    assert server.speaker.most_running <= 4

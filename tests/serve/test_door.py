"""Who may talk to the server."""

import contextlib

import pytest

from llmkit.errors import MachineError, UsageError
from llmkit.serve.http import listening, running
from llmkit.serve.http.door import is_loopback
from tests.serve.served import Echo, serving


def test_a_server_with_a_key_wants_it_everywhere_but_at_health() -> None:
    with serving(Echo(), key="sesame") as server:
        for headers in ({}, {"Authorization": "Bearer sesam"}, {"Authorization": "sesame"}, {"Authorization": "Bearer sésame"}):
            for path in ("/v1/models", "/metrics", "/v1/nowhere"):
                status, found, answered = server.request(path, headers={k: v.encode("latin-1") for k, v in headers.items()})
                assert (status, found["error"]["code"]) == (401, "invalid_api_key")
                assert answered["www-authenticate"] == "Bearer"
        assert server.request("/v1/models", headers={"Authorization": "Bearer sesame", "Host": "my.name"})[0] == 200
        assert server.request("/health")[0] == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:1234"}, 200),
        ({"Host": "[::1]"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Host": "localhost@evil.example"}, 403),
        ({"Host": "[::1"}, 403),
        ({"Host": ""}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://["}, 403),
        ({"Origin": "http://localhost:3000"}, 200),
    ],
)
def test_without_a_key_only_this_machines_names_and_pages_are_answered(headers: dict[str, str], status: int) -> None:
    with serving(Echo()) as server:
        assert server.request("/v1/models", headers=headers)[0] == status


def test_beyond_this_machine_a_key_is_needed() -> None:
    for host in ("0.0.0.0", "::"):
        with pytest.raises(UsageError, match="needs a key") as caught:
            listening.bind(host, 0, key=None)
        assert caught.value.code == "LK0831"
    listening.bind("0.0.0.0", 0, key="k").close()


def test_a_taken_port_and_a_name_that_is_none_are_told() -> None:
    with listening.bind("127.0.0.1", 0, key=None) as taken:
        with pytest.raises(MachineError) as caught:
            listening.bind("127.0.0.1", taken.getsockname()[1], key=None)
        assert caught.value.code == "LK0830"
    for host in ("", "no such host", "a..b", "http://127.0.0.1"):
        with pytest.raises(UsageError):
            listening.bind(host, 0, key="k")


@pytest.mark.parametrize("key", ["", "two words", "schlüssel", "a\nb"])
def test_what_cannot_be_sent_as_a_key_is_refused(key: str) -> None:
    with pytest.raises(UsageError) as caught:
        running.serve(lambda: contextlib.closing(Echo()), running.Settings(port=0, key=key), ready=print, stop=running.Stop())
    assert caught.value.code == "LK0833"


def test_loopback_is_told_without_a_name_server() -> None:
    assert all(is_loopback(name) for name in ("localhost", "127.0.0.1", "127.9.9.9", "::1"))
    assert not any(is_loopback(name) for name in ("", "0.0.0.0", "::", "10.0.0.1", "localhost.evil.example", "2130706433"))

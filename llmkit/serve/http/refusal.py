"""Requests that get no answer, in OpenAI's shape of an error. Knows HTTP's statuses; nothing of what was asked.

Shape: https://platform.openai.com/docs/guides/error-codes
"""

from collections.abc import Mapping
from typing import Any

from llmkit.errors import DataError, LlmkitError

INVALID = "invalid_request_error"
_SERVER = "server_error"
_NO_ROOM = "LK0807"


class RefusalError(Exception):
    """Why a request is refused: `status` of HTTP, `code` a machine can test, `param` the field at fault, seconds to wait."""

    def __init__(
        self, status: int, message: str, *, code: str | None = None, param: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.retry_after = retry_after

    @property
    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": _type(self.status), "param": self.param, "code": self.code}}

    @property
    def headers(self) -> Mapping[str, str]:
        """A server that goes away keeps no connection."""
        found = {} if self.retry_after is None else {"retry-after": str(self.retry_after)}
        if self.status == 401:
            found["www-authenticate"] = "Bearer"
        if self.code == "draining":
            found["connection"] = "close"
        return found


def unsupported(param: str) -> RefusalError:
    """For a field that would change the answer, if it were honoured."""
    return RefusalError(
        400, f"`{param}` is not supported by this server; leave it out", code="unsupported_parameter", param=param
    )


def too_long(size: str, context: int, *, param: str) -> RefusalError:
    return RefusalError(
        400,
        f"the prompt has {size}, which leaves no room for an answer in this server's context of {context} tokens",
        code="context_length_exceeded",
        param=param,
    )


def of(error: LlmkitError, *, param: str) -> RefusalError:
    """What a runtime raised: the request's own fault (400), or the server's (500)."""
    if isinstance(error, DataError):
        code = "context_length_exceeded" if error.code == _NO_ROOM else "invalid_value"
        return RefusalError(400, error.what, code=code, param=param)
    return RefusalError(500, f"the model failed: {error.what}", code=error.code or None)


def _type(status: int) -> str:
    if status == 429:
        return "rate_limit_error"
    return INVALID if status < 500 else _SERVER

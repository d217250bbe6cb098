"""Which hubs answer, and whether they know who asks. Sends the user's token to its own hub alone, and shows it to no one."""

import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urlsplit

from llmkit import hubs
from llmkit.doctor.finding import Finding

SECONDS = 4.0
_HUB = "https://huggingface.co"
_MODELSCOPE = "https://modelscope.cn"
_PROXIES = ("http", "https", "all", "no")


def proxies(folder: Path) -> Iterator[Finding]:
    found = {name: value for name, value in urllib.request.getproxies().items() if name in _PROXIES}
    if not found:
        return
    shown = ", ".join(f"{name} → {_masked(value)}" for name, value in sorted(found.items()))
    yield Finding("note", "network", f"proxy: {shown}", "downloads go through it; what runs on this machine does not")
    if any(value.startswith("socks") for value in found.values()):
        import importlib.util

        if importlib.util.find_spec("socksio") is None:
            yield Finding(
                "warning", "network", "a SOCKS proxy without its package", "hub downloads fail", "pip install socksio"
            )


def hub_addresses(folder: Path) -> Iterator[Finding]:
    if forbidden := hubs.offline():
        yield Finding(
            "note",
            "network",
            f"{forbidden}: no hub is asked",
            "only models on this disk are found",
            f"unset {forbidden.partition('=')[0]}",
        )
        return
    hub = os.environ.get("HF_ENDPOINT", _HUB).rstrip("/")
    site = os.environ.get("MODELSCOPE_ENDPOINT", _MODELSCOPE).rstrip("/")
    token = _token()
    with ThreadPoolExecutor(2) as executor:
        asked = executor.submit(_status, f"{hub}/api/whoami-v2", token)
        other = executor.submit(_status, f"{site}/api/v1/models", None)
    yield from _hugging_face(hub, asked.result(), token)
    yield _modelscope(site, other.result())


def _hugging_face(hub: str, answer: int | str, token: str | None) -> Iterator[Finding]:
    name = "the Hugging Face hub" if hub == _HUB else f"HF_ENDPOINT {_masked(hub)}"
    if isinstance(answer, str):
        yield Finding(
            "warning",
            "network",
            f"{name} cannot be reached: {answer}",
            "hub models cannot be downloaded; what is on this disk works",
            _remedy(answer, "export HF_ENDPOINT=https://hf-mirror.com (or another mirror), or use modelscope:OWNER/NAME"),
        )
        return
    yield Finding("ok", "network", f"{name} answers")
    if token is None:
        means = "gated and private models, and push, need one"
        yield Finding("note", "network", "no Hugging Face token", means, "hf auth login")
    elif answer == HTTPStatus.UNAUTHORIZED:
        yield Finding(
            "warning", "network", f"{name} does not accept your token", "even public models may be refused", "hf auth login"
        )
    elif answer == HTTPStatus.OK:
        yield Finding("ok", "network", "your Hugging Face token is valid")
    else:
        yield Finding("note", "network", f"whether your token is valid, {name} does not say (HTTP {answer})")


def _modelscope(site: str, answer: int | str) -> Finding:
    if isinstance(answer, str):
        means = "modelscope:OWNER/NAME cannot be downloaded"
        return Finding(
            "note", "network", f"ModelScope cannot be reached: {answer}", means, _remedy(answer, "nothing, unless you use it")
        )
    return Finding("ok", "network", "ModelScope answers")


def _remedy(why: str, otherwise: str) -> str:
    if "certificate" in why.lower():
        return "export SSL_CERT_FILE=/path/to/the/certificates of your network's gateway"
    return otherwise


def _status(url: str, token: str | None) -> int | str:
    """The HTTP status that a server answers with, or why there is none."""
    if urlsplit(url).scheme not in ("http", "https"):
        return "the address does not begin with https://"
    request = urllib.request.Request(url, headers={"User-Agent": "llmkit-doctor"})  # noqa: S310 - checked above
    if token:
        request.add_unredirected_header("Authorization", f"Bearer {token}")  # not to whomever a redirect names
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:  # noqa: S310
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, ValueError) as error:  # ValueError: a token or an address that no header can hold
        why = getattr(error, "reason", error)
        return str(why).splitlines()[0][:200] if str(why) else type(error).__name__


def _token() -> str | None:
    """The user's token, by huggingface_hub's own order: HF_TOKEN, then the file that `hf auth login` wrote."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    given = os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN")
    try:
        given = given or Path(os.environ.get("HF_TOKEN_PATH") or Path(home) / "token").expanduser().read_text("utf-8")
    except (OSError, ValueError):
        return None
    return re.sub(r"\s", "", given) or None


def _masked(address: str) -> str:
    """Without the password that an address may hold."""
    return re.sub(r"//[^/@\s]*@", "//…@", address)


PROBES = (proxies, hub_addresses)

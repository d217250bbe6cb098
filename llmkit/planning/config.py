"""Where a model's config.json comes from: a folder, a file, a GGUF, this disk's hub cache, the hub, llmkit's own copies.

Knows references as recipes spell them. Weights are neither read nor fetched; of a hub, config.json alone.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from llmkit import origin
from llmkit.errors import DataError, MachineError, UsageError
from llmkit.http_call import Caller, LostError

MOST_BYTES = 5_000_000  # of a config.json
_CONFIG = "config.json"
_HUB_SECONDS = 4
FOLDER = Path(__file__).parent / "configs"
# By hub id; an instruct model has its base's sizes.
COPIES = {
    "google/gemma-2-9b": "gemma-2-9b",
    "google/gemma-2-9b-it": "gemma-2-9b",
    "google/gemma-2-27b": "gemma-2-27b",
    "google/gemma-2-27b-it": "gemma-2-27b",
    "google/gemma-3-270m": "gemma-3-270m",
    "google/gemma-3-270m-it": "gemma-3-270m",
    "google/gemma-3-1b-pt": "gemma-3-1b",
    "google/gemma-3-1b-it": "gemma-3-1b",
    "meta-llama/Llama-2-7b-hf": "Llama-2-7b",
    "meta-llama/Llama-2-7b-chat-hf": "Llama-2-7b",
    "meta-llama/Llama-2-13b-hf": "Llama-2-13b",
    "meta-llama/Llama-2-13b-chat-hf": "Llama-2-13b",
    "meta-llama/Llama-2-70b-hf": "Llama-2-70b",
    "meta-llama/Llama-2-70b-chat-hf": "Llama-2-70b",
    "meta-llama/Meta-Llama-3-8B": "Meta-Llama-3-8B",
    "meta-llama/Meta-Llama-3-8B-Instruct": "Meta-Llama-3-8B",
    "mistralai/Mistral-7B-v0.3": "Mistral-7B-v0.3",
    "mistralai/Mistral-7B-Instruct-v0.3": "Mistral-7B-v0.3",
    "microsoft/Phi-3-mini-4k-instruct": "Phi-3-mini-4k-instruct",
    "Qwen/Qwen3-0.6B": "Qwen3-0.6B",
    "Qwen/Qwen3-0.6B-Base": "Qwen3-0.6B",
    "Qwen/Qwen2.5-7B": "Qwen2.5-7B",
    "Qwen/Qwen2.5-7B-Instruct": "Qwen2.5-7B",
    "Qwen/Qwen2.5-Coder-7B": "Qwen2.5-7B",
    "Qwen/Qwen2.5-Coder-7B-Instruct": "Qwen2.5-7B",
}
_DEMOS = {"demo:gemma-3-270m": "gemma-3-270m", "demo:smollm2-135m": "SmolLM2-135M"}


@dataclass(frozen=True)
class Found:
    """A config.json, and where it was found, in words for the user. `here`: so are the weights, as far as is known."""

    raw: Mapping[str, Any]
    where: str
    here: bool = True


def find(reference: str) -> Found:
    """The configuration of the model that `reference` names: what a recipe's `model:` takes, or a config.json itself.

    Raises:
        DataError: a file that is missing, damaged or none.
        UsageError: neither a file nor an id.
        MachineError: a hub's model that is not on this disk, not among llmkit's copies, and out of reach.
    """
    path = Path(reference).expanduser()
    if path.suffix.lower() == ".gguf" and not path.is_dir():
        return Found(_of_gguf(path), str(path))
    if path.suffix.lower() == ".json" and not path.is_dir():
        return Found(read(path), str(path), here=False)
    if path.is_dir():
        return Found(read(path / _CONFIG), str(path / _CONFIG))
    if reference.startswith((".", "/", "~")):
        raise DataError("no such model folder", code="LK0951", where=reference, next="name a folder, a config.json or a .gguf")
    return _named(reference)


def read(path: Path) -> Mapping[str, Any]:
    """Raises DataError where there is no JSON object of a sane size."""
    try:
        if not path.is_file():
            raise DataError(
                "no config.json here", code="LK0951", where=str(path), next="name a model's folder or its config.json"
            )
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"it is larger than {MOST_BYTES // 10**6} MB")
        raw = json.loads(path.read_text("utf-8"))
        if not isinstance(raw, dict):
            raise ValueError("it is no object")
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"this config.json cannot be read: {str(error)[:200]}", code="LK0951", where=str(path), next=_AGAIN
        ) from None
    return raw


_AGAIN = "download it again"


def _of_gguf(path: Path) -> Mapping[str, Any]:
    from llmkit.gguf import read as gguf
    from llmkit.gguf import restored_config

    return restored_config.config(gguf.open_model(path))


def _named(reference: str) -> Found:
    name, _, revision = reference.removeprefix("modelscope:").partition("@")
    if reference in _DEMOS:
        ready = origin.model(reference).ready
        return Found(read(ready.path / _CONFIG), reference) if ready else _copy(_DEMOS[reference], reference)
    if not origin.HUB_ID.fullmatch(name):
        origin.model(reference)  # says what is wrong with it
        raise UsageError(
            "this names no model", code="LK0952", where=reference, next="give OWNER/NAME, a folder or a config.json"
        )
    for way in _WAYS["modelscope" if reference.startswith("modelscope:") else "hub"]:
        for found in way(name, revision):
            return found
    raise MachineError(
        "the config.json of this model is neither on this disk nor within reach",
        code="LK0952",
        where=reference,
        next="download that one file and name it: --model ./config.json; or check the id and the network (llmkit doctor)",
    )


def _hub_cache(name: str, revision: str) -> Iterator[Found]:
    from huggingface_hub import try_to_load_from_cache

    with suppress(OSError, ValueError):
        place = try_to_load_from_cache(name, _CONFIG, revision=revision or "main")
        if isinstance(place, str):
            weights = any(Path(place).parent.glob("*.safetensors"))
            yield Found(read(Path(place)), f"{name}, from the hub's cache on this disk", here=weights)


def _hub(name: str, revision: str) -> Iterator[Found]:
    """One request, tried once: the hub's own client tries for half a minute before it tells that there is no network.

    Where one plain request will not do, because of a proxy or a redirect, that client asks after all.
    """
    from huggingface_hub import constants, hf_hub_download, hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    if constants.HF_HUB_OFFLINE:
        return
    address = urlsplit(hf_hub_url(name, _CONFIG, revision=revision or None))
    reply = None
    with suppress(LostError, UsageError):  # out of reach; a certificate that is not valid
        reply = Caller(address, timeout=_HUB_SECONDS).send("GET", address.path, None, headers=build_hf_headers())
    with suppress(OSError, ValueError, RecursionError, TypeError):  # not there, gated, or no config.json
        if reply and reply.status == HTTPStatus.OK:
            raw = json.loads(reply.body)
            yield Found({**raw}, f"{name}, config.json from the hub", here=False)
        elif getproxies() or (reply and reply.status in range(300, 400)):
            place = hf_hub_download(name, _CONFIG, revision=revision or None, etag_timeout=_HUB_SECONDS)
            yield Found(read(Path(place)), f"{name}, config.json from the hub", here=False)


def _modelscope_cache(name: str, revision: str) -> Iterator[Found]:
    with suppress(MachineError):  # without the extra
        ready = origin.model(f"modelscope:{name}" + (f"@{revision}" if revision else "")).ready
        if ready:
            yield Found(read(ready.path / _CONFIG), f"modelscope:{name}, on this disk")


def _copies(name: str, _: str) -> Iterator[Found]:
    """By the whole id, or, for a mirror under another owner, by the name alone, whose spelling may differ."""
    by_name = {known.partition("/")[2].lower(): copy for known, copy in COPIES.items()}
    copy = COPIES.get(name) or by_name.get(name.partition("/")[2].lower())
    if copy:
        yield _copy(copy, name)


def _copy(copy: str, name: str) -> Found:
    return Found(read(FOLDER / f"{copy}.json"), f"{name}: llmkit's own copy of {copy}'s config.json", here=False)


_Way = Callable[[str, str], Iterator[Found]]
_WAYS: dict[str, tuple[_Way, ...]] = {"hub": (_hub_cache, _hub, _copies), "modelscope": (_modelscope_cache, _copies)}

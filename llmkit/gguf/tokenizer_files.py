"""The JSON files of a model folder that say how text becomes ids. Knows how to read them, and nothing of what they mean."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from llmkit.errors import DataError


@dataclass(frozen=True)
class TokenizerFiles:
    """The parsed files of one model folder; absent ones are empty."""

    folder: Path
    tokenizer: Mapping[str, Any]
    settings: Mapping[str, Any]
    generation: Mapping[str, Any]
    config: Mapping[str, Any]

    @staticmethod
    def read(folder: Path) -> "TokenizerFiles":
        """Raises DataError where tokenizer.json is missing or a file is no JSON object."""
        return TokenizerFiles(
            folder,
            read_json(folder / "tokenizer.json"),
            read_json(folder / "tokenizer_config.json", required=False),
            read_json(folder / "generation_config.json", required=False),
            read_json(folder / "config.json", required=False),
        )

    @property
    def path(self) -> Path:
        """tokenizer.json itself, for errors."""
        return self.folder / "tokenizer.json"

    @contextmanager
    def understood(self) -> Iterator[None]:
        """What goes wrong inside because a file is not made as it should be is a DataError."""
        try:
            yield
        except (LookupError, TypeError, AttributeError, ValueError, OverflowError, RecursionError) as error:
            raise DataError(f"tokenizer.json is damaged: {error!r}"[:300], code="LK0607", where=str(self.folder)) from None


def read_json(path: Path, *, required: bool = True) -> dict[str, Any]:
    """The JSON object in `path`; {} where the file may be and is missing.

    Raises:
        DataError: the file is missing, unreadable or holds something else.
    """
    try:
        value = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        if required:
            raise DataError(f"the model folder has no {path.name}", code="LK0607", where=str(path.parent)) from None
        return {}
    except (OSError, orjson.JSONDecodeError) as error:
        raise DataError(f"cannot read {path.name}: {error}", code="LK0607", where=str(path)) from None
    if not isinstance(value, dict):
        raise DataError(f"{path.name} must hold a JSON object", code="LK0607", where=str(path))
    return value

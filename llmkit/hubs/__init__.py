"""The hubs that models come from and go to. Knows repositories, tokens and what a hub's errors mean; nothing of recipes.

Each hub's module has the same two verbs: `snapshot` brings a repository's files to this disk, `publish` sends some. Whatever
goes wrong there is raised as one of ours, with its remedy; no token is ever part of a message.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmkit.errors import DataError, MachineError, UsageError

# Either forbids both hubs: it says that this machine has no network, or is to use none.
OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
_TRUE = ("1", "ON", "YES", "TRUE")
_PATIENCE = "run it again: what was fetched is kept"
# A signed address lets whoever reads it in; nothing after the question mark tells what went wrong.
_QUERY = re.compile(r"\?[^\s'\"]+")


@dataclass(frozen=True)
class Repo:
    """A repository, and where the user named it: `where` is told in errors. `noun`: model or data set."""

    name: str
    revision: str
    repo_type: str
    noun: str
    where: str


@dataclass(frozen=True)
class Parcel:
    """What is to be published. `files`: path in the repository → a file, or its bytes. `licence`: an SPDX or hub identifier."""

    files: Mapping[str, Path | bytes]
    message: str
    private: bool
    licence: str | None


@dataclass(frozen=True)
class Published:
    """Where it is now; `others`: files that lay in the repository before and that this parcel does not hold."""

    url: str
    others: Sequence[str]


def offline() -> str | None:
    """The variable that forbids the network, as it is set, or None."""
    for name in OFFLINE_VARIABLES:
        if os.environ.get(name, "").upper() in _TRUE:
            return f"{name}={os.environ[name]}"
    return None


def not_here(repo: Repo, fetch: str) -> MachineError:
    """It would have to be downloaded, and that is forbidden. `fetch`: the command that brings it, on another machine."""
    variable = offline() or "HF_HUB_OFFLINE=1"
    return MachineError(
        f"this {repo.noun} is not on this disk, and {variable} forbids downloading it",
        code="LK0350",
        where=repo.where,
        next=f"unset {variable.partition('=')[0]}, bring it here from a machine that has a network ({fetch}), "
        "or name a folder of this disk",
    )


def unknown(repo: Repo, similar: Sequence[str], login: str) -> DataError:
    """There is no such repository, or none that this user may see."""
    hint = f"did you mean {', '.join(similar)}? " if similar else ""
    return DataError(
        f"there is no such {repo.noun} on the hub, or it is private",
        code="LK0351",
        where=repo.where,
        next=f"{hint}check the spelling; for a private one log in ({login})",
    )


def no_revision(repo: Repo) -> DataError:
    return DataError(
        f"the {repo.noun} has no revision {repo.revision}",
        code="LK0352",
        where=repo.where,
        next="name a branch, a tag or a commit after the @, or leave it out",
    )


def gated(repo: Repo, page: str, login: str, *, known: bool) -> MachineError:
    """Its licence must be accepted first. `known`: whether the hub knows who asks."""
    asked = "your account may not read it yet" if known else "the hub must know who you are"
    step = "" if known else f", then log in ({login})"
    return MachineError(
        f"this {repo.noun} is gated: {asked}",
        code="LK0353",
        where=repo.where,
        next=f"accept its licence at {page} in your browser{step}, and run again",
    )


def bad_token(where: str, login: str) -> MachineError:
    return MachineError("the hub does not accept this token", code="LK0354", where=where, next=f"log in again ({login})")


def unreachable(where: str, why: str, remedy: str) -> MachineError:
    return MachineError(
        f"the hub cannot be reached: {why}",
        code="LK0355",
        where=where,
        next=f"check network and proxy (`llmkit doctor` tries them); {remedy}",
    )


def failed(where: str, why: str, next: str = _PATIENCE) -> MachineError:
    """The hub answered, and not with what was asked for: it is busy, broken, or no hub."""
    return MachineError(f"the hub did not deliver: {why}", code="LK0356", where=where, next=next)


def no_upload(repo: Repo) -> MachineError:
    return MachineError(f"{offline()} forbids uploading", code="LK0350", where=repo.where, next="unset it, and run again")


def no_token(repo: Repo, remedy: str) -> MachineError:
    return MachineError("uploading needs a token that may write", code="LK0360", where=repo.where, next=remedy)


def may_not_write(repo: Repo, why: str) -> MachineError:
    return MachineError(
        f"this token may not write there: {why}",
        code="LK0361",
        where=repo.where,
        next="name a repository of your own, or use a token with write access",
    )


def public_already(repo: Repo) -> UsageError:
    return UsageError(
        "this repository is there already, and everyone can read it",
        code="LK0362",
        where=repo.where,
        next="make it private on its page, name another, or leave --private out",
    )


def first_line(error: BaseException) -> str:
    """What an error says, on one line and without what is secret in an address."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return _QUERY.sub("", lines[0])[:300] if lines else type(error).__name__

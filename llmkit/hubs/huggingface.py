"""The Hugging Face hub, or a mirror of it that HF_ENDPOINT names. Knows huggingface_hub; nothing of what the files are.

huggingface_hub itself honours HF_ENDPOINT, HF_TOKEN, `hf auth login`, the cache's place and the offline variables. What it
leaves open is how long a connection may take: without a bound here, a hub that accepts and says nothing is waited for for ever.
"""

import difflib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmkit import hubs
from llmkit.errors import LlmkitError, MachineError
from llmkit.hubs import Parcel, Published, Repo

LOGIN = "`hf auth login`, or set HF_TOKEN"
_ELSEWHERE = "or set HF_ENDPOINT to a mirror, use modelscope:OWNER/NAME, or name a folder of this disk"
# Seconds, where huggingface_hub sets none. Writing is bounded by what a slow line needs for one piece of a file.
_BOUNDS = {"connect": 5.0, "read": 30.0, "write": 60.0, "pool": 60.0}
_MOST_NAMES = 200  # of an owner's repositories, looked at for a near miss


def snapshot(repo: Repo, files: Sequence[str], *, local: bool) -> Path | None:
    """The folder of a repository's files that match `files`; None where it is not on this disk and `local` forbids fetching.

    Raises:
        DataError: no such repository or revision.
        MachineError: gated, out of reach, offline, or a hub that fails.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    _bound_connections()
    options = {"repo_type": repo.repo_type, "revision": repo.revision, "allow_patterns": list(files)}
    if local:
        try:
            return Path(snapshot_download(repo.name, local_files_only=True, **options))
        except (LocalEntryNotFoundError, ValueError):
            return None
    if hubs.offline():
        option = " --repo-type dataset" if repo.repo_type == "dataset" else ""
        raise hubs.not_here(repo, f"`hf download {repo.name}{option}`, then copy {_cache()}")
    with _explained(repo):
        return Path(snapshot_download(repo.name, **options))


def publish(repo: Repo, parcel: Parcel) -> Published:
    """Create the repository if there is none, and send everything in one commit: others see all of it or nothing.

    Raises:
        MachineError: no token, one that may not write there, or a connection that was lost.
        UsageError: a private repository was asked for, and it is a public one already.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    _bound_connections()
    if hubs.offline():
        raise hubs.no_upload(repo)
    _require_token(repo)
    api = HfApi(library_name="llmkit")
    with _explained(repo, uploading=True):
        url = api.create_repo(repo.name, repo_type=repo.repo_type, private=parcel.private or None, exist_ok=True)
        there = api.repo_info(repo.name, repo_type=repo.repo_type)
        if parcel.private and not there.private:
            raise hubs.public_already(repo)
        others = sorted({one.rfilename for one in there.siblings or ()} - {*parcel.files, ".gitattributes"})
        api.create_commit(
            repo.name,
            [CommitOperationAdd(path, given) for path, given in parcel.files.items()],
            repo_type=repo.repo_type,
            commit_message=parcel.message,
        )
    return Published(str(url), others)


def _require_token(repo: Repo) -> None:
    """Raises MachineError where the user has given no token."""
    from huggingface_hub import get_token

    if not get_token():
        raise hubs.no_token(repo, f"make one at {endpoint()}/settings/tokens, then log in ({LOGIN})")


def endpoint() -> str:
    """The hub's address, without a slash at its end."""
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


@contextmanager
def _explained(repo: Repo, *, uploading: bool = False) -> Iterator[None]:
    """Whatever huggingface_hub raises inside, as an error of ours."""
    from huggingface_hub import errors

    try:
        yield
    except errors.HfHubHTTPError as error:
        raise _refusal(repo, error, uploading=uploading) from error
    except (errors.HTTPError, errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        cause = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ else error
        if isinstance(cause, errors.HfHubHTTPError):
            raise _refusal(repo, cause, uploading=uploading) from error
        raise _lost(repo, cause, uploading=uploading) from error
    except OSError as error:
        if error.errno and error.filename:  # this disk's, not the hub's
            raise
        raise _lost(repo, error, uploading=uploading) from error
    except (ValueError, RuntimeError, EOFError) as error:
        if isinstance(error, RuntimeError) and uploading:  # what hf_xet raises, and each thread of an upload
            raise _lost(repo, error, uploading=True) from error
        raise hubs.failed(repo.where, hubs.first_line(error), *([_again(repo)] if uploading else [])) from error


def _refusal(repo: Repo, error: Any, *, uploading: bool) -> LlmkitError:
    """What a status that is no success means."""
    from huggingface_hub import get_token

    status, known = int(error.response.status_code), bool(get_token())
    told = error.response.headers.get("X-Error-Message") or error.server_message or hubs.first_line(error)
    if "Invalid credentials" in told or (status == 401 and known and uploading):
        return hubs.bad_token(repo.where, LOGIN)
    if not uploading:
        return _unread(repo, error, f"HTTP {status}, {told}", known=known)
    if status in (401, 403, 404):
        return hubs.may_not_write(repo, told)
    if status in (409, 412):
        return hubs.failed(repo.where, f"someone else changed the repository meanwhile ({told})", "run it again")
    return hubs.failed(repo.where, f"HTTP {status}, {told}", _again(repo))


def _unread(repo: Repo, error: Any, told: str, *, known: bool) -> LlmkitError:
    from huggingface_hub import errors

    if isinstance(error, errors.RevisionNotFoundError):
        return hubs.no_revision(repo)
    if isinstance(error, errors.GatedRepoError) or error.response.status_code == 403:
        return hubs.gated(repo, _page(repo), LOGIN, known=known)
    if isinstance(error, errors.RepositoryNotFoundError) or error.response.status_code in (401, 404):
        return hubs.unknown(repo, _similar(repo), LOGIN)
    return hubs.failed(repo.where, told)


def _lost(repo: Repo, error: BaseException, *, uploading: bool) -> MachineError:
    cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
    why = f"{endpoint()}: {hubs.first_line(cause)}"
    return hubs.unreachable(repo.where, why, _again(repo) if uploading else _ELSEWHERE)


def _again(repo: Repo) -> str:
    return f"run it again: the commit is made last, so {repo.name} is as it was, and what was sent is not sent twice"


def _similar(repo: Repo) -> list[str]:
    """The names most like it: of its owner's repositories, else of those with such a name."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    owner, _, name = repo.name.partition("/")
    api = HfApi()
    search: Callable[..., Any] = api.list_datasets if repo.repo_type == "dataset" else api.list_models
    try:
        found = [one.id for one in search(author=owner, limit=_MOST_NAMES)] or [
            one.id for one in search(search=name, limit=_MOST_NAMES)
        ]
    except (HTTPError, OSError, ValueError):
        return []  # a hint, not worth an error of its own
    return difflib.get_close_matches(repo.name, found, n=3, cutoff=0.75)


def _page(repo: Repo) -> str:
    return f"https://huggingface.co/{'datasets/' if repo.repo_type == 'dataset' else ''}{repo.name}"


def _cache() -> str:
    from huggingface_hub import constants

    return str(constants.HF_HUB_CACHE)


def _bound_connections() -> None:
    """Let no request of huggingface_hub wait without end; those with a bound of their own keep it."""
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils import _http

    def bound(request: Any) -> None:
        own = request.extensions.get("timeout") or {}
        request.extensions["timeout"] = {**_BOUNDS, **{name: value for name, value in own.items() if value is not None}}

    def client() -> Any:
        # The default is no public name, and one built anew would lose what the library checks in its own hooks.
        made = _http.default_client_factory()
        made.event_hooks = {**made.event_hooks, "request": [*made.event_hooks["request"], bound]}
        return made

    set_client_factory(client)

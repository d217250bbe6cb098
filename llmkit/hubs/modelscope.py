"""ModelScope. Knows its client `modelscope_hub`, which the extra brings; nothing of what the files are.

The client honours MODELSCOPE_ENDPOINT, MODELSCOPE_API_TOKEN, MODELSCOPE_CACHE and `ms login`. The package `modelscope` is
not imported: it takes two seconds and adds nothing here.
"""

import importlib.util
import socket
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from llmkit import hubs
from llmkit.errors import MachineError
from llmkit.hubs import Parcel, Published, Repo

LOGIN = "`ms login`, or set MODELSCOPE_API_TOKEN"
SITE = "https://modelscope.cn"
_ELSEWHERE = "or set MODELSCOPE_ENDPOINT, use OWNER/NAME of the Hugging Face hub, or name a folder of this disk"
_AGAIN = "run it again: some files may be there, and what the hub has is not sent twice"
_KNOCK_SECONDS = 5.0
_OF_THE_HUB = (".gitattributes", "configuration.json")  # which it makes itself


def snapshot(repo: Repo, files: Sequence[str], *, local: bool) -> Path | None:
    """The folder of a repository's files that match `files`; None where it is not on this disk and `local` forbids fetching.

    Raises:
        DataError: no such repository.
        MachineError: the extra is missing, gated, out of reach, offline, or a hub that fails.
    """
    _require(repo)
    from modelscope_hub.compat.snapshot_download import snapshot_download
    from modelscope_hub.errors import HubError

    options = {"repo_type": repo.repo_type, "revision": repo.revision, "allow_patterns": list(files)}
    if local:
        try:
            return Path(snapshot_download(repo.name, local_files_only=True, **options))
        except (HubError, OSError, ValueError):
            return None
    if hubs.offline():
        raise hubs.not_here(repo, f"`ms download {repo.name}`")
    _knock(repo, _ELSEWHERE)
    with _explained(repo):
        return Path(snapshot_download(repo.name, **options))


def publish(repo: Repo, parcel: Parcel) -> Published:
    """Create the repository if there is none, and send the files. They arrive in batches, each a commit of its own.

    Raises:
        MachineError: the extra is missing, no token, one that may not write there, or a connection that was lost.
    """
    _require(repo)
    from modelscope_hub import HubApi, Visibility

    if hubs.offline():
        raise hubs.no_upload(repo)
    _knock(repo, _AGAIN)
    api = HubApi()
    with _explained(repo, uploading=True), tempfile.TemporaryDirectory() as scratch:
        api.whoami()
        others: list[str] = []
        if api.repo_exists(repo.name, repo.repo_type):
            there = api.get_repo(repo.name, repo.repo_type)
            if parcel.private and not (there.private or there.visibility == Visibility.PRIVATE):
                raise hubs.public_already(repo)
            listed = {one.path for one in api.list_repo_files(repo.name, repo.repo_type) if one.type != "tree"}
            others = sorted(listed - {*parcel.files, *_OF_THE_HUB})
        else:
            # Its own default would say Apache-2.0 of any model.
            shown = "private" if parcel.private else "public"
            api.create_repo(repo.name, repo.repo_type, visibility=shown, license=parcel.licence or "other")
        _lay_out(parcel, Path(scratch))
        # No cache of what was sent: the hub itself knows each file by its hash.
        message = {"commit_message": parcel.message, "use_cache": False, "disable_tqdm": True}
        api.upload_folder(repo.name, repo.repo_type, scratch, **message)
    return Published(f"{SITE}/{repo.repo_type}s/{repo.name}", others)


def _lay_out(parcel: Parcel, folder: Path) -> None:
    """A folder that holds the parcel alone: the client sends whole folders."""
    for name, given in parcel.files.items():
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(given, bytes):
            place.write_bytes(given)
        else:
            place.symlink_to(given.resolve())


def _require(repo: Repo) -> None:
    if importlib.util.find_spec("modelscope_hub") is None:
        raise MachineError(
            "ModelScope needs an extra", code="LK0907", where=repo.where, next="pip install 'llmkit[modelscope]'"
        )


def _knock(repo: Repo, remedy: str) -> None:
    """Whether anyone is there: the client itself tries for half a minute before it says that there is no network."""
    from modelscope_hub import HubConfig

    if urllib.request.getproxies():  # then the name may mean nothing here
        return
    address = urlsplit(HubConfig().endpoint)
    port = address.port or {"http": 80}.get(address.scheme, 443)
    try:
        socket.create_connection((address.hostname or "", port), timeout=_KNOCK_SECONDS).close()
    except OSError as error:
        raise hubs.unreachable(repo.where, f"{address.geturl()}: {hubs.first_line(error)}", remedy) from error


@contextmanager
def _explained(repo: Repo, *, uploading: bool = False) -> Iterator[None]:
    """Whatever the client raises inside, as an error of ours."""
    from modelscope_hub import errors

    try:
        yield
    except errors.NotExistError as error:
        raise hubs.unknown(repo, [], LOGIN) from error
    except errors.AuthenticationError as error:
        if uploading:
            raise hubs.no_token(repo, f"take yours from {SITE}/my/myaccesstoken, then log in ({LOGIN})") from error
        raise hubs.unknown(repo, [], LOGIN) from error
    except errors.PermissionDeniedError as error:
        if uploading:
            raise hubs.may_not_write(repo, hubs.first_line(error)) from error
        raise hubs.gated(repo, f"{SITE}/{repo.repo_type}s/{repo.name}", LOGIN, known=True) from error
    except errors.NetworkError as error:
        raise hubs.unreachable(repo.where, hubs.first_line(error), _AGAIN if uploading else _ELSEWHERE) from error
    except errors.HubError as error:
        raise hubs.failed(repo.where, hubs.first_line(error), *([_AGAIN] if uploading else [])) from error
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno and error.filename:  # this disk's, not the hub's
            raise
        raise hubs.failed(repo.where, hubs.first_line(error), *([_AGAIN] if uploading else [])) from error

"""What the command line names, as artifacts: ours, or any folder that holds the file which makes it one."""

from pathlib import Path

from llmkit import artifact, origin
from llmkit.artifact import Artifact, Kind
from llmkit.errors import DataError


def here(found: origin.Origin) -> Artifact:
    return found.ready or found.fetch()


def dataset_at(folder: Path) -> Artifact:
    return artifact_at(folder, Kind.DATASET, "train.jsonl" if (folder / "train.jsonl").exists() else "test.jsonl")


def artifact_at(folder: Path, kind: Kind, needs: str, *others: Kind) -> Artifact:
    """An artifact of ours, of this kind or one of the others, or any folder that holds the file which makes it one."""
    known = artifact.load(folder)
    if known:
        return artifact.expect(folder, kind, *others)
    if not (folder / needs).is_file():
        raise DataError(
            f"this is no {kind} folder: it has no {needs}" if folder.is_dir() else f"no such {kind} folder",
            code="LK0112",
            where=str(folder),
        )
    return artifact.foreign(folder, kind, cache_folder=origin.cache_folder())

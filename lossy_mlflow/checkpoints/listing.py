"""Which files a version has on the server, by names that can't lead out of the folder they are put into."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lossy_mlflow.checkpoints.flavor import MLFLOWS_OWN
from lossy_mlflow.checkpoints.lookup import Checkpoint
from lossy_mlflow.errors import LossyError
from lossy_mlflow.tracking.connection import without_password

if TYPE_CHECKING:
    from mlflow.store.artifact.artifact_repo import ArtifactRepository

# A decoder has nine files. A server that lists folders without end must not keep us for ever.
_MOST_ENTRIES = 1000


class DamagedError(LossyError):
    """The version's files are not what was published, or no files that may be taken."""


def files_of(repository: ArtifactRepository, checkpoint: Checkpoint) -> dict[str, int | None]:
    """The sizes of the version's files by path. Raises DamagedError for a list that reaches out of the folder, or has no end."""
    found: dict[str, int | None] = {}
    folders, n_entries = [""], 0
    while folders:
        folder = folders.pop()
        for item in repository.list_artifacts(folder or None):
            n_entries += 1
            if n_entries > _MOST_ENTRIES or not _is_inside(item.path, folder):
                raise _bad_list(checkpoint, f"it lists {item.path[:80]!r}")
            if item.is_dir:
                folders.append(item.path)
            elif posixpath.basename(item.path) != MLFLOWS_OWN:
                found[item.path] = item.file_size
    if both := found.keys() & {above for path in found for above in _above(path)}:
        raise _bad_list(checkpoint, f"it lists {min(both)!r} as a file and as a folder")
    return found


def _is_inside(path: str, folder: str) -> bool:
    """Whether a file of that name lies in that folder, wherever the folder is put."""
    above = f"{folder}/" if folder else ""
    name = path.removeprefix(above)
    return (
        path.startswith(above)
        and name not in ("", ".", "..")
        and name.isprintable()
        and not {"/", "\\"} & set(name)
    )


def _above(path: str) -> Iterator[str]:
    while path := posixpath.dirname(path):
        yield path


def _bad_list(checkpoint: Checkpoint, reason: str) -> DamagedError:
    return DamagedError(
        f"The server's list of the files of {checkpoint.uri} is not one of a decoder: {reason}. Nothing was written.",
        "Tell whoever runs the server; it, or somebody on the way to it, may mean harm.",
    )


@contextmanager
def store_explained(checkpoint: Checkpoint) -> Iterator[None]:
    """What the store of the files raises, other than MLflow's own errors and those of network and disk."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code == "INVALID_PARAMETER_VALUE" and "Invalid path" in str(error):
            raise _bad_list(checkpoint, "a name in it leads out of its folder") from error
        raise
    except (LossyError, OSError):
        raise
    except Exception as error:  # of a store's own client: no keys, or it isn't installed
        raise LossyError(
            f"The files of {checkpoint.uri} lie in {where_they_lie(checkpoint)}, which can't be read from here: {error}",
            "Ask for a server that hands them out itself (mlflow server --serve-artifacts), or for the store's keys.",
        ) from error


def where_they_lie(checkpoint: Checkpoint) -> str:
    """The address of the store's folder, for people to read."""
    from mlflow import MlflowClient

    uri: str = MlflowClient().get_model_version_download_uri(checkpoint.name, str(checkpoint.version))
    return without_password(uri)

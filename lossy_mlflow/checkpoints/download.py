"""`lossy download`: a version's files as a folder of one's own."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from lossy_mlflow.checkpoints.lookup import resolve
from lossy_mlflow.checkpoints.obtain import Progress, Say, obtain
from lossy_mlflow.errors import UsageError


@dataclass(frozen=True, slots=True)
class Download:
    """A version's files in `folder`. `fetched`: whether they came now; else they were there already, and are verified."""

    name: str
    version: int
    uri: str
    files_sha256: str
    folder: str
    fetched: bool


def download(
    reference: str, folder: Path | None = None, say: Say = lambda _: None, progress: Progress | None = None
) -> Download:
    """The files of the version that `reference` means, in `folder`; without one, in NAME-VERSION in the working folder.

    Raises as `resolve` and `obtain` do; UsageError where `folder` is the working folder, which can't be moved into place.
    """
    checkpoint = resolve(reference)
    target = (folder or Path(f"{checkpoint.name}-{checkpoint.version}")).resolve()
    if target == Path.cwd():
        raise UsageError(
            f"{target} is the working folder.",
            f"Name one in it that isn't there yet: -o {shlex.quote(checkpoint.name)}",
        )
    fetched = obtain(checkpoint, target, say=say, progress=progress)
    return Download(
        checkpoint.name,
        checkpoint.version,
        checkpoint.uri,
        checkpoint.files_sha256,
        str(target),
        fetched,
    )

"""Whether the versions in the registry still are what was published: their files fetched, and compared with their tags."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from lossy_mlflow.checkpoints.flavor import weights_sha256
from lossy_mlflow.checkpoints.listing import DamagedError
from lossy_mlflow.checkpoints.lookup import Checkpoint, list_checkpoints, list_names, resolve
from lossy_mlflow.checkpoints.obtain import GoneError, NotOursError, obtain
from lossy_mlflow.checkpoints.reference import parse_reference

OK, DAMAGED, GONE, NOT_OURS = "ok", "damaged", "gone", "not ours"


@dataclass(frozen=True, slots=True)
class Verified:
    """A version, and how its files are: ok, damaged, gone, or not ours. `reason` is '' where they are ok."""

    name: str
    version: int
    state: str
    reason: str

    @property
    def is_lost(self) -> bool:
        """Whether nobody can load it any more, although it was published to be loaded."""
        return self.state in (DAMAGED, GONE)


def versions_to_verify(reference: str | None) -> list[Checkpoint]:
    """The version that `reference` means; all versions of a plain NAME; all there are for None. Raises as `resolve` does."""
    if reference is None:
        return [version for name in list_names() for version in list_checkpoints(name)]
    if parse_reference(reference).is_plain:
        return list_checkpoints(reference)
    return [resolve(reference)]


def verify(
    versions: Iterable[Checkpoint], each: Callable[[Verified], None] = lambda _: None
) -> list[Verified]:
    """How the files of each version are, told to `each` once it is known. One at a time lies in a temporary folder.

    Raises UnreachableError where the server goes away; LossyError where that folder's disk is full.
    """
    found = []
    for checkpoint in versions:
        found.append(Verified(checkpoint.name, checkpoint.version, *_state_of(checkpoint)))
        each(found[-1])
    return found


def _state_of(checkpoint: Checkpoint) -> tuple[str, str]:
    with tempfile.TemporaryDirectory(prefix="lossy-verify-") as scratch:
        folder = Path(scratch, "files")
        try:
            obtain(checkpoint, folder)
        except NotOursError as error:
            return NOT_OURS, error.what
        except GoneError as error:
            return GONE, error.what
        except DamagedError as error:
            return DAMAGED, error.what
        if checkpoint.weights_sha256 not in ("", weights_sha256(folder)):
            return DAMAGED, f"The tag weights_sha256 of {checkpoint.uri} is not the digest of its weights."
    return OK, ""

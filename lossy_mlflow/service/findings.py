"""What `lossy check` can find: each kind with what it means for people and what mends it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

# Into these stores lossy restore puts nothing: they aren't empty.
_FROM_BACKUP = (
    "restore a backup into empty stores beside, and copy them from there (docs/operations.md, Single files)"
)


class Kind(Enum):
    """A kind of finding: its name, why it matters, what mends it, and whether somebody has lost something by it."""

    MISSING = (
        "files missing",
        "it can't be loaded any more, or a training can't go on from it",
        f"{_FROM_BACKUP}    a run's may still wait with whoever trains: lossy outbox status",
        True,
    )
    DAMAGED = (
        "files damaged",
        "they aren't what was stored, and are refused when they are loaded",
        _FROM_BACKUP,
        True,
    )
    NOWHERE = (
        "alias to nowhere",
        "the version that it names is gone: who loads by it gets an error",
        "lossy check --repair removes it; set it anew: lossy promote NAME/VERSION",
        True,
    )
    HALF_MADE = (
        "version half made",
        "whoever made it was cut off; MLflow doesn't load it",
        "delete it: MlflowClient().delete_model_version(NAME, VERSION)",
        True,
    )
    IN_BIN = (
        "files in the bin",
        "a version needs them, and the next `mlflow gc` takes them",
        "of a LoggedModel: lossy check --repair takes it out; of a run: mlflow runs restore --run-id ID",
        True,
    )
    DEAD_RUN = (
        "dead run",
        "it says RUNNING, and nobody works on it",
        "lossy check --repair ends it as FAILED, as lossy runs reconcile does",
        False,
    )
    SILENT_RUN = (
        "silent run",
        "it says RUNNING; plain MLflow has no heartbeats, so that only its age tells",
        'if nobody works on it: MlflowClient().set_terminated(ID, "FAILED")',
        False,
    )
    PROMOTION = (
        "promotion not carried out",
        "it was cut off before its alias had moved",
        "promote again, or leave it: lossy history NAME",
        False,
    )
    NO_VERSION = (
        "model without a version",
        "a training that never came to a checkpoint has left it, or all of its versions were deleted",
        "if nobody needs it: MlflowClient().delete_registered_model(NAME)",
        False,
    )
    RUN_GONE = (
        "version without its run",
        "it loads, but nothing says any more how it was trained",
        "nothing, if it was deleted for good on purpose; else a backup has it, to be read in empty stores beside: lossy restore",
        False,
    )
    SOURCE_GONE = (
        "version without its LoggedModel",
        "it loads, but can't be copied or registered anew from there",
        "nothing, as long as its files are there; a backup has the row, to be read in empty stores beside: lossy restore",
        False,
    )
    HALF_MODEL = (
        "LoggedModel half made",
        "whoever made it was cut off",
        "a decoder of ours: lossy check --repair; of others: MlflowClient().delete_logged_model(ID)",
        False,
    )
    UNUSED = (
        "decoder without a version",
        "no version of any model needs its files: they only take room",
        "lossy check --repair frees them",
        False,
    )
    ORPHANS = (
        "files of nothing",
        "nothing in the database refers to them: they only take room",
        "lossy check --repair frees what MLflow has made; anything else is left for you to look at",
        False,
    )
    UNFINISHED = (
        "upload without an end",
        "its parts take room, and are no file",
        "lossy check --repair frees it",
        False,
    )

    def __init__(self, title: str, matters: str, mend: str, loses: bool) -> None:
        self.title = title
        self.matters = matters
        self.mend = mend
        self.loses = loses


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that isn't as it should be: `what` (a version, a run, a path), and `where` it is, or in which way.

    `key`: what names it for `repair`. `age_s` in seconds, by the clock of the store or of the database.
    """

    kind: str
    what: str
    where: str
    matters: str
    mend: str
    loses: bool
    repairable: bool = False
    n_files: int = 0
    n_bytes: int = 0
    age_s: float | None = None
    key: tuple[str, ...] = ()


def finding(
    kind: Kind,
    what: str,
    where: str = "",
    *,
    repairable: bool = False,
    n_files: int = 0,
    n_bytes: int = 0,
    age_s: float | None = None,
    key: tuple[str, ...] = (),
) -> Finding:
    age = None if age_s is None else round(age_s, 1)
    return Finding(
        kind.title, what, where, kind.matters, kind.mend, kind.loses, repairable, n_files, n_bytes, age, key
    )

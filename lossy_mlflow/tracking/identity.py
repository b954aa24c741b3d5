"""What starting a label means, given the runs it has already. Pure: the same facts, the same answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from lossy_mlflow.errors import ConflictError

HEARTBEAT_EVERY_S = 30
HEARTBEAT_LIMIT_S = 150

# MLflow's states of a run. An open one has not ended, as far as it says.
OPEN_STATES = ("RUNNING", "SCHEDULED")
ENDED_STATES = ("FINISHED", "FAILED", "KILLED")


class Start(Enum):
    """What to do about a label that is started."""

    NEW = "new"
    RESUME = "resume"
    FINISHED = "finished"
    OTHER_TREE = "other tree"
    OTHER_SET = "other set"
    ALIVE_ELSEWHERE = "alive elsewhere"


@dataclass(frozen=True, slots=True)
class KnownRun:
    """What of an earlier run of the label matters. `heartbeat`: seconds since 1970, by the server's clock."""

    run_id: str
    status: str
    hparam_set: str
    hparams_sha256: str
    owner: str
    heartbeat: float

    @property
    def host(self) -> str:
        return self.owner.partition(":")[0]

    def lives(self, now: float) -> bool:
        """Whether a process seems to be at work on it, as far as its state and its heartbeat tell."""
        return self.status in OPEN_STATES and now - self.heartbeat < HEARTBEAT_LIMIT_S


def at_work(doing: str, run: KnownRun, now: float, hint: str) -> ConflictError:
    """That another machine is at work on `run`. `doing`: what, as 'LABEL is being trained'."""
    seconds = max(0, round(now - run.heartbeat))
    return ConflictError(
        f"{doing} on {run.host} (its last heartbeat is {seconds} s old).",
        f"{hint}    (its run is {run.run_id})",
    )


@dataclass(frozen=True, slots=True)
class Decision:
    start: Start
    run: KnownRun | None = None


def decide(
    earlier: Sequence[KnownRun], *, hparam_set: str, sha256: str, overwrite: bool, owner: str, now: float
) -> Decision:
    """What starting the label means. `earlier`: its runs, newest first; only the newest counts.

    `owner` is the lock domain of this process (see `ownership`): the caller holds the label's lock there, so that a run of the
    same domain can't be alive whatever its state says; of another domain only the heartbeat tells.
    """
    if not earlier:
        return Decision(Start.NEW)
    newest = earlier[0]
    if newest.owner != owner and newest.lives(now):
        return Decision(Start.ALIVE_ELSEWHERE, newest)
    if overwrite:
        return Decision(Start.NEW)
    if newest.hparam_set != hparam_set:
        return Decision(Start.OTHER_SET, newest)
    if newest.hparams_sha256 != sha256:
        return Decision(Start.OTHER_TREE, newest)
    if newest.status == "FINISHED":
        return Decision(Start.FINISHED, newest)
    return Decision(Start.RESUME, newest)

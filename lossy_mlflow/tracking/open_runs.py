"""Runs that have not ended, as far as they say: what tells whether anybody works on one. The judgement is pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lossy_mlflow.hparams import MLFLOW_RUN_PARAMETERS
from lossy_mlflow.outbox.target import KEY_TAG
from lossy_mlflow.tracking.identity import ENDED_STATES, HEARTBEAT_LIMIT_S, OPEN_STATES
from lossy_mlflow.tracking.tags import number

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

KINDS = ("train", "evaluate", "import")

# What `mlflow run` has made and no training has come to yet: its environment may be a long download.
ENVIRONMENT_LIMIT_S = 3600


@dataclass(frozen=True, slots=True)
class OpenRun:
    """What of a run tells whether anybody works on it. Times in seconds since 1970, by the server's clock.

    `owner` is a lock domain (see `ownership`). `begun` is False for a run that `mlflow run` has made and no training has come to
    yet. `last_sign`: its last heartbeat; where it has none, its start.
    """

    run_id: str
    label: str
    status: str
    begun: bool
    owner: str
    attempt: str
    last_sign: float
    # The name under which the run is locked where it was started while the server was away.
    outbox_key: str = ""

    @property
    def host(self) -> str:
        return self.owner.partition(":")[0]


def why_dead(
    run: OpenRun, *, now: float, here: str, lock_is_free: bool, older_than: float | None = None
) -> str | None:
    """Why nobody can be at work on `run`; None where somebody is, or may be, or where it has ended.

    `here` is the lock domain of this process, `lock_is_free` whether nobody in it holds the run's lock, which counts for a run of
    that domain alone: a held one lives however old its heartbeat is (an outage may keep it from beating), and one that an attempt
    has left is dead however young. Of any other run its age tells: `older_than` seconds without a sign of life, by default
    HEARTBEAT_LIMIT_S, and ENVIRONMENT_LIMIT_S where the training has not begun.
    """
    if run.status not in OPEN_STATES:
        return None
    age = now - run.last_sign
    if run.owner == here:
        if not lock_is_free:
            return None
        if run.attempt:
            return f"its process on {run.host} has died; its last heartbeat was {age:.0f} s ago"
    if run.begun:
        limit = HEARTBEAT_LIMIT_S if older_than is None else older_than
        return (
            f"no heartbeat for {age:.0f} s, last seen on {run.host or 'an unknown host'}"
            if age >= limit
            else None
        )
    limit = ENVIRONMENT_LIMIT_S if older_than is None else older_than
    # A run that is SCHEDULED may wait in a queue for days.
    if run.status != "RUNNING" or age < limit:
        return None
    return f"`mlflow run` made it {age:.0f} s ago and no training began: its environment failed, most likely"


def open_runs(client: MlflowClient) -> list[Run]:
    """Our runs of every MLflow experiment that have not ended, as far as they say, newest first."""
    from lossy_mlflow.tracking.runs import search_all_runs

    # MLflow's search language has no "or", and lists for run ids alone.
    has_not_ended = " and ".join(f"attributes.status != '{state}'" for state in ENDED_STATES)
    return [run for run in search_all_runs(client, has_not_ended) if is_ours(run)]


def is_ours(run: Run) -> bool:
    return has_our_marks(run.data.tags, run.data.params.keys())


def has_our_marks(tags: Mapping[str, str], params: Collection[str]) -> bool:
    """Whether a run with these tags, and params of these names, is one of ours (and no surplus one)."""
    if "same_as" in tags:
        return False
    # Of our project: MLflow logs all parameters that MLproject declares, and no other project has these.
    made_by_mlflow_run = tags.get("mlflow.source.type") == "PROJECT" and set(params) >= MLFLOW_RUN_PARAMETERS
    return _begun(tags) or made_by_mlflow_run


def open_run(run: Run) -> OpenRun:
    info = run.info
    return open_run_of(info.run_id, info.run_name or "", info.status, info.start_time / 1000, run.data.tags)


def open_run_of(run_id: str, name: str, status: str, started: float, tags: Mapping[str, str]) -> OpenRun:
    """The same from what a run consists of. `started`: seconds since 1970."""
    return OpenRun(
        run_id=run_id,
        label=name,
        status=status,
        begun=_begun(tags),
        owner=tags.get("owner", ""),
        attempt=tags.get("attempt", ""),
        outbox_key=tags.get(KEY_TAG, ""),
        last_sign=number(tags, "heartbeat") or started,
    )


def _begun(tags: Mapping[str, str]) -> bool:
    return tags.get("kind") in KINDS and "label" in tags

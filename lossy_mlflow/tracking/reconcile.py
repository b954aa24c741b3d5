"""Close the runs that say RUNNING although nobody works on them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lossy_mlflow.errors import ConflictError, LossyError, UnreachableError, UsageError
from lossy_mlflow.tracking.connection import connect, explained
from lossy_mlflow.tracking.identity import HEARTBEAT_EVERY_S
from lossy_mlflow.tracking.open_runs import OpenRun, open_run, open_runs, why_dead
from lossy_mlflow.tracking.ownership import lock_domain, run_lock

if TYPE_CHECKING:
    from lossy_mlflow.tracking.connection import Connection

# Below it a run that lives could look dead between two of its heartbeats.
SHORTEST_LIMIT_S = 2 * HEARTBEAT_EVERY_S


@dataclass(frozen=True, slots=True)
class DeadRun:
    """A run that nobody works on. `reason`: how that is known. `closed` is False in a dry run, and where the server refused."""

    label: str
    run_id: str
    host: str
    reason: str
    closed: bool
    refused: str


def reconcile(*, older_than: float | None = None, dry_run: bool = False) -> list[DeadRun]:
    """End as FAILED every run of ours that says it runs and that nobody works on, as `open_runs.why_dead` judges.

    The tag `state_reason` says why. A second call finds nothing more. Raises UsageError for a limit below SHORTEST_LIMIT_S.
    """
    if older_than is not None and older_than < SHORTEST_LIMIT_S:
        raise UsageError(
            f"A run that lives has a heartbeat every {HEARTBEAT_EVERY_S} s: {older_than:g} s without one prove nothing.",
            f"--older-than {SHORTEST_LIMIT_S} or more",
        )
    with explained():
        return close_dead_runs(connect(), older_than, dry_run)


def close_dead_runs_of_this_machine(connection: Connection) -> list[DeadRun]:
    """The same for the runs that were begun here alone: what died without a watcher is found by the next command."""
    return close_dead_runs(connection, everywhere=False)


def close_dead_runs(
    connection: Connection, older_than: float | None = None, dry_run: bool = False, everywhere: bool = True
) -> list[DeadRun]:
    """The same on a server that is connected already; of the runs that were begun here alone, unless `everywhere`."""
    here = lock_domain()
    dead = []
    for run in map(open_run, open_runs(connection.client)):
        if not everywhere and run.owner != here:
            continue
        refused = ""
        try:
            with explained():
                reason = _close(connection, run, here, older_than, dry_run)
        except UnreachableError:
            raise
        except LossyError as error:  # a run of somebody else, which this user may see and not change
            reason, refused = "it could not be closed", error.what
        if reason:
            dead.append(
                DeadRun(run.label, run.run_id, run.host, reason, not dry_run and not refused, refused)
            )
    return dead


def close_dead_run(connection: Connection, run_id: str) -> str | None:
    """End that run as FAILED: why; None where it has ended, or somebody may be at work on it."""
    with explained():
        found = open_run(connection.client.get_run(run_id))
        return _close(connection, found, lock_domain(), None, dry_run=False)


def why_dead_seen_from_here(run: OpenRun, now: float) -> str | None:
    """Why nobody can be at work on `run`, as `reconcile` judges at the server's time `now`; None where somebody may be."""
    here = lock_domain()
    try:
        with _locks(run, here):
            return why_dead(run, now=now, here=here, lock_is_free=run.owner == here)
    except ConflictError:
        return None


@contextmanager
def _locks(run: OpenRun, here: str) -> Iterator[None]:
    """Hold the locks of a run that was begun here. Raises ConflictError where a process of this machine holds one."""
    with ExitStack() as held:
        if run.owner == here:
            for name in {run.run_id, run.outbox_key} - {""}:
                held.enter_context(run_lock(name))
        yield


def _close(
    connection: Connection, found: OpenRun, here: str, older_than: float | None, dry_run: bool
) -> str | None:
    """The reason for which the run is closed; None where it is left alone."""
    client, run_id = connection.client, found.run_id
    with ExitStack() as held:
        try:
            held.enter_context(_locks(found, here))
        except ConflictError:
            return None
        # Read again: it may have been taken up since it was found, here too.
        run = open_run(client.get_run(run_id))
        reason = why_dead(
            run,
            now=connection.now(),
            here=here,
            lock_is_free=found.owner == here,
            older_than=older_than,
        )
        if reason is None or dry_run:
            return reason
        client.set_tag(run_id, "state_reason", f"closed by reconcile: {reason}")
        client.set_terminated(run_id, "FAILED", end_time=int(run.last_sign * 1000))
        if open_run(client.get_run(run_id)).attempt == run.attempt:
            return reason
        # Another machine has taken it up in the same moment, and may have written RUNNING before our FAILED.
        client.set_tag(run_id, "state_reason", "")
        client.update_run(run_id, status="RUNNING")
        return None

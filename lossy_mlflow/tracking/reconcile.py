"""Close the runs that say RUNNING although nobody works on them."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

from lossy_mlflow.errors import ConflictError, LossyError, UnreachableError, UsageError
from lossy_mlflow.tracking.connection import Connection, connect, explained
from lossy_mlflow.tracking.identity import HEARTBEAT_EVERY_S
from lossy_mlflow.tracking.open_runs import OpenRun, open_run, open_runs, why_dead
from lossy_mlflow.tracking.ownership import lock_domain, run_lock

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
        return _close_dead_runs(connect(), older_than, dry_run, everywhere=True)


def close_dead_runs_of_this_machine(connection: Connection) -> list[DeadRun]:
    """The same for the runs that were begun here alone: what died without a watcher is found by the next command."""
    return _close_dead_runs(connection, None, dry_run=False, everywhere=False)


def _close_dead_runs(
    connection: Connection, older_than: float | None, dry_run: bool, everywhere: bool
) -> list[DeadRun]:
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


def _close(
    connection: Connection, found: OpenRun, here: str, older_than: float | None, dry_run: bool
) -> str | None:
    """The reason for which the run is closed; None where it is left alone."""
    client, run_id = connection.client, found.run_id
    with ExitStack() as held:
        is_here = found.owner == here
        if is_here:
            try:
                for name in {run_id, found.outbox_key} - {""}:
                    held.enter_context(run_lock(name))
            except ConflictError:
                return None
        # Read again: it may have been taken up since it was found, here too.
        run = open_run(client.get_run(run_id))
        reason = why_dead(run, now=connection.now(), here=here, lock_is_free=is_here, older_than=older_than)
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

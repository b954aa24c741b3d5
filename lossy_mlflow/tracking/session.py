"""A run while it runs: RUNNING with a heartbeat and a watcher, then the state that is true."""

from __future__ import annotations

import contextlib
import signal
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import mlflow
from mlflow.exceptions import MlflowException

from lossy_mlflow.errors import ConflictError, LossyError
from lossy_mlflow.tracking.connection import Connection, without_password
from lossy_mlflow.tracking.ownership import heartbeat, lock_domain, run_lock
from lossy_mlflow.tracking.runs import set_tags
from lossy_mlflow.tracking.watcher import Watcher

_REASON_LENGTH = 500


class StoppedError(LossyError):
    """Somebody asked the process to stop, by the signal of this name; its run is KILLED."""

    def __init__(self, signal_name: str, what: str, hint: str) -> None:
        super().__init__(what, hint)
        # As a shell counts it: 130 after Ctrl-C, 143 after SIGTERM.
        self.exit_code = 128 + signal.Signals[signal_name].value


@dataclass(frozen=True, slots=True)
class Attempt:
    """One process's work on a run. A later attempt, on another machine, takes the run away from it."""

    connection: Connection
    run_id: str
    name: str

    def is_current(self) -> bool:
        return self.connection.client.get_run(self.run_id).data.tags.get("attempt") == self.name

    def must_be_current(self) -> None:
        """Raises ConflictError where another attempt has taken the run: nothing more may be published for it."""
        tags = self.connection.client.get_run(self.run_id).data.tags
        if tags.get("attempt") != self.name:
            host = tags.get("owner", "").partition(":")[0]
            raise ConflictError(
                f"The run {self.run_id} was taken up on {host} meanwhile: this attempt ends here.",
                "Wait for that one, or train another copy: --e-name NAME",
            )


@contextmanager
def running(connection: Connection, run_id: str) -> Iterator[Attempt]:
    """The run is RUNNING, and MLflow's active run, for the length of the block; it ends as the block does.

    FINISHED; KILLED, if the block raises StoppedError or KeyboardInterrupt; FAILED, if it raises anything else, with the
    reason in the tag `state_reason`. If the process dies, its watcher ends the run as FAILED. An attempt that another one has
    superseded leaves the run's state alone. Raises ConflictError where another process of this machine has the run.
    """
    attempt = Attempt(connection, run_id, uuid.uuid4().hex)
    with run_lock(run_id), Watcher(run_id, attempt.name, connection.uri) as watcher:
        outer = mlflow.active_run()
        try:
            _begin(attempt)
            with heartbeat(lambda: connection.client.set_tag(run_id, "heartbeat", f"{connection.now():.0f}")):
                yield attempt
        except BaseException as error:
            stopped = isinstance(error, (StoppedError, KeyboardInterrupt))
            reason = error.what if isinstance(error, LossyError) else f"{type(error).__name__}: {error}"
            _end("KILLED" if stopped else "FAILED", attempt, reason, outer)
            watcher.run_has_ended()
            raise
        _end("FINISHED", attempt, "", outer)
        watcher.run_has_ended()


def _begin(attempt: Attempt) -> None:
    connection, run_id = attempt.connection, attempt.run_id
    now = f"{connection.now():.0f}"
    tags = {"attempt": attempt.name, "owner": lock_domain(), "heartbeat": now, "state_reason": ""}
    set_tags(connection.client, run_id, tags)
    # Of two machines that take a run up at once, the one that wrote last has it.
    attempt.must_be_current()
    set_by_caller = getattr(mlflow.tracking.fluent, "_active_experiment_id", None)
    if set_by_caller is not None:
        # MLflow refuses to start a run of another experiment than the one that was set.
        mlflow.set_experiment(experiment_id=connection.client.get_run(run_id).info.experiment_id)
    try:
        mlflow.start_run(run_id=run_id, nested=mlflow.active_run() is not None, log_system_metrics=True)
    finally:
        if set_by_caller is not None:
            # What was set on another server, before the tracking URI changed, is unknown here.
            with contextlib.suppress(MlflowException):
                mlflow.set_experiment(experiment_id=set_by_caller)


def _end(status: str, attempt: Attempt, reason: str, outer: mlflow.ActiveRun | None) -> None:
    client, run_id = attempt.connection.client, attempt.run_id
    current = attempt.is_current()
    if reason and current:
        client.set_tag(run_id, "state_reason", without_password(reason)[:_REASON_LENGTH])
    final = status if current else client.get_run(run_id).info.status
    # The block may have opened runs of its own, or ended ours: what the caller had open before stays open.
    kept = outer and outer.info.run_id
    while (active := mlflow.active_run()) is not None and active.info.run_id != kept:
        mlflow.end_run(final)
    if client.get_run(run_id).info.status != final:
        client.set_terminated(run_id, final)

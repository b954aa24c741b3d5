"""A run while it runs: RUNNING with a heartbeat and a watcher, then the state that is true."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import mlflow

from lossy_mlflow.errors import LossyError
from lossy_mlflow.tracking.connection import Connection, without_password
from lossy_mlflow.tracking.ownership import heartbeat
from lossy_mlflow.tracking.runs import set_tags
from lossy_mlflow.tracking.watcher import Watcher

_REASON_LENGTH = 500


class StoppedError(LossyError):
    """Somebody asked the process to stop, by the signal of this name; its run is KILLED."""

    def __init__(self, signal_name: str, what: str, hint: str) -> None:
        super().__init__(what, hint)
        # As a shell counts it: 130 after Ctrl-C, 143 after SIGTERM.
        self.exit_code = 128 + signal.Signals[signal_name].value


@contextmanager
def running(connection: Connection, run_id: str, owner: str) -> Iterator[None]:
    """The run is RUNNING, and MLflow's active run, for the length of the block; it ends as the block does.

    FINISHED; KILLED, if the block raises StoppedError or KeyboardInterrupt; FAILED, if it raises anything else, with the
    reason in the tag `state_reason`. If the process dies, its watcher ends the run as FAILED.
    """
    client = connection.client

    def beat() -> None:
        client.set_tag(run_id, "heartbeat", f"{connection.now():.0f}")

    with Watcher(run_id, connection.uri), heartbeat(beat):
        set_tags(client, run_id, {"owner": owner, "heartbeat": f"{connection.now():.0f}", "state_reason": ""})
        _activate(connection, run_id)
        try:
            yield
        except BaseException as error:
            stopped = isinstance(error, (StoppedError, KeyboardInterrupt))
            reason = error.what if isinstance(error, LossyError) else f"{type(error).__name__}: {error}"
            _end("KILLED" if stopped else "FAILED", run_id, reason, connection)
            raise
        _end("FINISHED", run_id, "", connection)


def _activate(connection: Connection, run_id: str) -> None:
    """Make the run MLflow's active one, below any that the caller has open, whatever experiment the caller has set."""
    set_by_caller = getattr(mlflow.tracking.fluent, "_active_experiment_id", None)
    if set_by_caller is not None:
        # MLflow refuses to start a run of another experiment than the one that was set.
        mlflow.set_experiment(experiment_id=connection.client.get_run(run_id).info.experiment_id)
    try:
        mlflow.start_run(run_id=run_id, nested=mlflow.active_run() is not None, log_system_metrics=True)
    finally:
        if set_by_caller is not None:
            mlflow.set_experiment(experiment_id=set_by_caller)


def _end(status: str, run_id: str, reason: str, connection: Connection) -> None:
    # The block may have ended the active run itself, or left one of its own: the state is set by id whatever is active.
    try:
        if reason:
            connection.client.set_tag(run_id, "state_reason", without_password(reason)[:_REASON_LENGTH])
    finally:
        while (active := mlflow.active_run()) is not None and active.info.run_id != run_id:
            mlflow.end_run(status)
        if active is not None:
            mlflow.end_run(status)
        else:
            connection.client.set_terminated(run_id, status)

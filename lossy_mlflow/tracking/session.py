"""A run while it runs: RUNNING with a heartbeat and a watcher, then the state that is true."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import mlflow
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from lossy_mlflow.errors import ConflictError, UnreachableError
from lossy_mlflow.tracking.connection import Connection
from lossy_mlflow.tracking.ending import state_and_reason
from lossy_mlflow.tracking.ownership import heartbeat, lock_domain, run_lock
from lossy_mlflow.tracking.runs import set_tags
from lossy_mlflow.tracking.watcher import Watcher

# Whoever closes a run that looks dead holds its lock for as long as two or three calls to the server take.
_WAIT_FOR_LOCK_S = 5


@dataclass(frozen=True, slots=True)
class Attempt:
    """One process's work on a run. A later attempt, on another machine, takes the run away from it."""

    connection: Connection
    run_id: str
    name: str
    _taken_by: list[str] = field(default_factory=list)

    def beat(self) -> None:
        """Say that this attempt lives; and open its run again where somebody has taken it for dead meanwhile."""
        client, run_id = self.connection.client, self.run_id
        # Whoever judges the heartbeat does so by the server's clock: one that has never answered yet may answer now.
        with contextlib.suppress(UnreachableError):
            self.connection.clock.look()
        # First the heartbeat: from then on nobody closes it.
        client.set_tag(run_id, "heartbeat", f"{self.connection.now():.0f}")
        run = client.get_run(run_id)
        self._taken_by[:] = self.taker(run)
        if run.info.status != "RUNNING" and not self._taken_by:
            client.set_tag(run_id, "state_reason", "")
            client.update_run(run_id, status="RUNNING")

    def must_be_current(self) -> None:
        """Raises ConflictError where another attempt has taken the run: nothing more may be published for it.

        By way of an outbox the server isn't asked, which a training must not wait for: the last heartbeat has told, and what is
        logged until then the outbox keeps apart.
        """
        if self.connection.outbox is None:
            self._taken_by[:] = self.taker(self.connection.client.get_run(self.run_id))
        if self._taken_by:
            raise ConflictError(
                f"The run {self.run_id} was taken up on {self._taken_by[0]} meanwhile: this attempt ends here.",
                "Wait for that one, or train another copy: --e-name NAME",
            )

    def taker(self, run: Run) -> list[str]:
        """The host that has taken the run from this attempt, if one has."""
        tags = run.data.tags
        return [] if tags.get("attempt") == self.name else [tags.get("owner", "").partition(":")[0]]


@contextmanager
def running(connection: Connection, run_id: str) -> Iterator[Attempt]:
    """The run is RUNNING, and MLflow's active run, for the length of the block; it ends as the block does.

    FINISHED; KILLED, if the block raises StoppedError or KeyboardInterrupt; FAILED, if it raises anything else, with the
    reason in the tag `state_reason`. If the process dies, its watcher ends the run as FAILED. An attempt that another one has
    superseded leaves the run's state alone. Raises ConflictError where another process of this machine has the run.
    """
    attempt = Attempt(connection, run_id, uuid.uuid4().hex)
    with run_lock(run_id, _WAIT_FOR_LOCK_S), _watched(attempt) as has_ended:
        outer = mlflow.active_run()
        try:
            _begin(attempt)
            with heartbeat(attempt.beat):
                yield attempt
        except BaseException as error:
            _end(*state_and_reason(error), attempt, outer)
            has_ended()
            raise
        _end("FINISHED", "", attempt, outer)
        has_ended()


@contextmanager
def _watched(attempt: Attempt) -> Iterator[Callable[[], None]]:
    """If the process dies before what this yields is called, its run ends as FAILED: an outbox's sender sees to that as well."""
    if attempt.connection.outbox:
        yield lambda: None
    else:
        with Watcher(attempt.run_id, attempt.name, attempt.connection.uri) as watcher:
            yield watcher.run_has_ended


def _begin(attempt: Attempt) -> None:
    connection, run_id = attempt.connection, attempt.run_id
    now = f"{connection.now():.0f}"
    tags = {"attempt": attempt.name, "owner": lock_domain(), "heartbeat": now, "state_reason": ""}
    if connection.outbox:
        before = connection.client.get_run(run_id).data.tags.get("attempt", "")
        connection.outbox.journal(run_id).take("attempt", before, attempt.name)
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


def _end(status: str, reason: str, attempt: Attempt, outer: mlflow.ActiveRun | None) -> None:
    client, run_id = attempt.connection.client, attempt.run_id
    superseded = False
    # An outbox keeps apart what a superseded attempt says of itself.
    if attempt.connection.outbox is None:
        run = client.get_run(run_id)
        superseded = bool(attempt.taker(run))
        status = run.info.status if superseded else status
    if not superseded:
        client.set_tag(run_id, "state_reason", reason)
    # The block may have opened runs of its own, or ended ours: what the caller had open before stays open.
    kept, ended = outer and outer.info.run_id, superseded
    while (active := mlflow.active_run()) is not None and active.info.run_id != kept:
        ended = ended or active.info.run_id == run_id
        mlflow.end_run(status)
    if not ended:
        client.set_terminated(run_id, status)

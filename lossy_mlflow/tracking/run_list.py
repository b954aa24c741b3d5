"""The runs there are, as a person wants to see them: what each one is at, and whether it lives."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mlflow.entities import Run

from lossy_mlflow.tracking.connection import connect, explained
from lossy_mlflow.tracking.identity import HEARTBEAT_LIMIT_S, OPEN_STATES
from lossy_mlflow.tracking.open_runs import is_ours, open_run, open_runs
from lossy_mlflow.tracking.reconcile import DeadRun, close_dead_runs_of_this_machine
from lossy_mlflow.tracking.runs import search_all_runs
from lossy_mlflow.tracking.tags import number

NEWEST = 20


@dataclass(frozen=True, slots=True)
class ListedRun:
    """A run at a glance. Ages in seconds, by the server's clock; `val_loss` in nats per image; None: nobody has recorded it.

    `note` is 'silent' where a run says that it runs and its heartbeat is too old, 'not begun' where `mlflow run` has made it
    and no training has come to it.
    """

    label: str
    kind: str
    state: str
    note: str
    age_s: float
    heartbeat_age_s: float | None
    epoch: int | None
    val_loss: float | None
    host: str
    run_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class RunList:
    """`runs`: newest first. `closed`: those of this machine that were found dead on the way, and closed."""

    runs: list[ListedRun]
    closed: list[DeadRun]


def list_runs(everything: bool = False) -> RunList:
    """The NEWEST newest runs of ours and all that have not ended, or `everything`, of all MLflow experiments.

    Before they are listed, runs of this machine whose process has died are closed as FAILED.
    """
    with explained():
        connection = connect()
        closed = close_dead_runs_of_this_machine(connection)
        limit = None if everything else NEWEST
        newest = search_all_runs(connection.client, "tags.kind LIKE '%' and tags.label LIKE '%'", limit)
        found = {run.info.run_id: run for run in [*newest, *open_runs(connection.client)] if is_ours(run)}
        runs = sorted(found.values(), key=lambda run: (-run.info.start_time, run.info.run_id))
        return RunList([_listed(run, connection.now()) for run in runs], closed)


def _listed(run: Run, now: float) -> ListedRun:
    tags = run.data.tags
    # A run's own mapping of metrics has no steps; its protocol buffer has.
    losses = {metric.key: metric for metric in run.data.to_proto().metrics}
    loss = losses.get("val_loss")
    heartbeat = number(tags, "heartbeat")
    return ListedRun(
        label=run.info.run_name or "",
        kind=tags.get("kind", ""),
        state=run.info.status,
        note=_note(run, now),
        age_s=round(now - run.info.start_time / 1000, 1),
        heartbeat_age_s=None if heartbeat is None else round(now - heartbeat, 1),
        epoch=loss.step if loss else None,
        val_loss=loss.value if loss and math.isfinite(loss.value) else None,
        host=open_run(run).host,
        run_id=run.info.run_id,
        reason=tags.get("state_reason", ""),
    )


def _note(run: Run, now: float) -> str:
    seen = open_run(run)
    if seen.status not in OPEN_STATES:
        return ""
    if not seen.begun:
        return "not begun"
    return "silent" if now - seen.last_sign >= HEARTBEAT_LIMIT_S else ""

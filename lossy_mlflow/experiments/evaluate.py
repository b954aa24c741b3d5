"""Evaluate a decoder: from a reference, or a named set, to a run that holds its rate-distortion curve."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lossy_mlflow.experiments.evaluation_subject import Plan, identity, plan
from lossy_mlflow.user_code import load_user_code

if TYPE_CHECKING:
    from pathlib import Path

    from mlflow.entities import Run

    from lossy_mlflow.experiments.curve_record import CurveRecord
    from lossy_mlflow.experiments.evaluation_progress import EvaluationProgress
    from lossy_mlflow.tracking.connection import Connection

log = logging.getLogger("lossy_mlflow")


@dataclass(frozen=True, slots=True)
class EvaluateResult:
    """A finished evaluation. `started`: new, resumed or finished (it was there already)."""

    label: str
    started: str
    run_id: str
    experiment: str
    tracking_uri: str
    delivered: bool
    curve: CurveRecord


def evaluate(
    name: str,
    *,
    data: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    quick: bool = False,
    log_likelihood: bool = False,
    user_code: str | None = None,
    device: str = "auto",
    data_dir: str | None = None,
    progress: Callable[[EvaluationProgress], None] | None = None,
    run_id: str | None = None,
) -> EvaluateResult:
    """The rate-distortion curve of the decoder that `name` means, logged as a run of kind `evaluate`.

    `name`: a reference to a version, which is evaluated by the `rd` of the set that it was trained from; or a set that evaluates.
    The same decoder, images and `rd` are evaluated once: a finished evaluation is reported, one that was stopped goes on. `data`:
    test, train or simulate, in the place of `rd.data`. `quick`: few images and steps. `log_likelihood`: log p(x) besides.
    `run_id`: a run that was made for it beforehand, as `mlflow run` does.

    Raises NotFoundError for an unknown set or version, UsageError for an override that doesn't fit, ConflictError where the same
    evaluation runs elsewhere.
    """
    from lossy_mlflow.tracking.connection import connected_for_logging, explained

    file = load_user_code(user_code)
    overrides = dict(overrides or {})
    if data is not None:
        overrides["rd.data"] = data
    if log_likelihood:
        overrides["rd.log_likelihood"] = True
    with explained(), connected_for_logging() as connection:
        planned = plan(connection, name, overrides, quick)
        return _evaluate(connection, planned, file, device, data_dir, progress, run_id)


def _evaluate(
    connection: Connection,
    planned: Plan,
    user_code: Path | None,
    device: str,
    data_dir: str | None,
    progress: Callable[[EvaluationProgress], None] | None,
    made_for_us: str | None,
) -> EvaluateResult:
    from lossy_mlflow.experiments.curve_record import read_record
    from lossy_mlflow.experiments.evaluation_subject import subject_of
    from lossy_mlflow.experiments.evaluation_work import carry_out
    from lossy_mlflow.tracking.connection import without_password
    from lossy_mlflow.tracking.ownership import label_lock
    from lossy_mlflow.tracking.runs import end_surplus_run

    subject = subject_of(connection, planned, device, data_dir)
    sha256 = identity(planned.checkpoint.weights_sha256, subject.data_digest, planned.tree, planned.quick)
    with label_lock(connection.uri, planned.label, evaluation=sha256[:16]):
        earlier = _earlier(connection, planned.label, sha256)
        if earlier and made_for_us:
            end_surplus_run(connection.client, made_for_us, earlier.info.run_id)
        started = "new" if earlier is None else "resumed"
        if earlier is not None and earlier.info.status == "FINISHED":
            started, run_id = "finished", earlier.info.run_id
            curve = read_record(connection.client, run_id)
        else:
            resumed = earlier.info.run_id if earlier else None
            run_id, curve = carry_out(
                connection, planned, subject, sha256, user_code, progress, resumed, made_for_us
            )
        delivered, run_id = connection.delivered(run_id)
        run = connection.client.get_run(run_id)
        return EvaluateResult(
            planned.label,
            started,
            run_id,
            connection.client.get_experiment(run.info.experiment_id).name,
            without_password(connection.uri),
            delivered,
            curve,
        )


def _earlier(connection: Connection, label: str, sha256: str) -> Run | None:
    """The newest run of this very evaluation. Raises ConflictError where it lives on another machine."""
    from lossy_mlflow.tracking.identity import at_work
    from lossy_mlflow.tracking.ownership import lock_domain
    from lossy_mlflow.tracking.runs import known_run, quoted, search_all_runs

    found = search_all_runs(
        connection.client, f"tags.evaluation_sha256 = {quoted(sha256)} and tags.kind = 'evaluate'"
    )
    found = [run for run in found if "same_as" not in run.data.tags and run.data.tags.get("label") == label]
    if not found:
        return None
    newest = known_run(found[0])
    if newest.owner != lock_domain() and newest.lives(connection.now()):
        raise at_work(f"{label} is being evaluated", newest, connection.now(), "Wait for it")
    return found[0]

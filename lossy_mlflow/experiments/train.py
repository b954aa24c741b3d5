"""Train by name: from an hparam_set to a run, its pictures, and its decoder in the registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lossy_mlflow.errors import ConflictError, LossyError, NotFoundError, UsageError
from lossy_mlflow.experiments.request import EpochDone, Request
from lossy_mlflow.hparams import (
    Hparam,
    diff,
    evaluate_command,
    evaluates,
    get_hparams,
    hparams_sha256,
    run_label,
)
from lossy_mlflow.tracking.identity import Decision, Start, at_work, decide
from lossy_mlflow.user_code import load_user_code

if TYPE_CHECKING:
    from mlflow.entities import Run

    from lossy_mlflow.tracking.connection import Connection

_WAIT = "Wait for it, or train another copy: --e-name NAME"


@dataclass(frozen=True, slots=True)
class TrainResult:
    """A finished training. `started`: new, resumed or finished (it was there already). Losses in nats per image.

    A version is None where somebody has deleted it since, or has renamed the registered model; and where `delivered` is False:
    what was logged waits for the server still. `started_from`: what was taken from another label's model, or ''.
    """

    label: str
    started: str
    run_id: str
    experiment: str
    tracking_uri: str
    epoch: int
    val_loss: float
    best_epoch: int
    best_val_loss: float
    best_version: int | None
    last_version: int | None
    delivered: bool
    started_from: str


def train(
    hparam_set: str,
    *,
    e_name: str = "",
    overrides: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    user_code: str | None = None,
    device: str = "auto",
    data_dir: str | None = None,
    progress: Callable[[EpochDone], None] | None = None,
    run_id: str | None = None,
) -> TrainResult:
    """Train the experiment `hparam_set`, as make builds a target: what is finished is reported, what was stopped goes on.

    The label, `hparam_set` or `hparam_set_e_name`, names the run and the registered model. `overrides` are those of `--set`
    (`{"model_train.epochs": 5}`). `overwrite` starts anew where the label has a run. `device`: auto, cpu or cuda. `run_id`: a run
    that was made for this training beforehand, as `mlflow run` does.

    What is logged to a server goes by way of the outbox: the training neither waits for it nor ends where it doesn't answer.

    Raises NotFoundError for an unknown set, model or data set; UsageError for an override that doesn't fit, or a set that
    evaluates; ConflictError where the label has a run of another tree, or one that is alive; UnreachableError where a
    download, or the model of `load_checkpoint_name`, can't be had.
    """
    from lossy_mlflow.tracking.connection import connected_for_logging, explained, without_password
    from lossy_mlflow.tracking.ownership import label_lock, lock_domain
    from lossy_mlflow.tracking.runs import known_run

    file = load_user_code(user_code)
    tree = get_hparams(hparam_set, overrides)
    if evaluates(tree):
        raise UsageError(
            f"The set {hparam_set!r} trains nothing: it evaluates a decoder of {tree.load_checkpoint_name}.",
            f"Evaluate it: {evaluate_command(hparam_set) or f'lossy evaluate {hparam_set}'}",
        )
    label = run_label(hparam_set, e_name)
    with explained(), connected_for_logging() as connection:
        if run_id:
            connection.client.update_run(run_id, name=label)
        with label_lock(connection.uri, label, hint=_WAIT):
            earlier = _earlier_runs(connection, label)
            decision = decide(
                [known_run(run) for run in earlier],
                hparam_set=hparam_set,
                sha256=hparams_sha256(tree),
                overwrite=overwrite,
                owner=lock_domain(),
                now=connection.now(),
            )
            _refuse(connection, decision, label, tree, earlier)
            request = Request(label, hparam_set, e_name, tree, overwrite, device, data_dir, file, progress)
            trained = _carry_out(connection, decision, request, run_id)
            delivered, there = connection.delivered(trained)
            started = "resumed" if decision.start is Start.RESUME else decision.start.value
            uri = without_password(connection.uri)
            return _result(connection, trained, there, label, started, uri, delivered)


def _earlier_runs(connection: Connection, label: str) -> list[Run]:
    """The label's runs, newest first: all, or, while the server doesn't answer, those that this machine knows."""
    from lossy_mlflow.tracking.runs import runs_known_here, runs_of_label

    found = connection.unless_away(lambda: runs_of_label(connection.client, label))
    if found is None and connection.outbox:
        return runs_known_here(connection.client, connection.outbox, label)
    return found or []


def _carry_out(connection: Connection, decision: Decision, request: Request, made_for_us: str | None) -> str:
    """The id of the label's run, which is finished when this returns."""
    from lossy_mlflow.tracking.runs import end_surplus_run

    earlier = decision.run.run_id if decision.run and decision.start is not Start.NEW else None
    if earlier and made_for_us:
        end_surplus_run(connection.client, made_for_us, earlier)
    if earlier and decision.start is Start.FINISHED:
        return earlier
    # Only here is torch needed: a finished label is reported without it.
    from lossy_mlflow.experiments.training_run import run_training
    from lossy_mlflow.tracking.reconcile import close_dead_runs_of_this_machine

    connection.unless_away(lambda: close_dead_runs_of_this_machine(connection))
    return run_training(connection, request, resumed=earlier, made_for_us=made_for_us)


def _refuse(connection: Connection, decision: Decision, label: str, tree: Hparam, earlier: list[Run]) -> None:
    """Raise the ConflictError that the decision means, if it means one."""
    from lossy_mlflow.tracking.runs import hparams_of_run

    run = decision.run
    if run is None:
        return
    again = (
        f"Train anew: --overwrite    or another copy beside it: --e-name NAME    (its run is {run.run_id})"
    )
    if decision.start is Start.ALIVE_ELSEWHERE:
        raise at_work(f"{label} is being trained", run, connection.now(), _WAIT)
    if decision.start is Start.OTHER_SET:
        raise ConflictError(f"The label {label} belongs to a run of the set {run.hparam_set!r}.", again)
    if decision.start is Start.OTHER_TREE:
        try:
            changes = diff(hparams_of_run(connection.client, earlier[0]), tree)
        except NotFoundError as error:
            raise ConflictError(f"{label} has a run with other hparams. {error.what}", again) from error
        if not changes:
            raise ConflictError(
                f"{label} has a run with the same hparams, whose tag hparams_sha256 isn't theirs: somebody has edited it.",
                again,
            )
        lines = "".join(f"\n  {change}" for change in changes)
        raise ConflictError(f"{label} has a run with other hparams (there -> here):{lines}", again)


def _result(
    connection: Connection, run_id: str, there: str, label: str, started: str, uri: str, delivered: bool
) -> TrainResult:
    """`there`: the run's id on the server. By the other this machine tells of it as well, where that goes away at the end."""
    from lossy_mlflow.checkpoints.versions import best_and_last, by_epoch, versions_of_run

    client = connection.client
    run = client.get_run(run_id)
    found = connection.unless_away(lambda: versions_of_run(client, there, label)) if delivered else None
    versions = by_epoch(found or [])
    # The metric tells, whatever somebody has deleted or edited of the versions since.
    losses = {point.step: point.value for point in client.get_metric_history(run_id, "val_loss")}
    best, last = best_and_last(losses) if losses else (None, 0)
    if best is None:
        raise LossyError(
            f"The run {run_id} of {label} says {run.info.status}, and has no val_loss.",
            "Train anew: the same command with --overwrite",
        )
    return TrainResult(
        label=label,
        started=started,
        run_id=there,
        experiment=client.get_experiment(run.info.experiment_id).name,
        tracking_uri=uri,
        epoch=last,
        val_loss=losses[last],
        best_epoch=best,
        best_val_loss=losses[best],
        best_version=int(versions[best].version) if best in versions else None,
        last_version=int(versions[last].version) if last in versions else None,
        delivered=found is not None,
        started_from=run.data.tags.get("started_from", ""),
    )

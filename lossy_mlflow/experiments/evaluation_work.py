"""The run of an evaluation: made or taken up again, described, measured, stored."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import LoggedModelInput

from lossy_mlflow.checkpoints.model_input import nameable_model
from lossy_mlflow.experiments.curve_record import CurveRecord, measured_by
from lossy_mlflow.experiments.evaluation_progress import EvaluationProgress
from lossy_mlflow.experiments.evaluation_record import (
    curve_lists,
    exact_curve,
    gap_records,
    log_reconstructions,
    log_record,
)
from lossy_mlflow.experiments.evaluation_run import DRAWN_IMAGES, Evaluation
from lossy_mlflow.experiments.evaluation_subject import Plan, Subject
from lossy_mlflow.experiments.rd_settings import RdSettings
from lossy_mlflow.experiments.records import AttemptRecords, dataset_input
from lossy_mlflow.experiments.settings import experiment_name
from lossy_mlflow.experiments.tunings import find_target
from lossy_mlflow.hparams import hparams_sha256
from lossy_mlflow.models.device import convolutions
from lossy_mlflow.rate_distortion import Curve, Gap
from lossy_mlflow.tracking.connection import Connection
from lossy_mlflow.tracking.ownership import lock_domain
from lossy_mlflow.tracking.provenance import git_commit
from lossy_mlflow.tracking.runs import create_run, experiment_for, log_hparams, set_tags
from lossy_mlflow.tracking.session import Attempt, running
from lossy_mlflow.tracking.signals import stop_request
from lossy_mlflow.tracking.training_state import load_training_state

log = logging.getLogger("lossy_mlflow")


def carry_out(
    connection: Connection,
    planned: Plan,
    subject: Subject,
    sha256: str,
    user_code: Path | None,
    progress: Callable[[EvaluationProgress], None] | None,
    resumed: str | None,
    made_for_us: str | None,
) -> tuple[str, CurveRecord]:
    """The id of the run, which is finished when this returns, and its curve. `sha256`: the evaluation's identity."""
    client = connection.client
    tags = _tags(planned, subject, sha256)
    model_id = nameable_model(client, planned.checkpoint.name, planned.checkpoint.version)
    target = None
    if subject.settings.step_sizes_target:
        target = find_target(connection, subject.settings.step_sizes_target, tags)
        tags["step_sizes_from"] = target.run_id
    with stop_request() as asked:
        state = load_training_state(client, resumed) if resumed else None
        run_id = resumed or made_for_us or _make_run(connection, planned, tags)
        if run_id == made_for_us:
            set_tags(client, run_id, tags | {"owner": lock_domain()})
            client.update_run(run_id, name=planned.label)
        with (
            running(connection, run_id) as attempt,
            AttemptRecords(connection, run_id, user_code),
            convolutions(exact=True),
        ):
            log_hparams(client, run_id, planned.tree)
            _log_inputs(client, run_id, planned, subject, model_id)
            evaluation = Evaluation(attempt, planned.label, subject, target, state, asked, progress)
            try:
                curve = evaluation.run()
                record = _store(attempt, planned, subject, curve, evaluation)
            except Exception:
                log.exception("the evaluation ended")
                raise
    return run_id, record


def _tags(planned: Plan, subject: Subject, sha256: str) -> dict[str, str]:
    checkpoint, settings = planned.checkpoint, subject.settings
    tags = {
        "kind": "evaluate",
        "label": planned.label,
        "hparam_set": planned.hparam_set,
        "hparams_sha256": hparams_sha256(planned.tree),
        "evaluation_sha256": sha256,
        "model_version": planned.reference,
        "weights_sha256": checkpoint.weights_sha256,
        "data_digest": subject.data_digest,
        "target": settings.target,
        "feature_map": subject.feature_map,
        "n_batch": str(settings.n_batch),
        "prior": _prior(settings),
        "changed": _changed(settings),
        "quick": "true" if planned.quick else "",
        "git_commit": git_commit(),
        "mlflow.note.content": _about(planned, subject),
    }
    return {key: value for key, value in tags.items() if value}


def _prior(settings: RdSettings) -> str:
    """Empty where it is N(0, I)."""
    if len(settings.prior_stds) == 1:
        return ""
    parts = zip(settings.prior_shares, settings.prior_stds, strict=True)
    return " + ".join(f"{share:g} N(0, {std**2:g} I)" for share, std in parts)


def _changed(settings: RdSettings) -> str:
    """What is done to the decoder before it is measured; empty where it is as it was trained."""
    blur = "" if settings.blur_std is None else f"blurred by {settings.blur_std:g} pixels"
    variance = "" if settings.overwrite_variance is None else f"variance {settings.overwrite_variance:g}"
    return ", ".join(filter(None, (blur, variance)))


def _about(planned: Plan, subject: Subject) -> str:
    settings = subject.settings
    return (
        f"Rate-distortion curve of {planned.reference}: {settings.target}, {len(subject.images)} {settings.data} images,"
        f" {measured_by(settings.estimator, settings.n_chains)}{', quick' if planned.quick else ''}.\n\n"
        "Draw it: a scatter or line chart of `rate` over `distortion`; the figure is among the artifacts.\n\n"
        f"    lossy plot {planned.label}{' --quick' if planned.quick else ''}\n"
    )


def _log_inputs(
    client: MlflowClient, run_id: str, planned: Plan, subject: Subject, model_id: str | None
) -> None:
    """The images and the decoder, where MLflow's pages look for them. Safe to repeat."""
    context, trained_on = subject.settings.data, subject.trained.dataset
    of, source = trained_on.name, {"data set": trained_on.name}
    if context == "simulate":
        of, source = planned.reference, {"decoder": planned.reference}
    if subject.feature_map:
        source["features of"] = subject.feature_map
    images = dataset_input(
        of, context, subject.data_digest, source, len(subject.images), trained_on.input_dims
    )
    client.log_inputs(run_id, [images], [LoggedModelInput(model_id)] if model_id else [])


def _make_run(connection: Connection, planned: Plan, tags: dict[str, str]) -> str:
    experiment = experiment_for(connection.client, experiment_name(planned.tree))
    alive = {"owner": lock_domain(), "heartbeat": f"{connection.now():.0f}"}
    return create_run(connection, experiment.experiment_id, planned.label, tags | alive)


def _store(
    attempt: Attempt, planned: Plan, subject: Subject, curve: Curve, evaluation: Evaluation
) -> CurveRecord:
    client, run_id = attempt.connection.client, attempt.run_id
    attempt.must_be_current()
    record = _record(planned, subject, curve, evaluation)
    log_record(client, run_id, record, curve)
    shown = subject.images[:DRAWN_IMAGES]
    log_reconstructions(
        client, run_id, subject.decoder, shown, evaluation.done.drawn, subject.trained.dataset.input_dims
    )
    for doubt in record.doubts:
        log.warning("%s: %s", planned.label, doubt)
    if record.doubts:
        client.set_tag(run_id, "doubts", "; ".join(record.doubts))
    return record


def _record(planned: Plan, subject: Subject, curve: Curve, evaluation: Evaluation) -> CurveRecord:
    settings, gaps = subject.settings, evaluation.done.gaps
    distortions = [evaluation.distortions(batch) for batch in range(settings.n_batch)]
    return CurveRecord(
        label=planned.label,
        reference=planned.reference,
        weights_sha256=planned.checkpoint.weights_sha256,
        data_digest=subject.data_digest,
        target=settings.target,
        estimator=settings.estimator,
        n_data=settings.n_images,
        n_chains=settings.n_chains,
        n_dimensions=distortions[0][0].n_outputs,
        z_size=distortions[0][0].z_size,
        quick=planned.quick,
        beta=curve.beta.tolist(),
        gap=gap_records(gaps),
        closed_form=exact_curve(distortions, settings.prior_shares, curve.beta.tolist()),
        log_likelihood=dict(evaluation.done.likelihood),
        doubts=[*curve.doubts(), *_gap_doubts(gaps)],
        doubted_from=min(_doubted(curve, gaps), default=None),
        **curve_lists(curve),
    )


_LARGE_GAP = 3.0  # nats


def _doubted(curve: Curve, gaps: list[Gap]) -> list[float]:
    """Betas from which on something is in doubt."""
    first = curve.doubted_from()
    return [gap.beta for gap in _large(gaps)] + ([] if first is None else [first])


def _large(gaps: list[Gap]) -> list[Gap]:
    return [gap for gap in gaps if gap.mean > _LARGE_GAP]


def _gap_doubts(gaps: list[Gap]) -> list[str]:
    return [
        f"at beta {gap.beta:.4g} the gap is {gap.mean:.1f} nats: the true curve may lie below by as much; raise anneal_steps"
        for gap in _large(gaps)
    ]

"""What speaks for a version: its loss, on which data, and its bound, as training has recorded them; and its evaluation."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lossy_mlflow.errors import ConflictError
from lossy_mlflow.hparams import train_command
from lossy_mlflow.tracking.tags import number, whole_number

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion


@dataclass(frozen=True, slots=True)
class Evidence:
    """In nats per image: `val_loss` on the images of `dataset_digest`, the IWAE bound on log p(x) and its standard error.

    `evaluation`: the run of the newest rate-distortion curve of these weights, with the BDMC gap at the last beta that has one.
    None, or '', where nobody has recorded it for this version.
    """

    val_loss: float | None = None
    dataset_digest: str = ""
    iwae_bound: float | None = None
    iwae_bound_se: float | None = None
    evaluation: str = ""
    bdmc_gap: float | None = None
    bdmc_gap_se: float | None = None

    def __str__(self) -> str:
        parts = []
        if self.val_loss is not None:
            parts.append(f"val_loss {self.val_loss:.4f}")
        if self.dataset_digest:
            parts.append(f"data {self.dataset_digest[:8]}")
        if self.iwae_bound is not None:
            error = "" if self.iwae_bound_se is None else f" +- {self.iwae_bound_se:.4f}"
            parts.append(f"IWAE bound {self.iwae_bound:.4f}{error}")
        if self.evaluation:
            parts.append(f"evaluated in {self.evaluation}")
        if self.bdmc_gap is not None:
            error = "" if self.bdmc_gap_se is None else f" +- {self.bdmc_gap_se:.2f}"
            parts.append(f"gap {self.bdmc_gap:.2f}{error}")
        return ", ".join(parts) or "none"


def evidence_of(client: MlflowClient, version: ModelVersion) -> Evidence:
    """The version's own tags, and of its run's metrics those of the version's epoch. A run that is gone has none."""
    epoch = whole_number(version.tags, "epoch")
    bound, bound_se = (
        _at_epoch(client, version.run_id, f"val_iwae_bound{part}", epoch) for part in ("", "_se")
    )
    recorded = Evidence(
        number(version.tags, "val_loss"), version.tags.get("dataset_digest", ""), bound, bound_se
    )
    runs = evaluations_of(client, version)
    if not runs:
        return recorded
    metrics = runs[0].data.metrics
    gap, error = metrics.get("bdmc_gap"), metrics.get("bdmc_gap_se")
    return replace(recorded, evaluation=runs[0].info.run_id, bdmc_gap=gap, bdmc_gap_se=error)


def evaluations_of(client: MlflowClient, version: ModelVersion) -> list[Run]:
    """The finished evaluations of the version's weights, the newest first; `--quick` ones left out.

    By the weights, not the name: a copy that was promoted to another model has the same.
    """
    from lossy_mlflow.tracking.runs import quoted, search_all_runs

    weights = version.tags.get("weights_sha256", "")
    if not weights:
        return []
    wanted = f"tags.kind = 'evaluate' and tags.weights_sha256 = {quoted(weights)} and attributes.status = 'FINISHED'"
    runs = search_all_runs(client, wanted)
    return [run for run in runs if not {"same_as", "quick"} & run.data.tags.keys()]


def refuse_without_evidence(version: ModelVersion, evidence: Evidence) -> None:
    """Raises ConflictError where there is no val_loss, or where it isn't known on which data."""
    there = {
        "val_loss": evidence.val_loss is not None,
        "dataset_digest, which says on which images": bool(evidence.dataset_digest),
    }
    missing = [what for what, is_there in there.items() if not is_there]
    if not missing:
        return
    # It loads mlflow, which lossy check does without.
    from lossy_mlflow.checkpoints.lookup import is_only_imported

    as_it_is = "promote it as it is, without --require-evidence"
    command = train_command(version.name) or "lossy train HPARAM_SET"
    training = f"A training writes both: {command}    or "
    raise ConflictError(
        f"{version.name}/{version.version} has no evidence to be promoted on: no tag {', no tag '.join(missing)}.",
        as_it_is.capitalize() if is_only_imported(version.name) else training + as_it_is,
    )


def _at_epoch(client: MlflowClient, run_id: str | None, metric: str, epoch: int | None) -> float | None:
    if not run_id or epoch is None:
        return None
    from mlflow.exceptions import MlflowException

    try:
        history = client.get_metric_history(run_id, metric)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    values = [point.value for point in history if point.step == epoch and math.isfinite(point.value)]
    return values[-1] if values else None

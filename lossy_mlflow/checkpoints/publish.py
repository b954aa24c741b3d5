"""A trained decoder becomes a version of the registered model named like its label."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from lossy_mlflow.checkpoints.flavor import files_sha256, refuse_unloadable, save_model, weights_sha256
from lossy_mlflow.hparams import Hparam
from lossy_mlflow.tracking.runs import all_pages
from lossy_mlflow.tracking.tags import number, whole_number

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A decoder as it was after `epoch`. `weights` lie on the CPU; `val_loss` is in nats per image."""

    epoch: int
    val_loss: float
    weights: Mapping[str, Tensor]


def ensure_registered_model(client: MlflowClient, name: str, description: str) -> None:
    """The registered model `name`, made if it isn't there; many processes may ask at once.

    A description that somebody has written since stays. Called before a training, so that a name or a right that the
    registry refuses shows then and not at its end.
    """
    try:
        client.create_registered_model(name, description=description)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def publish(
    client: MlflowClient, run_id: str, name: str, tree: Hparam, snapshot: Snapshot, tags: Mapping[str, str]
) -> int:
    """Make `snapshot` a version of `name`, with `tags`; returns its number. A version of that epoch of the run stays as it is.

    Raises UsageError where the model that `tree` describes, built anew, can't take the snapshot's weights.

    The files are a LoggedModel's, not the run's: deleting the run for good doesn't take them. The version appears with its
    tags in one call, after its files are whole; then the aliases `best` and `last` are set to what the run's versions say.
    """
    published = by_epoch(versions_of_run(client, run_id, name))
    if snapshot.epoch not in published:
        published[snapshot.epoch] = _make_version(client, run_id, name, tree, snapshot, tags)
    losses = {epoch: number(version.tags, "val_loss") for epoch, version in published.items()}
    best, last = best_and_last(losses)
    if best is not None:
        client.set_registered_model_alias(name, "best", published[best].version)
    client.set_registered_model_alias(name, "last", published[last].version)
    return int(published[snapshot.epoch].version)


def best_and_last(losses: Mapping[int, float | None]) -> tuple[int | None, int]:
    """Of losses by epoch: the epoch of the lowest (the earliest of equal ones; None and NaN are never best), and the newest."""
    real = [(loss, epoch) for epoch, loss in losses.items() if loss is not None and not math.isnan(loss)]
    return (min(real)[1] if real else None), max(losses)


def versions_of_run(client: MlflowClient, run_id: str, name: str) -> list[ModelVersion]:
    """The versions of `name` that the run has made."""
    found = all_pages(lambda token: client.search_model_versions(f"run_id = '{run_id}'", page_token=token))
    return [version for version in found if version.name == name]


def by_epoch(versions: Iterable[ModelVersion]) -> dict[int, ModelVersion]:
    """The same by the epoch that each one's tag says; without those that say none."""
    epochs = ((whole_number(version.tags, "epoch"), version) for version in versions)
    return {epoch: version for epoch, version in epochs if epoch is not None}


def _make_version(
    client: MlflowClient, run_id: str, name: str, tree: Hparam, snapshot: Snapshot, tags: Mapping[str, str]
) -> ModelVersion:
    refuse_unloadable(snapshot.weights, tree)
    run = client.get_run(run_id)
    # In this order the UI shows them: what a person looks for first.
    tags = {"epoch": str(snapshot.epoch), "val_loss": repr(snapshot.val_loss), **tags}
    logged = client.create_logged_model(
        run.info.experiment_id,
        name=f"decoder-epoch-{snapshot.epoch}",
        source_run_id=run_id,
        tags=tags,
        model_type="decoder",
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "model")
        save_model(folder, snapshot.weights, tree, run_id=run_id, model_id=logged.model_id)
        tags |= {"weights_sha256": weights_sha256(folder), "files_sha256": files_sha256(folder)}
        client.log_model_artifacts(logged.model_id, str(folder))
    client.finalize_logged_model(logged.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, snapshot.epoch)])
    return client.create_model_version(
        name,
        source=f"models:/{logged.model_id}",
        run_id=run_id,
        model_id=logged.model_id,
        tags=tags,
        description=f"Epoch {snapshot.epoch}, val_loss {snapshot.val_loss:.4f}.",
        # The version is ready when the call returns; waiting would only add a thread and a message.
        await_creation_for=0,
    )

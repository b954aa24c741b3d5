"""A decoder becomes a version of the registered model named like its label: now, or once the server answers."""

from __future__ import annotations

import base64
import datetime
import io
import logging
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus, Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from lossy_mlflow.checkpoints.flavor import (
    MODEL_TYPE,
    SAMPLES,
    files_sha256,
    logged_model_name,
    refuse_unloadable,
    save_model,
)
from lossy_mlflow.checkpoints.retire import retire_earlier_runs, runs_if_label_is_its_own
from lossy_mlflow.checkpoints.versions import best_and_last, by_epoch, set_alias, versions_of_run
from lossy_mlflow.hparams import Hparam, flatten, unflatten
from lossy_mlflow.tracking.connection import Connection, connect
from lossy_mlflow.tracking.tags import number

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger("lossy_mlflow")

# The name under which the package offers `publish_deferred` to the outbox.
_DEFERRED = "publish_checkpoint"
# Where MLflow's own pages find the picture of a logged model, from wherever the server's UI is.
_PICTURE_IN_UI = f"ajax-api/2.0/mlflow/logged-models/{{}}/artifacts/files?artifact_file_path={SAMPLES}"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A decoder as it was after `epoch`. `weights` lie on the CPU; `val_loss`, nats per image, is NaN where nobody knows it.

    `samples`: a PNG picture of what it decodes, empty where there is none.
    """

    epoch: int
    val_loss: float
    weights: Mapping[str, Tensor]
    samples: bytes = b""


@dataclass(frozen=True, slots=True)
class Publication:
    """What of a run all its versions share: the registered model's name and description, the tree, and the versions' tags."""

    name: str
    description: str
    tree: Hparam
    tags: Mapping[str, str]


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


def publish(connection: Connection, run_id: str, publication: Publication, snapshot: Snapshot) -> None:
    """Make `snapshot` a version; by way of an outbox, if there is one: then it survives this process and its server's outage.

    Raises UsageError where the model that the tree describes, built anew, can't take the snapshot's weights; OSError where a disk
    is full: then nothing of it is kept.
    """
    from safetensors.torch import save

    refuse_unloadable(snapshot.weights, publication.tree)
    arguments = {
        "name": publication.name,
        "description": publication.description,
        "tree": flatten(publication.tree),
        "epoch": snapshot.epoch,
        "val_loss": snapshot.val_loss,
        "tags": dict(publication.tags),
        "samples": base64.b64encode(snapshot.samples).decode(),
    }
    # In memory, and not by save_file: of a full disk that one tells in an error of its own, without the system's number.
    content = save(dict(snapshot.weights))
    if connection.outbox:
        connection.outbox.journal(run_id).defer(_DEFERRED, arguments, io.BytesIO(content))
        return
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder, "weights.safetensors")
        weights.write_bytes(content)
        _publish(connection, run_id, arguments, weights)


def publish_deferred(run_id: str, arguments: dict[str, Any], weights: Path) -> None:
    """What the outbox calls once the server answers, perhaps more than once."""
    _publish(connect(), run_id, arguments, weights)


def _publish(connection: Connection, run_id: str, arguments: Mapping[str, Any], weights: Path) -> None:
    """The version, its aliases, and what becomes of the label's earlier runs. A version of that epoch of the run stays as it is.

    The files are a LoggedModel's, not the run's: deleting the run for good doesn't take them. The version appears with its
    tags in one call, after its files are whole; then the aliases `best` and `last` are set to what the run's versions say.
    """
    client, name, epoch = connection.client, arguments["name"], arguments["epoch"]
    run, published = client.get_run(run_id), by_epoch(versions_of_run(client, run_id, name))
    if not published:
        ensure_registered_model(client, name, arguments["description"])
    made = None if epoch in published else _make_version(client, run, arguments, weights)
    if made:
        published[epoch] = made
    runs = runs_if_label_is_its_own(connection, name, run)
    if runs:
        published = _set_aliases(client, run_id, name, published)
    elif made:
        published = by_epoch(versions_of_run(client, run_id, name))
    if made and epoch in published and (first := published[epoch].version) != made.version:
        # Two senders of one outbox, say: both then agree on the first, which the aliases know.
        client.delete_model_version(name, made.version)
        log.info("epoch %d was published by another process as version %s", epoch, first)
    if runs:
        retire_earlier_runs(connection, name, runs)


def _set_aliases(
    client: MlflowClient, run_id: str, name: str, published: dict[int, ModelVersion]
) -> dict[int, ModelVersion]:
    """Returns what the run has published, other processes' versions included: that is what the aliases were set by."""
    while published:
        losses = {epoch: number(version.tags, "val_loss") for epoch, version in published.items()}
        best, last = best_and_last(losses)
        if not any("val_loss" in version.tags for version in published.values()):
            # Nobody has measured what was imported: its newest is what its name means.
            best = last
        stand = client.get_registered_model(name).aliases
        for alias, epoch in (("best", best), ("last", last)):
            if epoch is not None and str(stand.get(alias)) != str(version := published[epoch].version):
                set_alias(client, name, alias, version)
        found = by_epoch(versions_of_run(client, run_id, name))
        if _numbers(found) == _numbers(published):
            break
        published = found  # another process that publishes for the run has made a version meanwhile
    return published


def _numbers(published: Mapping[int, ModelVersion]) -> dict[int, str]:
    return {epoch: str(version.version) for epoch, version in published.items()}


def _make_version(
    client: MlflowClient, run: Run, arguments: Mapping[str, Any], weights: Path
) -> ModelVersion:
    run_id, epoch, val_loss = run.info.run_id, arguments["epoch"], arguments["val_loss"]
    # In this order the UI shows them: what a person looks for first.
    measured = {} if math.isnan(val_loss) else {"val_loss": repr(val_loss)}
    tags = {"epoch": str(epoch), **measured, **arguments["tags"]}
    # A call that waits in an outbox since before versions had pictures has none.
    samples = base64.b64decode(arguments.get("samples", ""))
    logged = _logged_model(client, run, epoch, tags)
    # Trainings count from 1: what is of epoch 0 was imported, and nothing in it said which.
    description = f"Epoch {epoch or 'unknown'}" + (f", val_loss {val_loss:.4f}." if measured else ".")
    if samples:
        description += f"\n\n![Samples]({_PICTURE_IN_UI.format(logged.model_id)})"
    if logged.status != LoggedModelStatus.READY:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch, "model")
            created = datetime.datetime.fromtimestamp(logged.creation_timestamp / 1000, datetime.UTC)
            saved = save_model(
                folder,
                weights,
                unflatten(arguments["tree"]),
                samples=samples,
                run_id=run_id,
                model_id=logged.model_id,
                created=created,
            )
            digests = {"weights_sha256": saved, "files_sha256": files_sha256(folder)}
            # Neither this nor the tags by the client's own calls, which ask once more for the model that is known.
            store = get_artifact_repository(logged.artifact_location, tracking_uri=client.tracking_uri)
            store.log_artifacts(str(folder))
        # Before it is READY: whoever finds it so makes the version from its tags.
        client._tracking_client.set_logged_model_tags(
            logged.model_id, digests | {"mlflow.note.content": description}
        )
        logged = client.finalize_logged_model(logged.model_id, "READY")
    # MLflow refuses to do that twice.
    if logged.model_id not in {item.model_id for item in (run.outputs.model_outputs if run.outputs else [])}:
        client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, epoch)])
    digests = {key: logged.tags[key] for key in ("weights_sha256", "files_sha256")}
    version = client.create_model_version(
        arguments["name"],
        source=f"models:/{logged.model_id}",
        run_id=run_id,
        model_id=logged.model_id,
        tags=tags | digests,
        description=description,
        # The version is ready when the call returns; waiting would only add a thread and a message.
        await_creation_for=0,
    )
    log.info("epoch %d is version %s of %s", epoch, version.version, version.name)
    return version


def _logged_model(client: MlflowClient, run: Run, epoch: int, tags: Mapping[str, str]) -> LoggedModel:
    """The one that holds the files of that epoch: what a crash has left half done is completed, not doubled."""
    run_id, experiment_id, name = run.info.run_id, run.info.experiment_id, logged_model_name(epoch)
    wanted = f"source_run_id = '{run_id}' AND name = '{name}'"
    found = client.search_logged_models([experiment_id], wanted)
    if found:
        return min(found, key=lambda model: (model.status != LoggedModelStatus.READY, model.model_id))
    return client.create_logged_model(
        experiment_id, name=name, source_run_id=run_id, tags=dict(tags), model_type=MODEL_TYPE
    )

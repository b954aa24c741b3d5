"""The versions that were promoted from one registered model into another: the same files under another name."""

from __future__ import annotations

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from lossy_mlflow.checkpoints.publish import ensure_registered_model
from lossy_mlflow.checkpoints.versions import search_versions
from lossy_mlflow.errors import ConflictError, UsageError
from lossy_mlflow.tracking.runs import quoted, runs_of_label

COPIED_FROM = "copied_from"


def copy_version(client: MlflowClient, source: ModelVersion, name: str) -> ModelVersion:
    """The copy of `source` among the versions of `name`, made if it isn't there; its tag `copied_from` says NAME/VERSION.

    It shares the files of `source`, which may be deleted, and keeps its tags. Raises UsageError where `name` is the model itself,
    ConflictError where it is a training's: what `chkt_step` means there would change.
    """
    if name == source.name:
        raise UsageError(
            f"{name} is the model that the version is of.", "Leave out --to, or name another model."
        )
    if runs_of_label(client, name):
        raise ConflictError(
            f"{name} is the label of a training, and its versions are that training's.",
            "Promote to a model of another name: --to NAME",
        )
    ensure_registered_model(client, name, f"Decoders promoted from {source.name} and others.")
    origin = f"{source.name}/{source.version}"
    if found := copies_of(client, origin, name):
        return found[0]
    # What MLflow's copy_model_version does, and the tag in the same call: a crash leaves no copy that isn't known as one.
    made = client.create_model_version(
        name,
        source=f"models:/{origin}",
        run_id=source.run_id,
        model_id=source.model_id,
        run_link=source.run_link,
        tags=source.tags | {COPIED_FROM: origin},
        description=source.description,
        await_creation_for=0,
    )
    first = copies_of(client, origin, name)[0]
    if first.version != made.version:  # another was quicker: both then agree on the first
        client.delete_model_version(name, made.version)
    return first


def copies_of(client: MlflowClient, origin: str, name: str | None = None) -> list[ModelVersion]:
    """The copies of the version `origin` (NAME/VERSION), in the model `name` or in all, oldest first."""
    found = search_versions(client, f"tags.{COPIED_FROM} = {quoted(origin)}")
    return sorted(
        (version for version in found if name in (None, version.name)),
        key=lambda version: (version.name, int(version.version)),
    )

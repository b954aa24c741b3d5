"""The versions that a run has made, and which of them is the best and the last."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from lossy_mlflow.tracking.runs import all_pages
from lossy_mlflow.tracking.tags import whole_number

# Training alone moves them, in the model of its label.
TRAINING_ALIASES = frozenset({"best", "last"})


def search_versions(client: MlflowClient, wanted: str) -> list[ModelVersion]:
    """All versions that match `wanted`, in MLflow's search language, of every model unless that names one."""
    return list(all_pages(lambda token: client.search_model_versions(wanted, page_token=token)))


def versions_of_run(client: MlflowClient, run_id: str, name: str | None = None) -> list[ModelVersion]:
    """The versions of `name` that the run has made; without a name, also the copies of them in other models."""
    found = search_versions(client, f"run_id = '{run_id}'")
    return [version for version in found if name in (None, version.name)]


def set_alias(client: MlflowClient, name: str, alias: str, version: int | str) -> None:
    """Set the alias of a model that the client has been asked for already, whoever else sets it at the same moment."""
    # Not by the client's own call, which asks for the model once more: is it one of prompts?
    registry = client._get_registry_client()
    try:
        registry.set_registered_model_alias(name, alias, str(version))
    except MlflowException as error:
        # MLflow looks whether the alias is there and then inserts it: of two that set it first the database refuses one.
        if error.error_code != "BAD_REQUEST":
            raise
        registry.set_registered_model_alias(name, alias, str(version))


def by_epoch(versions: Iterable[ModelVersion]) -> dict[int, ModelVersion]:
    """The same by the epoch that each one's tag says, without those that say none; of several of one epoch, the first made."""
    newest_first = sorted(versions, key=lambda version: -int(version.version))
    epochs = ((whole_number(version.tags, "epoch"), version) for version in newest_first)
    return {epoch: version for epoch, version in epochs if epoch is not None}


def best_and_last(losses: Mapping[int, float | None]) -> tuple[int | None, int]:
    """Of losses by epoch: the epoch of the lowest (the earliest of equal ones; None and NaN are never best), and the newest."""
    real = [(loss, epoch) for epoch, loss in losses.items() if loss is not None and not math.isnan(loss)]
    return (min(real)[1] if real else None), max(losses)

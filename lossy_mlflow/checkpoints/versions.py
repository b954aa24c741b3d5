"""The versions that a run has made, and which of them is the best and the last."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from lossy_mlflow.tracking.runs import all_pages


def versions_of_run(client: MlflowClient, run_id: str, name: str) -> dict[int, ModelVersion]:
    """The versions of `name` that the run has made, by epoch; of several of one epoch, made at once, the first."""
    found = all_pages(lambda token: client.search_model_versions(f"run_id = '{run_id}'", page_token=token))
    newest_first = sorted(found, key=lambda version: -int(version.version))
    return {
        int(version.tags["epoch"]): version
        for version in newest_first
        if version.name == name and "epoch" in version.tags
    }


def best_and_last(losses: Sequence[tuple[int, float]]) -> tuple[int | None, int]:
    """Of (epoch, val_loss): the epoch with the lowest loss (the earliest of equal ones; NaN is never best), and the newest."""
    real = [(loss, epoch) for epoch, loss in losses if not math.isnan(loss)]
    return (min(real)[1] if real else None), max(epoch for epoch, _ in losses)

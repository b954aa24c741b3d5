"""Metrics of epochs: every step once, whole, with the time at which it was known."""

from __future__ import annotations

import mlflow
import pytest

from lossy_mlflow.tracking.metrics import EpochMetrics
from lossy_mlflow.training import EpochResult
from tests.conftest import Workplace


@pytest.fixture
def run_id(here: Workplace) -> str:
    client = mlflow.MlflowClient()
    return client.create_run(client.create_experiment("metrics")).info.run_id


def _result(epoch: int) -> EpochResult:
    return EpochResult(epoch, 10.0 / epoch, 20.0 / epoch, {"kl": 1.0}, 0.5, 100)


def test_a_resumed_run_logs_no_step_twice(run_id: str) -> None:
    client = mlflow.MlflowClient()
    first = EpochMetrics(client, run_id)
    for epoch in range(1, 6):
        first.log(_result(epoch))
    first.flush()
    resumed = EpochMetrics(client, run_id)
    assert resumed.last_val_loss == 4.0
    for epoch in range(4, 8):
        resumed.log(_result(epoch))
    resumed.log_once({"end": 1.0}, 7)
    resumed.log_once({"end": 2.0}, 7)
    for name in ("train_loss", "val_loss", "best_val_loss", "train_kl", "epoch_seconds", "images_per_second"):
        history = client.get_metric_history(run_id, name)
        assert [point.step for point in history] == list(range(1, 8)), name
    assert client.get_run(run_id).data.metrics["images_per_second"] == 200
    assert [point.value for point in client.get_metric_history(run_id, "end")] == [1.0]


def test_more_epochs_than_a_batch_holds_arrive_whole_and_once(run_id: str) -> None:
    client = mlflow.MlflowClient()
    metrics = EpochMetrics(client, run_id)
    for epoch in range(1, 401):
        metrics.log(_result(epoch))
    metrics.flush()
    for name in ("train_loss", "images_per_second"):
        assert len(client.get_metric_history(run_id, name)) == 400

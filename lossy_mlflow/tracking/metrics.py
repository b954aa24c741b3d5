"""The metrics of an epoch, under stable names, each step once however often the run is resumed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from mlflow import MlflowClient
from mlflow.entities import Metric

if TYPE_CHECKING:
    from lossy_mlflow.training import EpochResult

_FLUSH_EVERY_S = 1.0
METRICS_A_BATCH = 1000


class EpochMetrics:
    """Logs what an epoch gave, with the time at which it was known, once a second or when `flush` is called.

    A model's own terms are named train_NAME.

    Short epochs would spend more on the database than on the training otherwise. What a kill -9 takes from the last second is not
    lost: those epochs are trained and logged again when the run is resumed from its saved state.
    """

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self._client = client
        self._run_id = run_id
        history = client.get_metric_history(run_id, "val_loss")
        newest = max(history, key=lambda point: point.step, default=None)
        self._logged_step = newest.step if newest else 0
        self._best = min((point.value for point in history), default=float("inf"))
        self.last_val_loss = newest.value if newest else float("nan")
        self._waiting: list[Metric] = []
        self._flushed = time.monotonic()

    def log(self, result: EpochResult) -> None:
        """`result.epoch` is the step. An epoch that the run has already, from before a crash, is left as it stands."""
        self.last_val_loss = result.val_loss
        if result.epoch <= self._logged_step:
            return
        self._best = min(self._best, result.val_loss)
        values = {
            **{f"train_{name}": value for name, value in result.terms.items()},
            # After the model's own terms: a term called "loss" doesn't take the place of the loss.
            "train_loss": result.train_loss,
            "val_loss": result.val_loss,
            "best_val_loss": self._best,
            "epoch_seconds": result.seconds,
            "images_per_second": result.images / result.seconds,
        }
        self._add(values, result.epoch)
        self._logged_step = result.epoch
        if time.monotonic() - self._flushed > _FLUSH_EVERY_S:
            self.flush()

    def log_once(self, values: Mapping[str, float], step: int) -> None:
        """Values that belong to the run's end; a resumed end doesn't repeat them."""
        known = self._client.get_run(self._run_id).data.metrics
        self._add({name: value for name, value in values.items() if name not in known}, step)
        self.flush()

    def flush(self) -> None:
        """Store what waits, whole epochs in one call each, so that no step is ever there in part."""
        while self._waiting:
            batch = self._waiting[:METRICS_A_BATCH]
            if len(self._waiting) > len(batch):
                cut_step = batch[-1].step
                whole = [metric for metric in batch if metric.step != cut_step]
                batch = whole or batch  # a single step that is larger than a batch must be cut
            self._client.log_batch(self._run_id, metrics=batch)
            del self._waiting[: len(batch)]
        self._flushed = time.monotonic()

    def _add(self, values: Mapping[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        self._waiting += [Metric(name, value, now, step) for name, value in values.items()]

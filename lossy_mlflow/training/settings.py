"""What a training is told, apart from its model and its images."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lossy_mlflow.errors import UsageError


@dataclass(frozen=True, slots=True)
class Settings:
    """How to train. `n_val_batch`: validate on so many batches at most; None: on the whole split.

    Raises UsageError for a number that means nothing.
    """

    batch_size: int
    epochs: int
    learning_rate: float
    seed: int
    n_val_batch: int | None = None

    def __post_init__(self) -> None:
        for name in ("batch_size", "epochs", "n_val_batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} must be at least 1, it is {value}.")
        if not 0 < self.learning_rate < math.inf:
            raise UsageError(f"learning_rate must be a finite number above 0, it is {self.learning_rate}.")

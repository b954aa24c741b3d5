"""Training as a pure generator of epochs: tensors in, numbers out; no files, no logging, no hparams."""

from __future__ import annotations

from lossy_mlflow.training.batches import Stopped, with_labels
from lossy_mlflow.training.iwae import iwae_bound
from lossy_mlflow.training.loop import (
    EpochResult,
    NonFiniteLossError,
    make_optimizer,
    not_finite,
    train_epochs,
)
from lossy_mlflow.training.seeds import derived_seed, generator_for, seeded
from lossy_mlflow.training.settings import Settings
from lossy_mlflow.training.state import Matched, load_matching, load_state_tensors, state_tensors
from lossy_mlflow.training.validation import validation_loss

__all__ = [
    "EpochResult",
    "Matched",
    "NonFiniteLossError",
    "Settings",
    "Stopped",
    "derived_seed",
    "generator_for",
    "iwae_bound",
    "load_matching",
    "load_state_tensors",
    "make_optimizer",
    "not_finite",
    "seeded",
    "state_tensors",
    "train_epochs",
    "validation_loss",
    "with_labels",
]

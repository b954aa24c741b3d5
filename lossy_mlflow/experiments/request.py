"""What is to be trained, as the user asked for it, and what they hear of it meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lossy_mlflow.hparams import Hparam


@dataclass(frozen=True, slots=True)
class EpochDone:
    """What a progress callback hears after each epoch. Losses in nats per image."""

    label: str
    epoch: int
    epochs: int
    train_loss: float
    val_loss: float


@dataclass(frozen=True, slots=True)
class Request:
    """The label and its tree; the options that concern the machine and the moment."""

    label: str
    hparam_set: str
    e_name: str
    tree: Hparam
    overwrite: bool
    device: str
    data_dir: str | None
    user_code: Path | None
    progress: Callable[[EpochDone], None] | None

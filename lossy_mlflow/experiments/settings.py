"""From the tree and the options to what a training takes, with an error that names the field where one doesn't fit."""

from __future__ import annotations

import torch

from lossy_mlflow.data import Splits
from lossy_mlflow.errors import UsageError
from lossy_mlflow.hparams import Hparam
from lossy_mlflow.training import Settings


def choose_device(name: str) -> torch.device:
    """auto: a GPU where there is one. Raises UsageError for a GPU that isn't there."""
    if name not in ("auto", "cpu", "cuda"):
        raise UsageError(f"There is no device {name!r}.", "--device auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "torch sees no GPU on this machine.",
            "--device cpu, or auto, which takes a GPU where there is one",
        )
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def settings_of(tree: Hparam) -> Settings:
    """The numbers that the training loop takes. Raises UsageError, which names the field that is missing or of the wrong kind."""
    numbers = {
        "model_train.batch_size": tree.model_train and tree.model_train.batch_size,
        "model_train.epochs": tree.model_train and tree.model_train.epochs,
        "random_seed": tree.random_seed,
        "checkpointing_freq": tree.checkpointing_freq,
    }
    for field, value in numbers.items():
        least = 0 if field == "random_seed" else 1
        if not isinstance(value, int) or value < least:
            raise UsageError(
                f"The hparam {field} must be a whole number of at least {least}; it is {value!r}."
            )
    if not isinstance(tree.learning_rate, float) or not tree.learning_rate > 0:
        raise UsageError(f"The hparam learning_rate must be a number above 0; it is {tree.learning_rate!r}.")
    if tree.dataset is None or not isinstance(tree.dataset.name, str):
        raise UsageError("The hparam dataset.name is missing.", "See the data sets: lossy data list")
    return Settings(
        batch_size=tree.model_train.batch_size,
        epochs=tree.model_train.epochs,
        learning_rate=tree.learning_rate,
        seed=tree.random_seed,
        n_val_batch=tree.n_val_batch,
    )


def check_sizes(tree: Hparam, splits: Splits) -> None:
    """Raises UsageError where the data set's images are not of the size that the tree says."""
    length = splits.train.shape[1]
    if tree.dataset.input_vector_length != length:
        raise UsageError(
            f"The images of {splits.name} have {length} values; "
            f"the hparam dataset.input_vector_length is {tree.dataset.input_vector_length}."
        )

"""From the tree and the options to what a training takes, with an error that names the field where one doesn't fit."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from lossy_mlflow.data import Splits
from lossy_mlflow.errors import UsageError
from lossy_mlflow.hparams import Hparam
from lossy_mlflow.models import Autoencoder, Trainable
from lossy_mlflow.training import Settings


def _whole(least: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= least


def _optional(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or check(value)


def _text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_text, value))


# Every field that training by name reads itself, what it must be, and how that is said. A model's own fields it checks itself.
_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "model_train.batch_size": (_whole(1), "a whole number of at least 1"),
    "model_train.epochs": (_whole(1), "a whole number of at least 1"),
    "model_train.z_size": (_whole(1), "a whole number of at least 1"),
    "random_seed": (_whole(0), "a whole number of at least 0"),
    "learning_rate": (lambda value: isinstance(value, float) and 0 < value < math.inf, "a number above 0"),
    "checkpointing_freq": (_whole(1), "a whole number of at least 1"),
    "start_checkpointing": (_optional(_whole(0)), "a whole number of at least 0"),
    "n_val_batch": (_optional(_whole(1)), "a whole number of at least 1, or null: the whole split"),
    "n_iwae_samples": (_optional(_whole(0)), "a whole number of at least 0"),
    "load_checkpoint_name": (_optional(_text), "the label of another model, or null"),
    "chkt_step": (_optional(_whole(-2)), "-2 (best), -1 (last) or an epoch"),
    "group_list": (_optional(_texts), "a list of names"),
    "dataset.name": (_text, "the name of a data set (lossy data list)"),
    "dataset.train": (_optional(lambda value: isinstance(value, bool)), "true or false"),
}


def settings_of(tree: Hparam) -> Settings:
    """The numbers that the training loop takes. Raises UsageError, which names the field that is missing or of the wrong kind."""
    for key, (fits, wanted) in _FIELDS.items():
        value: Any = tree
        for name in key.split("."):
            value = getattr(value, name, None)
        if not fits(value):
            raise UsageError(
                f"The hparam {key} must be {wanted}; it is {value!r}.", f"Set it: --set {key}=VALUE"
            )
    return Settings(
        batch_size=tree.model_train.batch_size,
        epochs=tree.model_train.epochs,
        learning_rate=tree.learning_rate,
        seed=tree.random_seed,
        n_val_batch=tree.n_val_batch,
    )


def experiment_name(tree: Hparam) -> str:
    """The MLflow experiment that holds the set's runs: its `group_list` as a path."""
    return "/".join(tree.group_list or ["lossy"])


def check_sizes(tree: Hparam, splits: Splits) -> None:
    """Raises UsageError where the data set's images are not of the size that the tree says."""
    for key, given, real in (
        ("dataset.input_dims", tree.dataset.input_dims, list(splits.input_dims)),
        ("dataset.input_vector_length", tree.dataset.input_vector_length, splits.train.shape[1]),
    ):
        if given != real:
            raise UsageError(
                f"The hparam {key} is {given!r}; the images of {splits.name} have {real!r}.",
                f"Set it: --set '{key}={real!r}'",
            )


def check_model(model: torch.nn.Module, tree: Hparam) -> None:
    """Raises UsageError where the model can't do what the tree asks of it."""
    if not isinstance(model, Trainable):
        raise UsageError(
            f"The model {tree.model_name!r} can't be trained: it has no loss(batch, generator).",
            "Give it one that returns (loss, named terms): see docs/models.md",
        )
    if tree.n_iwae_samples and not isinstance(model, Autoencoder):
        raise UsageError(
            f"The model {tree.model_name!r} has no encode(x): its IWAE bound can't be had.",
            "Set n_iwae_samples to 0, or give it a method encode(x) -> (z_mean, z_logvar).",
        )

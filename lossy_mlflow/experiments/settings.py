"""From the tree and the options to what a training takes, with an error that names the field where one doesn't fit."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from lossy_mlflow.data import Splits
from lossy_mlflow.errors import UsageError
from lossy_mlflow.hparams import Hparam
from lossy_mlflow.models.fields import field, how_to_set, unfit_field
from lossy_mlflow.training import Settings


def _at_least(least: int) -> Callable[[Any], bool]:
    return lambda value: bool(value >= least)


def _any(_: Any) -> bool:
    return True


_INT, _NULL = (int,), (type(None),)

# Every field that training by name reads itself: of what kind it is, what it must be, and how that is said. A model's own fields
# it checks itself.
_FIELDS: dict[str, tuple[tuple[type, ...], Callable[[Any], bool], str]] = {
    "model_train.batch_size": (_INT, _at_least(1), "a whole number of at least 1"),
    "model_train.epochs": (_INT, _at_least(1), "a whole number of at least 1"),
    "model_train.z_size": (_INT, _at_least(1), "a whole number of at least 1"),
    "random_seed": (_INT, _at_least(0), "a whole number of at least 0"),
    "learning_rate": ((float, int), lambda value: 0 < value < math.inf, "a number above 0"),
    "checkpointing_freq": (_INT, _at_least(1), "a whole number of at least 1"),
    "start_checkpointing": (_INT + _NULL, _at_least(0), "a whole number of at least 0"),
    "n_val_batch": (_INT + _NULL, _at_least(1), "a whole number of at least 1, or null: the whole split"),
    "n_iwae_samples": (_INT + _NULL, _at_least(0), "a whole number of at least 0"),
    "load_checkpoint_name": ((str, *_NULL), bool, "the label of another model, or null"),
    "chkt_step": (_INT + _NULL, _at_least(-2), "-2 (best), -1 (last) or an epoch"),
    "group_list": (
        (list, *_NULL),
        lambda value: all(isinstance(name, str) and name for name in value),
        "a list of names",
    ),
    "dataset.name": ((str,), bool, "the name of a data set (lossy data list)"),
    "dataset.train": ((bool, *_NULL), _any, "true or false"),
}


def settings_of(tree: Hparam) -> Settings:
    """The numbers that the training loop takes. Raises UsageError, which names the field that is missing or of the wrong kind."""
    for key, (kinds, fits, wanted) in _FIELDS.items():
        value = field(tree, key)
        if not (type(value) in kinds and (value is None or fits(value))):
            raise unfit_field(tree, key, kinds, wanted)
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
                how_to_set(tree, key, type(real), repr(real)),
            )

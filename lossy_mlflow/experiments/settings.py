"""From the tree and the options to what a training takes, with an error that names the field where one doesn't fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from lossy_mlflow.data import Splits
from lossy_mlflow.errors import UsageError
from lossy_mlflow.hparams import Hparam
from lossy_mlflow.models.fields import field, how_to_set, unfit_field
from lossy_mlflow.training import Settings

# Of what kinds a field is, what it must be, and how that is said.
Field: TypeAlias = tuple[tuple[type, ...], Callable[[Any], bool], str]


def at_least(least: int) -> Callable[[Any], bool]:
    return lambda value: bool(value >= least)


def anything(_: Any) -> bool:
    return True


_INT, _NULL = (int,), (type(None),)

# Every field that training by name reads itself. A model's own fields it checks itself.
_FIELDS: dict[str, Field] = {
    "model_train.batch_size": (_INT, at_least(1), "a whole number of at least 1"),
    "model_train.epochs": (_INT, at_least(1), "a whole number of at least 1"),
    "random_seed": (_INT, at_least(0), "a whole number of at least 0"),
    "learning_rate": ((float, int), lambda value: 0 < value < math.inf, "a number above 0"),
    "checkpointing_freq": (_INT, at_least(1), "a whole number of at least 1"),
    "start_checkpointing": (_INT + _NULL, at_least(0), "a whole number of at least 0"),
    "n_val_batch": (_INT + _NULL, at_least(1), "a whole number of at least 1, or null: the whole split"),
    "n_iwae_samples": (_INT + _NULL, at_least(0), "a whole number of at least 0"),
    "load_checkpoint_name": ((str, *_NULL), bool, "the label of another model, or null"),
    "chkt_step": (_INT + _NULL, at_least(-2), "-2 (best), -1 (last) or an epoch"),
    "group_list": (
        (list, *_NULL),
        lambda value: all(isinstance(name, str) and name for name in value),
        "a list of names",
    ),
    "dataset.name": ((str,), bool, "the name of a data set (lossy data list)"),
    "dataset.train": ((bool, *_NULL), anything, "true or false"),
}


def settings_of(tree: Hparam) -> Settings:
    """The numbers that the training loop takes. Raises UsageError, which names the field that is missing or of the wrong kind."""
    check_fields(tree, _FIELDS)
    return Settings(
        batch_size=tree.model_train.batch_size,
        epochs=tree.model_train.epochs,
        learning_rate=tree.learning_rate,
        seed=tree.random_seed,
        n_val_batch=tree.n_val_batch,
    )


def check_fields(tree: Hparam, fields: Mapping[str, Field]) -> None:
    """Raises UsageError, which names the field of the tree that is missing or isn't what `fields` say."""
    for key, (kinds, fits, wanted) in fields.items():
        value = field(tree, key)
        if not (type(value) in kinds and (value is None or fits(value))):
            raise unfit_field(tree, key, kinds, wanted)


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

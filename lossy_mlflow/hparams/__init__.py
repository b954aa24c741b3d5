"""What an experiment is: a tree of plain values; and the catalogue of named ones.

Imports neither torch nor mlflow.
"""

from lossy_mlflow.hparams.diff import Difference, diff
from lossy_mlflow.hparams.flatten import flatten, hparams_sha256, read_value, unflatten
from lossy_mlflow.hparams.label import evaluate_command, run_label, set_of_label, train_command
from lossy_mlflow.hparams.machine import MACHINE_FIELDS, MLFLOW_RUN_PARAMETERS
from lossy_mlflow.hparams.overrides import apply_overrides, read_assignments
from lossy_mlflow.hparams.registry import (
    evaluates,
    get_hparams,
    part,
    register_hparams,
    set_dataset,
    set_names,
    set_summary,
)
from lossy_mlflow.hparams.tree import Hparam, Value, fields, freeze, origins

__all__ = [
    "MACHINE_FIELDS",
    "MLFLOW_RUN_PARAMETERS",
    "Difference",
    "Hparam",
    "Value",
    "apply_overrides",
    "diff",
    "evaluate_command",
    "evaluates",
    "fields",
    "flatten",
    "freeze",
    "get_hparams",
    "hparams_sha256",
    "origins",
    "part",
    "read_assignments",
    "read_value",
    "register_hparams",
    "run_label",
    "set_dataset",
    "set_names",
    "set_of_label",
    "set_summary",
    "train_command",
    "unflatten",
]

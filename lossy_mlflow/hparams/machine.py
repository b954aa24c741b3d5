"""Names that no tree may use: what concerns the machine or the moment is an option here, not a field."""

from __future__ import annotations

from collections.abc import Iterable

from lossy_mlflow.errors import UsageError

# Field of the published code -> what takes its place.
MACHINE_FIELDS = {
    "cuda": "use --device cpu or --device cuda",
    "verbose": "use -v",
    "no_workers": "not needed, since the images are held in memory",
    "data_dir": "use --data-dir or the environment variable LOSSY_DATA_DIR",
    "output_root_dir": "set the environment variable MLFLOW_TRACKING_URI, the results are runs there",
    "checkpoint_root_dir": "set the environment variable MLFLOW_TRACKING_URI, the models are registered there",
    "resume_training": "start the same name again, it resumes",
    "specific_model_path": "set load_checkpoint_name to a registered model",
    "original_experiment": "set load_checkpoint_name to a registered model",
}

# `mlflow run` logs its own parameters, and refuses a field of the same name with another value.
MLFLOW_RUN_PARAMETERS = frozenset(
    {"hparam_set", "e_name", "overwrite", "overrides", "user_code", "device", "data_dir"}
)


def refuse_machine_fields(keys: Iterable[str], who: str) -> None:
    """Raises UsageError for the first dotted key that is an option here; `who` says who sets it."""
    for key in keys:
        name = key.rpartition(".")[2]
        if name in MACHINE_FIELDS:
            raise UsageError(
                f"{who} sets {key!r}, which belongs to the machine or the moment, not to the tree.",
                f"{name}: {MACHINE_FIELDS[name]}.",
            )
        if key in MLFLOW_RUN_PARAMETERS:
            raise UsageError(
                f"{who} sets {key!r}, a name that `mlflow run` uses for a parameter of its own.",
                "As an option: see lossy train --help. A field of your own needs another name.",
            )

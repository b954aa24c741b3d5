"""Experiment tracking on MLflow for decoder-based generative models.

The public names load what they need when they are first used: `import lossy_mlflow` itself loads neither torch nor mlflow.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lossy_mlflow.checkpoints import load_decoder, register_converter
    from lossy_mlflow.experiments import evaluate, train
    from lossy_mlflow.hparams import Hparam, get_hparams, register_hparams
    from lossy_mlflow.models import register_model

__all__ = [
    "Hparam",
    "evaluate",
    "get_hparams",
    "load_decoder",
    "register_converter",
    "register_hparams",
    "register_model",
    "train",
]

_HOME = {
    "Hparam": "hparams",
    "get_hparams": "hparams",
    "register_hparams": "hparams",
    "register_model": "models",
    "load_decoder": "checkpoints",
    "register_converter": "checkpoints",
    "train": "experiments",
    "evaluate": "experiments",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__

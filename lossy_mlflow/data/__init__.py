"""The image sets: which there are, their files on disk, and their images as tensors.

Fetching needs neither torch nor numpy; `load_splits` and `Splits` load them when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from lossy_mlflow.data.catalogue import dataset_names
from lossy_mlflow.data.fetch import Progress, fetch
from lossy_mlflow.data.folder import data_folder

if TYPE_CHECKING:
    from lossy_mlflow.data.splits import Splits, load_splits

__all__ = ["Progress", "Splits", "data_folder", "dataset_names", "fetch", "load_splits"]


def __getattr__(name: str) -> object:
    if name not in ("Splits", "load_splits"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.splits"), name)


def __dir__() -> list[str]:
    return __all__

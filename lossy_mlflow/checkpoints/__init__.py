"""Decoders as versions of registered models: published, resolved by name, loaded. Alone knows the registry.

Names are loaded when they are first used: resolving a reference needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lossy_mlflow.checkpoints.foreign.converters import register_converter
    from lossy_mlflow.checkpoints.load import load_decoder
    from lossy_mlflow.checkpoints.lookup import Checkpoint, list_checkpoints, list_names, resolve
    from lossy_mlflow.checkpoints.reference import Reference, parse_reference

__all__ = [
    "Checkpoint",
    "Reference",
    "list_checkpoints",
    "list_names",
    "load_decoder",
    "parse_reference",
    "register_converter",
    "resolve",
]

_HOME = {
    "Checkpoint": "lookup",
    "Reference": "reference",
    "list_checkpoints": "lookup",
    "list_names": "lookup",
    "load_decoder": "load",
    "parse_reference": "reference",
    "register_converter": "foreign.converters",
    "resolve": "lookup",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)

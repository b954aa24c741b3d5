"""Readers of a user's own, for files of a format that isn't known here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from lossy_mlflow.errors import ConflictError, UsageError

Converter = Callable[[Path], Mapping[str, Any]]
_ConverterT = TypeVar("_ConverterT", bound=Converter)
_registered: dict[str, Converter] = {}


def register_converter(suffix: str) -> Callable[[_ConverterT], _ConverterT]:
    """Decorator: `lossy import` reads files whose names end in `suffix` (".h5") with the function below, in a --user-code file.

    It takes the file's path and returns its tensors (of torch, or numpy arrays) by the names that the model's own have: those of
    `decoder_of(model).state_dict()`, or of the whole model's. Registering the same function again replaces it. Raises
    ConflictError where another one has the suffix.
    """
    if not isinstance(suffix, str) or not suffix.startswith("."):
        raise UsageError(
            "register_converter needs the ending of the files' names.", 'Write @register_converter(".h5")'
        )

    def register(function: _ConverterT) -> _ConverterT:
        holder = _registered.get(suffix)
        if holder is not None and _identity(holder) != _identity(function):
            raise ConflictError(
                f"Files {suffix} are read by {_identity(holder)} already.", "Keep one of the two."
            )
        _registered[suffix] = function
        return function

    return register


def converter_for(file_name: str) -> Converter | None:
    """The one whose suffix the name ends in, the longest of several; None where there is none."""
    fitting = [suffix for suffix in _registered if file_name.endswith(suffix)]
    return _registered[max(fitting, key=len)] if fitting else None


def _identity(function: Converter) -> str:
    return f"{function.__module__}.{getattr(function, '__qualname__', type(function).__name__)}"

"""The fields that a model needs of an hparam tree; where one doesn't fit, an error names it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from lossy_mlflow.errors import UsageError
from lossy_mlflow.hparams import Hparam


@dataclass(frozen=True, slots=True)
class ImageShape:
    """What one image is. `size` is channels * height * width."""

    channels: int
    height: int
    width: int

    @property
    def size(self) -> int:
        return self.channels * self.height * self.width


def whole_number(tree: Hparam, key: str) -> int:
    """The field `key` (dotted), a whole number of at least 1."""
    value = _field(tree, key)
    if not _is_size(value):
        raise _unfit(key, value, "a whole number of at least 1")
    return int(value)


def whole_numbers(tree: Hparam, key: str) -> list[int]:
    """The field `key` (dotted), a list of whole numbers of at least 1; the list may be empty."""
    value = _field(tree, key)
    if not isinstance(value, list) or not all(map(_is_size, value)):
        raise _unfit(key, value, "a list of whole numbers of at least 1")
    return value


def positive_number(tree: Hparam, key: str) -> float:
    """The field `key` (dotted), a finite number above 0."""
    value = _field(tree, key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise _unfit(key, value, "a number above 0")
    return float(value)


def flag(tree: Hparam, key: str) -> bool:
    """The field `key` (dotted), true or false."""
    value = _field(tree, key)
    if not isinstance(value, bool):
        raise _unfit(key, value, "true or false")
    return value


def image_shape(tree: Hparam) -> ImageShape:
    """`dataset.input_dims` as (channels, height, width), checked against `dataset.input_vector_length`."""
    dims = whole_numbers(tree, "dataset.input_dims")
    if len(dims) != 3:
        raise _unfit("dataset.input_dims", dims, "[channels, height, width]")
    shape = ImageShape(*dims)
    length = whole_number(tree, "dataset.input_vector_length")
    if length != shape.size:
        raise _unfit(
            "dataset.input_vector_length", length, f"the product of dataset.input_dims, {shape.size}"
        )
    return shape


def _field(tree: Hparam, key: str) -> Any:
    value: Any = tree
    for name in key.split("."):
        value = getattr(value, name, None)
    return value


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _unfit(key: str, value: object, wanted: str) -> UsageError:
    shown = "undefined" if value is None else repr(value)
    return UsageError(f"The hparam {key} is {shown}; the model needs {wanted}.", f"Set it: --set {key}=VALUE")

"""The fields that a model needs of an hparam tree; where one doesn't fit, an error names it."""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass
from typing import Any

from lossy_mlflow.errors import UsageError
from lossy_mlflow.hparams import Hparam, origins


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
    value = field(tree, key)
    if not _is_size(value):
        raise unfit_field(tree, key, (int,), "a whole number of at least 1")
    return int(value)


def whole_numbers(tree: Hparam, key: str) -> list[int]:
    """The field `key` (dotted), a list of whole numbers of at least 1; the list may be empty."""
    value = field(tree, key)
    if not isinstance(value, list) or not all(map(_is_size, value)):
        raise unfit_field(tree, key, (list,), "a list of whole numbers of at least 1")
    return value


def positive_number(tree: Hparam, key: str) -> float:
    """The field `key` (dotted), a finite number above 0."""
    value = field(tree, key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise unfit_field(tree, key, (float, int), "a number above 0")
    return float(value)


def flag(tree: Hparam, key: str) -> bool:
    """The field `key` (dotted), true or false."""
    value = field(tree, key)
    if not isinstance(value, bool):
        raise unfit_field(tree, key, (bool,), "true or false")
    return value


def image_shape(tree: Hparam) -> ImageShape:
    """`dataset.input_dims` as (channels, height, width), checked against `dataset.input_vector_length`."""
    dims = whole_numbers(tree, "dataset.input_dims")
    if len(dims) != 3:
        raise unfit_field(tree, "dataset.input_dims", (list,), "[channels, height, width]")
    shape = ImageShape(*dims)
    length = whole_number(tree, "dataset.input_vector_length")
    if length != shape.size:
        raise unfit_field(
            tree,
            "dataset.input_vector_length",
            (int,),
            f"the product of dataset.input_dims, {shape.size}",
        )
    return shape


def field(tree: Hparam, key: str) -> Any:
    """The value of the field `key` (dotted); None where it, or a tree above it, is undefined."""
    value: Any = tree
    for name in key.split("."):
        value = getattr(value, name, None)
    return value


def unfit_field(tree: Hparam, key: str, kinds: tuple[type, ...], wanted: str) -> UsageError:
    """What says that the field isn't what is `wanted`, and how to set it. `kinds`: its types, the usual one first."""
    value = field(tree, key)
    shown = "undefined" if value is None else repr(value)
    return UsageError(
        f"The hparam {key} is {shown}; it must be {wanted}.", how_to_set(tree, key, kinds[0], "VALUE")
    )


def how_to_set(tree: Hparam, key: str, kind: type, value: str) -> str:
    """What gives the field a value of that kind. `--set` alone can't where no set defines it, or as something of another kind."""
    origin, there = origins(tree).get(key), field(tree, key)
    if origin == "override" or (origin is not None and (there is None or type(there) is kind)):
        return f"Set it: --set {shlex.quote(f'{key}={value}')}"
    return f"--set can't: put it where the hparam set is defined, as tree.{key} = {value}"


def _is_size(value: object) -> bool:
    return type(value) is int and value >= 1

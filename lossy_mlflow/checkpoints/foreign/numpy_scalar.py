"""Numbers that numpy has pickled, as plain ones: numpy itself would make whatever its arguments ask for.

The published code's losses are such. torch.load is told to call these two where a file says numpy's names.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from lossy_mlflow.checkpoints.foreign.contents import UnreadableError

# numpy's codes as struct's.
_FORMATS = {
    "f8": "d",
    "f4": "f",
    "f2": "e",
    "i8": "q",
    "i4": "i",
    "i2": "h",
    "i1": "b",
    "u8": "Q",
    "u4": "I",
    "u2": "H",
    "u1": "B",
    "b1": "?",
}


class NumpyType:
    """What numpy.dtype pickles: its code, as "f8", and in its state the order of the bytes."""

    def __init__(self, code: str, *_: object) -> None:
        self.code = code
        self.order = "="

    def __setstate__(self, state: tuple[object, ...]) -> None:
        self.order = ">" if state[1] == ">" else "<"


def numpy_number(kind: NumpyType, content: bytes) -> float | int | bool:
    """The number. Raises UnreadableError for what is none."""
    if not isinstance(kind, NumpyType) or kind.code not in _FORMATS or not isinstance(content, bytes):
        raise UnreadableError("a value of numpy's is in it that is no number")
    number: float | int | bool = struct.unpack(kind.order + _FORMATS[kind.code], content)[0]
    return number


# With the names that files of numpy before 2 and after it say.
NUMPY_NAMES: list[Callable[..., object] | tuple[Callable[..., object], str]] = [
    (NumpyType, "numpy.dtype"),
    (numpy_number, "numpy.core.multiarray.scalar"),
    (numpy_number, "numpy._core.multiarray.scalar"),
]

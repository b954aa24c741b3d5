"""numpy.savez's archives: named arrays, none of them of Python objects."""

from __future__ import annotations

import math
import zipfile
from io import BytesIO
from typing import TYPE_CHECKING

from lossy_mlflow.checkpoints.foreign.contents import UnreadableError, explained_format, refuse_beyond_memory
from lossy_mlflow.checkpoints.foreign.zip_file import open_zip, read_member

if TYPE_CHECKING:
    from torch import Tensor

_SUFFIX = ".npy"
# Floats, whole numbers, truth values.
_KINDS = "fiub"


def is_numpy_zip(names: list[str]) -> bool:
    """Whether a zip with members of these names is one of numpy's."""
    return bool(names) and all(name.endswith(_SUFFIX) for name in names)


def load_arrays(content: bytes, what: str) -> dict[str, Tensor]:
    """The arrays as tensors, by name. Raises UnreadableError."""
    with open_zip(BytesIO(content), what) as opened:
        members = opened.infolist()
        refuse_beyond_memory(what, sum(member.file_size for member in members))
        return {
            member.filename.removesuffix(_SUFFIX): _load(opened, member, f"{member.filename} in {what}")
            for member in members
        }


def _load(opened: zipfile.ZipFile, member: zipfile.ZipInfo, what: str) -> Tensor:
    import numpy as np
    import torch

    content = read_member(opened, member, what)
    with explained_format(what):
        _check_header(content, what)
        array = np.load(BytesIO(content), allow_pickle=False)
        # In this machine's byte order, and in memory of its own.
        return torch.from_numpy(np.array(array, array.dtype.newbyteorder("="), order="C"))


def _check_header(content: bytes, what: str) -> None:
    """What a header promises is looked at first: numpy makes room for it before it reads."""
    from numpy.lib import format as npy

    stream = BytesIO(content)
    version = npy.read_magic(stream)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(stream)
    if dtype.kind not in _KINDS:
        raise UnreadableError(f"{what} holds {dtype}, not numbers.", "Save arrays of float32 there.")
    promised, rest = math.prod(shape) * dtype.itemsize, len(content) - stream.tell()
    if promised != rest:
        raise UnreadableError(
            f"{what} promises {promised:,} bytes of numbers and has {rest:,}.",
            "It is damaged: fetch it again.",
        )

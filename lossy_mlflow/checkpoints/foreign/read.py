"""From a file's bytes to its tensors, whatever it calls itself: the format is told by how it begins."""

from __future__ import annotations

import math
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lossy_mlflow.checkpoints.foreign.contents import Contents, UnreadableError, explained_format
from lossy_mlflow.checkpoints.foreign.converters import Converter
from lossy_mlflow.checkpoints.foreign.numpy_file import is_numpy_zip, load_arrays
from lossy_mlflow.checkpoints.foreign.torch_file import STREAM_START, data_pickle, load_stream, load_zip
from lossy_mlflow.checkpoints.foreign.zip_file import open_zip
from lossy_mlflow.user_code import explained_user_code

if TYPE_CHECKING:
    from torch import Tensor

_ZIP_START = b"PK\x03\x04"
_FORMATS = (
    "What is read: torch.save of a state dict, or of a dict that has one as 'state_dict'; safetensors; numpy.savez;"
    " anything else by @register_converter in a --user-code file."
)


def read_checkpoint(content: bytes, what: str) -> Contents:
    """The tensors in `content`, a whole file; `what` names it in errors. Nothing of it is run.

    Raises UnreadableError where it is of no format that is known, damaged, or asks for more than tensors.
    """
    if content.startswith(_ZIP_START):
        with open_zip(BytesIO(content), what) as opened:
            names = opened.namelist()
        if data_pickle(names):
            return _of_torch(load_zip(content, what), what)
        if is_numpy_zip(names):
            return Contents(_plain(load_arrays(content, what), what))
        raise UnreadableError(f"{what} is a zip, neither torch's nor numpy's.", _FORMATS)
    if content.startswith(STREAM_START):
        return _of_torch(load_stream(content, what), what)
    if content[8:9] == b"{":
        from safetensors.torch import load

        with explained_format(what):
            return Contents(_plain(load(content), what))
    if content.startswith(b"\x80"):
        raise UnreadableError(f"{what} is a pickle, and not torch's: it is not run.", _FORMATS)
    kind = "is empty" if not content else "has no format that is known here"
    raise UnreadableError(f"{what} {kind}.", _FORMATS)


def is_checkpoint(path: Path) -> bool:
    """Whether the file is one that `read_checkpoint` would try: anything but a zip that is neither torch's nor numpy's."""
    with path.open("rb") as file:
        if file.read(4) != _ZIP_START:
            return True
        with open_zip(file, path.name) as opened:
            names = opened.namelist()
    return data_pickle(names) is not None or is_numpy_zip(names)


def convert(converter: Converter, path: Path) -> Contents:
    """What the user's own converter reads from the file. Raises LossyError with the line where it fails."""
    import numpy as np
    import torch

    who = f"The converter of {path.name}"
    with explained_user_code(f"{who} fails"):
        given: object = converter(path)
    if not isinstance(given, Mapping):
        raise UnreadableError(f"{who} returns a {type(given).__name__}, not a dict of tensors by name.")
    with explained_format(f"What {who.lower()} returns"):
        tensors = {
            name: torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value
            for name, value in given.items()
        }
    return Contents(_plain(tensors, f"What {who.lower()} returns"))


def _of_torch(loaded: Any, what: str) -> Contents:
    if not isinstance(loaded, Mapping):
        raise UnreadableError(f"{what} holds a {type(loaded).__name__}, not a dict of tensors.", _FORMATS)
    if not isinstance(loaded.get("state_dict"), Mapping):
        return Contents(_plain(loaded, what))
    epoch, losses = loaded.get("global_epoch"), loaded.get("test_loss_list")
    return Contents(
        _plain(loaded["state_dict"], what),
        epoch if type(epoch) is int and epoch >= 0 else None,
        _last_loss(losses),
    )


def _last_loss(losses: object) -> float | None:
    """The loss of the epoch after which the file was written; None where it isn't a finite number."""
    last = losses[-1] if isinstance(losses, list) and losses else None
    return float(last) if isinstance(last, int | float) and math.isfinite(last) else None


def _plain(tensors: Mapping[Any, Any], what: str) -> dict[str, Tensor]:
    """The same, if they are dense tensors under names, none of which shows more numbers than it has."""
    import torch

    for name, value in tensors.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise UnreadableError(
                f"{what} holds under {name!r} a {type(value).__name__}, not a tensor.", _FORMATS
            )
        if value.layout != torch.strided or value.is_quantized or value.is_complex():
            raise UnreadableError(
                f"{name} in {what} is not a dense tensor of real numbers.", "Save it as one."
            )
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise UnreadableError(
                f"{name} in {what} promises {value.numel():,} numbers and has fewer.",
                "Save it with tensor.contiguous().",
            )
    if not tensors:
        raise UnreadableError(f"{what} holds no tensors.", _FORMATS)
    return {str(name): value.detach() for name, value in tensors.items()}

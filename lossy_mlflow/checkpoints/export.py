"""A decoder in one file, for those who leave: tensors by name, and the hparams that say what they are tensors of."""

from __future__ import annotations

import contextlib
import io
import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lossy_mlflow.checkpoints.flavor import weights_and_tree
from lossy_mlflow.checkpoints.load import local_copy
from lossy_mlflow.checkpoints.lookup import Checkpoint, resolve
from lossy_mlflow.errors import ConflictError, LossyError
from lossy_mlflow.hparams import Hparam, flatten
from lossy_mlflow.tracking.connection import explained

SUFFIXES = {"safetensors": ".safetensors", "torch": ".pt"}


@dataclass(frozen=True, slots=True)
class Export:
    """A version's decoder in `file`."""

    name: str
    version: int
    uri: str
    format: str
    file: str


def export(reference: str, kind: str, file: Path | None = None) -> Export:
    """Write the decoder that `reference` means to `file`, else to NAME-VERSION.safetensors or .pt in the working folder.

    safetensors: its metadata holds `hparams`, the flattened tree as JSON, and `source`. torch: {"state_dict", "hparams"}, which
    torch.load(weights_only=True) reads. Neither needs this package to be read, nor the first one torch to be written.
    Raises ConflictError where the file exists: nothing is overwritten; else as `resolve` and `local_copy` do.
    """
    checkpoint = resolve(reference)
    target = file or Path(f"{checkpoint.name}-{checkpoint.version}{SUFFIXES[kind]}")
    if target.exists():
        raise ConflictError(f"{target} exists; it stays as it is.", "Name another file: -o FILE")
    weights, tree = weights_and_tree(local_copy(checkpoint))
    # Beside it, so that no half of it ever bears its name.
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with explained():
            if kind == "torch":
                _write_torch(weights, tree, aside)
            else:
                _write_safetensors(weights, _metadata(checkpoint, tree), aside)
            aside.rename(target)
    except OSError as error:
        raise LossyError(
            f"{target} can't be written: {error.strerror}.", "Name another file: -o FILE"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            aside.unlink()
    return Export(checkpoint.name, checkpoint.version, checkpoint.uri, kind, str(target))


def _metadata(checkpoint: Checkpoint, tree: Hparam) -> dict[str, str]:
    # "format": what other libraries look for before they take tensors for torch's.
    return {"format": "pt", "source": checkpoint.uri, "hparams": json.dumps(flatten(tree))}


def _write_safetensors(weights: Path, metadata: Mapping[str, str], file: Path) -> None:
    """The same tensors, byte for byte, under a header with that metadata too: 8 bytes of length, JSON, blanks to align it."""
    with weights.open("rb") as source, file.open("wb") as out:
        (length,) = struct.unpack("<Q", source.read(8))
        header = json.loads(source.read(length))
        header["__metadata__"] = header.get("__metadata__", {}) | metadata
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        out.write(struct.pack("<Q", len(text)) + text)
        while chunk := source.read(1 << 20):
            out.write(chunk)


def _write_torch(weights: Path, tree: Hparam, file: Path) -> None:
    import torch
    from safetensors.torch import load_file

    # By way of memory: what a full disk does to torch's own writer is no OSError.
    content = io.BytesIO()
    torch.save({"state_dict": load_file(weights), "hparams": flatten(tree)}, content)
    file.write_bytes(content.getbuffer())

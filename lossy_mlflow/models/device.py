"""Where a model is to live: from what the user names to a torch device that is there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.backends import cudnn

from lossy_mlflow.errors import UsageError


def choose_device(name: str) -> torch.device:
    """auto: a GPU where there is one. Raises UsageError for another name, and for a GPU that isn't there."""
    if name not in ("auto", "cpu", "cuda"):
        raise UsageError(f"There is no device {name!r}.", "Take auto, cpu or cuda.")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "torch sees no GPU on this machine.", "Take cpu, or auto, which is a GPU where there is one."
        )
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


@contextmanager
def convolutions(*, exact: bool) -> Iterator[None]:
    """Within, those of a GPU give the same numbers each time; if `exact`, to the 24 bits of float32, not the 11 of TF32."""
    with cudnn.flags(enabled=cudnn.enabled, benchmark=False, deterministic=True, allow_tf32=not exact):
        yield

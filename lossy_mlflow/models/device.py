"""Where a model is to live: from what the user names to a torch device that is there."""

from __future__ import annotations

import torch

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

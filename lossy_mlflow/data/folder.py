"""Where the image files lie on this machine."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def data_folder(option: str | None = None) -> Path:
    """The folder of all data sets: `option`, else LOSSY_DATA_DIR, else the platform's cache folder.

    It is laid out like a torchvision root, so one that torchvision has filled can be named as it is.
    An empty `option` or variable counts as not given. The folder need not exist yet.
    """
    named = option or os.environ.get("LOSSY_DATA_DIR")
    if named:
        return Path(named).expanduser().absolute()
    return platformdirs.user_cache_path("lossy_mlflow", appauthor=False) / "data"

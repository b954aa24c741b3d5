"""scikit-learn's 8x8 digits, read from its package's file without importing it, which would cost a second."""

from __future__ import annotations

import hashlib
import importlib.util
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lossy_mlflow.errors import NotFoundError

_N_PIXELS = 64
# Of the bytes of the images, and of the labels.
_SHA256 = "8f26b2bd9d135c256808f68f14fdabddde6d9c7f869ae419704b051f0f14b3b3"
_LABELS_SHA256 = "8ba4f891220f5e4c9c819638d1602d74b83618f167043c6da52a2a247841ddf0"
_WAY_ON = 'install it again: pip install --force-reinstall "scikit-learn>=1.5,<2"'


def digits_file() -> Path:
    """The packaged file; NotFoundError where scikit-learn isn't installed."""
    package = importlib.util.find_spec("sklearn")  # finds the package without importing it
    if package is None or not package.submodule_search_locations:
        raise NotFoundError(
            "the digits come with scikit-learn, which isn't installed", 'pip install "lossy-mlflow[train]"'
        )
    return Path(package.submodule_search_locations[0], "datasets", "data", "digits.csv.gz")


def read_digits(path: Path | None = None) -> npt.NDArray[np.uint8]:
    """The 1797 images, uint8 (1797, 64) from 0 to 16. NotFoundError where the file is missing or damaged."""
    return _columns(path, range(_N_PIXELS), _SHA256)


def read_digit_labels(path: Path | None = None) -> npt.NDArray[np.uint8]:
    """Which digit each image is of, uint8 (1797, 1). NotFoundError as `read_digits`."""
    return _columns(path, [_N_PIXELS], _LABELS_SHA256)


def _columns(path: Path | None, columns: Sequence[int], sha256: str) -> npt.NDArray[np.uint8]:
    path = path or digits_file()
    try:
        numbers = np.loadtxt(path, delimiter=",", dtype=np.uint8, usecols=columns, ndmin=2)
    except FileNotFoundError:
        raise NotFoundError(f"scikit-learn's digits aren't at {path}", _WAY_ON) from None
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise NotFoundError(f"scikit-learn's digits at {path} can't be read: {error}", _WAY_ON) from error
    if hashlib.sha256(numbers.tobytes()).hexdigest() != sha256:
        raise NotFoundError(f"scikit-learn's digits at {path} are damaged: their SHA-256 is another", _WAY_ON)
    return numbers

"""scikit-learn's 8x8 digits, read from its package's file without importing it, which would cost a second."""

from __future__ import annotations

import hashlib
import importlib.util
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lossy_mlflow.errors import NotFoundError

_SHA256 = "8f26b2bd9d135c256808f68f14fdabddde6d9c7f869ae419704b051f0f14b3b3"  # of the images' bytes
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
    path = path or digits_file()
    try:
        images = np.loadtxt(path, delimiter=",", dtype=np.uint8, usecols=range(64))
    except FileNotFoundError:
        raise NotFoundError(f"scikit-learn's digits aren't at {path}", _WAY_ON) from None
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise NotFoundError(f"scikit-learn's digits at {path} can't be read: {error}", _WAY_ON) from error
    if hashlib.sha256(images.tobytes()).hexdigest() != _SHA256:
        raise NotFoundError(f"scikit-learn's digits at {path} are damaged: their SHA-256 is another", _WAY_ON)
    return images

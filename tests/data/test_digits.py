"""scikit-learn's digits, read past scikit-learn."""

from __future__ import annotations

import gzip
import shutil

import numpy as np
import pytest

from lossy_mlflow.data.digits import digits_file, read_digits
from lossy_mlflow.errors import NotFoundError


def test_they_are_what_scikit_learn_loads():
    from sklearn.datasets import load_digits

    images = read_digits()
    assert images.dtype == np.uint8
    assert images.max() == 16
    np.testing.assert_array_equal(images, load_digits().data)


def test_missing_file_is_said(tmp_path):
    with pytest.raises(NotFoundError, match=r"digits aren't at .*\ninstall it again: pip install"):
        read_digits(tmp_path / "digits.csv.gz")


@pytest.mark.parametrize("at", [0, 5_000, -5])
def test_flipped_byte_is_found(tmp_path, at):
    content = bytearray(digits_file().read_bytes())
    content[at] ^= 1
    (tmp_path / "digits.csv.gz").write_bytes(content)
    with pytest.raises(NotFoundError, match=r"can't be read|are damaged"):
        read_digits(tmp_path / "digits.csv.gz")


def test_cut_file_is_found(tmp_path):
    (tmp_path / "digits.csv.gz").write_bytes(digits_file().read_bytes()[:20_000])
    with pytest.raises(NotFoundError, match="can't be read"):
        read_digits(tmp_path / "digits.csv.gz")


def test_other_digits_are_found(tmp_path):
    """A well-formed file of other images: what a checksum alone can tell."""
    rows = gzip.decompress(digits_file().read_bytes()).splitlines(keepends=True)
    shutil.copy(digits_file(), tmp_path)
    (tmp_path / "digits.csv.gz").write_bytes(gzip.compress(b"".join(reversed(rows))))
    with pytest.raises(NotFoundError, match="their SHA-256 is another"):
        read_digits(tmp_path / "digits.csv.gz")

"""A data set's images as tensors in memory, split into train, validation and test from a seed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from lossy_mlflow.data.catalogue import Dataset, ImageFile, find_dataset
from lossy_mlflow.data.digits import read_digits
from lossy_mlflow.data.fetch import Progress, verified_files
from lossy_mlflow.errors import UsageError

Bytes = npt.NDArray[np.uint8]
N_DIGITS_TEST = 300


@dataclass(frozen=True, slots=True)
class Splits:
    """`train`, `val`, `test`: float32 (n, C*H*W) in [0, 1], on the CPU, contiguous. `input_dims`: (C, H, W).

    `digest` (64 hex digits) is over the images of the three parts in their order: it tells any two apart.
    """

    name: str
    input_dims: tuple[int, int, int]
    train: torch.Tensor
    val: torch.Tensor
    test: torch.Tensor
    digest: str


def load_splits(
    name: str, folder: Path, seed: int, train: bool = True, progress: Progress | None = None
) -> Splits:
    """The data set `name`, fetched into `folder` where it isn't there yet.

    The official test images are `test`; of the others, the seed chooses those held out as `val` (the digits
    have no official test images: there it chooses both). With `train=False` the two change places: the model
    is trained and validated on the test images, and `test` holds the others.

    Raises NotFoundError for an unknown name, UsageError for a seed outside [0, 2^32), and what `fetch` does.
    """
    return load_dataset(find_dataset(name), folder, seed, train, progress)


def load_dataset(dataset: Dataset, folder: Path, seed: int, train: bool, progress: Progress | None) -> Splits:
    """`load_splits` for a data set that need not be in the catalogue."""
    if not 0 <= seed < 2**32:
        raise UsageError(f"random_seed is {seed}, which can't seed a split", "take one from 0 to 4294967295")
    images, test = _official_parts(dataset, folder, seed, progress)
    n_val = dataset.n_val
    if not train:
        n_val = n_val * len(test) // len(images)  # the same share
        images, test = test, images
    # RandomState, because numpy promises that its stream never changes; that of default_rng may.
    order = np.random.RandomState(seed).permutation(len(images))
    parts = images[order[n_val:]], images[order[:n_val]], test
    tensors = (torch.from_numpy(part).to(torch.float32).div_(dataset.max_value) for part in parts)
    train_images, val_images, test_images = tensors
    digest = _digest(dataset, parts)
    return Splits(dataset.name, dataset.input_dims, train_images, val_images, test_images, digest)


def _official_parts(
    dataset: Dataset, folder: Path, seed: int, progress: Progress | None
) -> tuple[Bytes, Bytes]:
    """(images to train on, images to test on), each uint8 (n, C*H*W)."""
    if not dataset.archives:
        images = read_digits()
        order = np.random.RandomState(seed).permutation(len(images))
        return images[order[N_DIGITS_TEST:]], images[order[:N_DIGITS_TEST]]
    contents = verified_files(dataset, folder, progress)
    parts: tuple[list[Bytes], list[Bytes]] = [], []
    for file in dataset.files:
        parts[file.name in dataset.test_files].append(_images(file, contents[file.name]))
    return np.concatenate(parts[0]), np.concatenate(parts[1])


def _images(file: ImageFile, content: bytes) -> Bytes:
    records = np.frombuffer(content, np.uint8, offset=len(file.header))
    return records.reshape(file.n_images, file.n_labels + file.n_values)[:, file.n_labels :]


def _digest(dataset: Dataset, parts: tuple[Bytes, ...]) -> str:
    shapes = [part.shape for part in parts]
    digest = hashlib.sha256(f"{dataset.name} {dataset.input_dims} {dataset.max_value} {shapes}\n".encode())
    for part in parts:
        digest.update(part.tobytes())
    return digest.hexdigest()

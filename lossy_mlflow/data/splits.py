"""A data set's images as tensors in memory, split into train, validation and test from a seed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from lossy_mlflow.data.catalogue import Dataset, ImageFile, find_dataset
from lossy_mlflow.data.digits import read_digit_labels, read_digits
from lossy_mlflow.data.fetch import Progress, verified_files
from lossy_mlflow.errors import UsageError

Bytes = npt.NDArray[np.uint8]
N_DIGITS_TEST = 300


@dataclass(frozen=True, slots=True)
class Splits:
    """`train`, `val`, `test`: float32 (n, C*H*W) in [0, 1], on the CPU, contiguous. `input_dims`: (C, H, W).

    `digest` (64 hex digits) is over the images of the three parts in their order: it tells any two apart. The labels, int64 (n,),
    are there where they were asked for.
    """

    name: str
    input_dims: tuple[int, int, int]
    train: torch.Tensor
    val: torch.Tensor
    test: torch.Tensor
    digest: str
    train_labels: torch.Tensor | None = None
    val_labels: torch.Tensor | None = None
    test_labels: torch.Tensor | None = None


def load_splits(
    name: str,
    folder: Path,
    seed: int,
    train: bool = True,
    progress: Progress | None = None,
    labels: bool = False,
) -> Splits:
    """The data set `name`, fetched into `folder` where it isn't there yet.

    The official test images are `test`; of the others, the seed chooses those held out as `val` (the digits
    have no official test images: there it chooses both). With `train=False` the two change places: the model
    is trained and validated on the test images, and `test` holds the others. `labels`: with them.

    Raises NotFoundError for an unknown name, UsageError for a seed outside [0, 2^32), and what `fetch` does.
    """
    return load_dataset(find_dataset(name), folder, seed, train, progress, labels)


def load_dataset(
    dataset: Dataset, folder: Path, seed: int, train: bool, progress: Progress | None, labels: bool = False
) -> Splits:
    """`load_splits` for a data set that need not be in the catalogue."""
    if not 0 <= seed < 2**32:
        raise UsageError(f"random_seed is {seed}, which can't seed a split", "take one from 0 to 4294967295")
    official, test = _official_parts(dataset, folder, seed, progress, labels)
    n_val = dataset.n_val
    if not train:
        n_val = n_val * len(test) // len(official)  # the same share
        official, test = test, official
    # RandomState, because numpy promises that its stream never changes; that of default_rng may.
    order = np.random.RandomState(seed).permutation(len(official))
    records = official[order[n_val:]], official[order[:n_val]], test
    parts = tuple(np.ascontiguousarray(part[:, : dataset.n_values]) for part in records)
    tensors = (torch.from_numpy(part).to(torch.float32).div_(dataset.max_value) for part in parts)
    train_images, val_images, test_images = tensors
    numbers = [torch.from_numpy(part[:, -1].astype(np.int64)) if labels else None for part in records]
    digest = _digest(dataset, parts)
    return Splits(dataset.name, dataset.input_dims, train_images, val_images, test_images, digest, *numbers)


def _official_parts(
    dataset: Dataset, folder: Path, seed: int, progress: Progress | None, labels: bool
) -> tuple[Bytes, Bytes]:
    """(images to train on, images to test on), each uint8 (n, C*H*W); with `labels`, these are a last column."""
    if not dataset.archives:
        images = np.hstack([read_digits(), read_digit_labels()]) if labels else read_digits()
        order = np.random.RandomState(seed).permutation(len(images))
        return images[order[N_DIGITS_TEST:]], images[order[:N_DIGITS_TEST]]
    dataset = dataset.with_labels() if labels else dataset
    contents = verified_files(dataset, folder, progress)
    return _part(dataset, contents, False, labels), _part(dataset, contents, True, labels)


def _part(dataset: Dataset, contents: Mapping[str, bytes], test: bool, labels: bool) -> Bytes:
    files = [file for file in dataset.files if (file.name in dataset.test_files) == test]
    records = [(_records(file, contents[file.name]), file) for file in files]
    images = np.concatenate([found[:, file.n_labels :] for found, file in records if file.n_values])
    if not labels:
        return images
    return np.hstack([images, np.concatenate([found[:, :1] for found, file in records if file.n_labels])])


def _records(file: ImageFile, content: bytes) -> Bytes:
    records = np.frombuffer(content, np.uint8, offset=len(file.header))
    return records.reshape(file.n_images, file.n_labels + file.n_values)


def _digest(dataset: Dataset, parts: tuple[Bytes, ...]) -> str:
    shapes = [part.shape for part in parts]
    digest = hashlib.sha256(f"{dataset.name} {dataset.input_dims} {dataset.max_value} {shapes}\n".encode())
    for part in parts:
        digest.update(part.tobytes())
    return digest.hexdigest()

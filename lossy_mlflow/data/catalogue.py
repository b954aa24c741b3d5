"""What data sets there are: their shapes, their files, and where these are downloaded from.

Addresses and MD5 sums are those of torchvision.datasets (MNIST, FashionMNIST), and of
https://www.cs.toronto.edu/~kriz/cifar.html for CIFAR-10, whose binary version is taken: the Python version
consists of pickles, and unpickling a file runs whatever is in it. Nothing here needs the labels.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

from lossy_mlflow.errors import NotFoundError, did_you_mean


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A `header`, then `n_images` records: each `n_labels` bytes, then a byte for each of the `n_values`."""

    name: str
    n_images: int
    n_values: int
    header: bytes = b""
    n_labels: int = 0
    sha256: str | None = None  # None: not known beforehand; noted beside the file when it is downloaded

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.header) + self.n_images * (self.n_labels + self.n_values)


@dataclass(frozen=True, slots=True)
class Archive:
    """A download: the addresses to try in turn, the MD5 of what they give, the files to take out of it."""

    urls: tuple[str, ...]
    md5: str
    files: tuple[ImageFile, ...]


@dataclass(frozen=True, slots=True)
class Dataset:
    """An image set.

    `input_dims` is (channels, height, width); a stored value v stands for v / max_value. `n_val` of the
    images to train on are held out for validation. `home` is the files' folder within the data folder; those
    named in `test_files` hold the official test images. A set without archives comes with a package.
    """

    name: str
    input_dims: tuple[int, int, int]
    n_val: int
    home: str = ""
    archives: tuple[Archive, ...] = ()
    test_files: tuple[str, ...] = ()
    max_value: int = 255

    @property
    def n_values(self) -> int:
        """Values an image: channels * height * width."""
        return math.prod(self.input_dims)

    @property
    def files(self) -> tuple[ImageFile, ...]:
        return tuple(file for archive in self.archives for file in archive.files)


def idx_file(name: str, n_images: int, height: int, width: int, sha256: str | None = None) -> ImageFile:
    """A file in MNIST's IDX format: magic number 2051 (bytes in three dimensions), the dimensions, bytes."""
    header = struct.pack(">4i", 2051, n_images, height, width)
    return ImageFile(name, n_images, height * width, header, sha256=sha256)


def _mnist_like(
    name: str,
    home: str,
    mirrors: tuple[str, ...],
    md5: tuple[str, str],
    sha256: tuple[str | None, str | None],
) -> Dataset:
    train = idx_file("train-images-idx3-ubyte", 60_000, 28, 28, sha256[0])
    test = idx_file("t10k-images-idx3-ubyte", 10_000, 28, 28, sha256[1])
    archives = tuple(
        Archive(tuple(f"{mirror}{file.name}.gz" for mirror in mirrors), archive_md5, (file,))
        for file, archive_md5 in zip((train, test), md5, strict=True)
    )
    return Dataset(name, (1, 28, 28), 10_000, home, archives, (test.name,))


def _cifar10() -> Dataset:
    names = (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin")
    archive = Archive(
        ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
        "c32a1d4ab5d03f1284b67883e8d87530",
        tuple(ImageFile(name, 10_000, 3 * 32 * 32, n_labels=1) for name in names),
    )
    return Dataset("cifar10", (3, 32, 32), 5_000, "cifar-10-batches-bin", (archive,), ("test_batch.bin",))


DATASETS = {
    dataset.name: dataset
    for dataset in (
        Dataset("digits", (1, 8, 8), 297, max_value=16),
        _mnist_like(
            "mnist",
            "MNIST/raw",
            ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/"),
            ("f68b3c2dcbeaaa9fbdd348bbdeb94873", "9fb629c4189551a2d022fa330f9573f3"),
            (
                "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
                "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            ),
        ),
        _mnist_like(
            "fashion_mnist",
            "FashionMNIST/raw",
            ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
            ("8d4fb7e6c68d591d4c3dfef9ec88bf0d", "bef4ecab320f06d8554ea6380940ec79"),
            (None, None),
        ),
        _cifar10(),
    )
}


def dataset_names() -> list[str]:
    """The data sets there are, in the catalogue's order."""
    return list(DATASETS)


def find_dataset(name: str) -> Dataset:
    """The data set of that name; NotFoundError with the near ones otherwise."""
    if name not in DATASETS:
        near = did_you_mean(name, DATASETS)
        what = f"there is no data set {name!r}" + (f"; {near}" if near else "")
        raise NotFoundError(what, f"there are: {', '.join(DATASETS)}")
    return DATASETS[name]

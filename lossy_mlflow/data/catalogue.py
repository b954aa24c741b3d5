"""What data sets there are: their shapes, their files, and where these are downloaded from.

Addresses and MD5 sums are those of torchvision.datasets (MNIST, FashionMNIST), and of
https://www.cs.toronto.edu/~kriz/cifar.html for CIFAR-10, whose binary version is taken: the Python version
consists of pickles, and unpickling a file runs whatever is in it.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, replace

from lossy_mlflow.errors import NotFoundError, did_you_mean


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A `header`, then `n_images` records: each `n_labels` bytes, then a byte for each of the `n_values`.

    A file of labels alone has records without values.
    """

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
    named in `test_files` hold the official test images. A set without archives comes with a package. `label_archives`: those
    that hold labels alone, where the images' files don't hold them.
    """

    name: str
    input_dims: tuple[int, int, int]
    n_val: int
    home: str = ""
    archives: tuple[Archive, ...] = ()
    test_files: tuple[str, ...] = ()
    max_value: int = 255
    label_archives: tuple[Archive, ...] = ()

    @property
    def n_values(self) -> int:
        """Values an image: channels * height * width."""
        return math.prod(self.input_dims)

    @property
    def files(self) -> tuple[ImageFile, ...]:
        return tuple(file for archive in self.archives for file in archive.files)

    def with_labels(self) -> Dataset:
        """The same, with the files of its labels among its own."""
        return replace(self, archives=self.archives + self.label_archives, label_archives=())


def idx_file(name: str, n_images: int, height: int, width: int, sha256: str | None = None) -> ImageFile:
    """A file in MNIST's IDX format: magic number 2051 (bytes in three dimensions), the dimensions, bytes."""
    header = struct.pack(">4i", 2051, n_images, height, width)
    return ImageFile(name, n_images, height * width, header, sha256=sha256)


def idx_labels(name: str, n_images: int, sha256: str | None = None) -> ImageFile:
    """A file of labels in the same format: magic number 2049 (bytes in one dimension), their number, bytes."""
    return ImageFile(name, n_images, 0, struct.pack(">2i", 2049, n_images), n_labels=1, sha256=sha256)


def _mnist_like(
    name: str, home: str, mirrors: tuple[str, ...], sums: tuple[tuple[str, str | None], ...]
) -> Dataset:
    """`sums`: MD5 of the archive and SHA-256 of the file, of the images to train on and to test on, then of their labels."""
    md5, sha256 = zip(*sums, strict=True)
    files = (
        idx_file("train-images-idx3-ubyte", 60_000, 28, 28, sha256[0]),
        idx_file("t10k-images-idx3-ubyte", 10_000, 28, 28, sha256[1]),
        idx_labels("train-labels-idx1-ubyte", 60_000, sha256[2]),
        idx_labels("t10k-labels-idx1-ubyte", 10_000, sha256[3]),
    )
    archives = tuple(
        Archive(tuple(f"{mirror}{file.name}.gz" for mirror in mirrors), archive_md5, (file,))
        for file, archive_md5 in zip(files, md5, strict=True)
    )
    test_files = (files[1].name, files[3].name)
    return Dataset(name, (1, 28, 28), 10_000, home, archives[:2], test_files, label_archives=archives[2:])


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
            (
                (
                    "f68b3c2dcbeaaa9fbdd348bbdeb94873",
                    "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
                ),
                (
                    "9fb629c4189551a2d022fa330f9573f3",
                    "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
                ),
                (
                    "d53e105ee54ea40749a09fcbcd1e9432",
                    "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
                ),
                (
                    "ec29112dd5afa0611ce80d1b7f02629c",
                    "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
                ),
            ),
        ),
        _mnist_like(
            "fashion_mnist",
            "FashionMNIST/raw",
            ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
            (
                ("8d4fb7e6c68d591d4c3dfef9ec88bf0d", None),
                ("bef4ecab320f06d8554ea6380940ec79", None),
                ("25c81989df183df01b3e8a0aad5dffbe", None),
                ("bb300cfdad3c16e7a12a480ee83cd310", None),
            ),
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

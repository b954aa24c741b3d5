"""The catalogue: its names, and that its addresses and sums are those of their publishers."""

from __future__ import annotations

import pytest

from lossy_mlflow.data import dataset_names
from lossy_mlflow.data.catalogue import find_dataset
from lossy_mlflow.errors import NotFoundError


def test_unknown_name_is_answered_with_the_near_ones():
    with pytest.raises(NotFoundError) as caught:
        find_dataset("fashionmnist")
    assert str(caught.value) == (
        "there is no data set 'fashionmnist'; did you mean fashion_mnist, mnist?\n"
        "there are: digits, mnist, fashion_mnist, cifar10"
    )


def test_a_name_like_no_other_is_answered_with_all():
    with pytest.raises(NotFoundError) as caught:
        find_dataset("zzz")
    assert str(caught.value) == (
        "there is no data set 'zzz'\nthere are: digits, mnist, fashion_mnist, cifar10"
    )


@pytest.mark.parametrize(("name", "theirs"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
def test_mnist_and_its_like_are_where_torchvision_finds_them(name, theirs):
    from torchvision import datasets

    table = getattr(datasets, theirs)
    dataset = find_dataset(name)
    assert dataset.home == f"{theirs}/raw"
    sums = dict(table.resources)
    for archive in dataset.with_labels().archives:
        (file,) = archive.files
        assert archive.urls == tuple(f"{mirror}{file.name}.gz" for mirror in table.mirrors)
        assert archive.md5 == sums[f"{file.name}.gz"]


# http://yann.lecun.com/exdb/mnist and https://www.cs.toronto.edu/~kriz/cifar.html describe the formats.
@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("digits", []),
        ("mnist", [16 + 60_000 * 784, 16 + 10_000 * 784]),
        ("fashion_mnist", [16 + 60_000 * 784, 16 + 10_000 * 784]),
        ("cifar10", [10_000 * 3073] * 6),
    ],
)
def test_files_have_the_sizes_that_their_formats_give(name, sizes):
    assert [file.size for file in find_dataset(name).files] == sizes


def test_test_files_are_files_of_the_set():
    for dataset in map(find_dataset, dataset_names()):
        assert set(dataset.test_files) <= {file.name for file in dataset.with_labels().files}
        assert bool(dataset.test_files) == bool(dataset.archives)

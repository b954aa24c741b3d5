"""Images as tensors: their values, which part each belongs to, and the digest that tells."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lossy_mlflow.data import Splits, load_splits
from lossy_mlflow.data.catalogue import find_dataset
from lossy_mlflow.data.digits import read_digits
from lossy_mlflow.data.splits import load_dataset
from lossy_mlflow.errors import NotFoundError, UnreachableError, UsageError

SEEDS = st.integers(0, 2**32 - 1)


def rows(images: torch.Tensor) -> list[tuple[float, ...]]:
    return sorted(map(tuple, images.tolist()))


def assert_is_well_formed(splits: Splits) -> None:
    n_values = torch.Size(splits.input_dims).numel()
    for part in (splits.train, splits.val, splits.test):
        assert part.dtype == torch.float32
        assert part.shape[1:] == (n_values,)
        assert part.device.type == "cpu"
        assert part.is_contiguous()
        assert part.min() >= 0
        assert part.max() <= 1
    assert splits.train.max() == 1
    assert len(splits.digest) == 64
    assert set(splits.digest) <= set("0123456789abcdef")


def test_digits_have_the_published_sizes(tmp_path):
    splits = load_splits("digits", tmp_path, 6)
    assert_is_well_formed(splits)
    assert (splits.name, splits.input_dims) == ("digits", (1, 8, 8))
    assert (len(splits.train), len(splits.val), len(splits.test)) == (1200, 297, 300)


def test_digits_stay_in_the_part_they_are_in(tmp_path):
    """Another digest here means that every published run was trained on other images than it says."""
    digest = "d3361f15dc9675fcb35c5098a10e3f0dd8a10aac890a344be2e39fbcb2824bcf"
    assert load_splits("digits", tmp_path, 6).digest == digest


@settings(max_examples=15, deadline=None)
@given(seed=SEEDS, train=st.booleans())
def test_each_digit_is_in_one_part(tmp_path_factory, seed, train):
    splits = load_splits("digits", tmp_path_factory.getbasetemp(), seed, train)
    everything = torch.cat([splits.train, splits.val, splits.test])
    assert rows(everything) == rows(torch.from_numpy(read_digits()) / 16)


def test_the_same_seed_gives_the_same_images(tmp_path):
    first, second = load_splits("digits", tmp_path, 6), load_splits("digits", tmp_path, 6)
    assert first.digest == second.digest
    for part in ("train", "val", "test"):
        assert torch.equal(getattr(first, part), getattr(second, part))


def test_digests_differ_by_seed_and_by_part(tmp_path):
    digests = [
        load_splits("digits", tmp_path, seed, train).digest for seed in (6, 7) for train in (True, False)
    ]
    assert len(set(digests)) == 4


def test_global_random_state_is_neither_read_nor_changed(tmp_path):
    import numpy as np

    before = np.random.get_state()[1].copy(), torch.get_rng_state()
    load_splits("digits", tmp_path, 6)
    assert np.array_equal(np.random.get_state()[1], before[0])
    assert torch.equal(torch.get_rng_state(), before[1])


def test_official_test_images_are_the_test_part(two_archives, tmp_path):
    splits = load_dataset(two_archives.dataset, tmp_path, 6, True, None)
    assert_is_well_formed(splits)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (250, 50, 60)
    train_file, test_file = two_archives.contents["train-images"], two_archives.contents["test-images"]
    assert torch.equal(splits.test, values_of(test_file[16:]).reshape(60, 20))
    assert rows(torch.cat([splits.train, splits.val])) == rows(values_of(train_file[16:]).reshape(300, 20))


def test_without_train_the_two_change_places(two_archives, tmp_path):
    splits = load_dataset(two_archives.dataset, tmp_path, 6, False, None)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (50, 10, 300)
    test_file = two_archives.contents["test-images"]
    assert rows(torch.cat([splits.train, splits.val])) == rows(values_of(test_file[16:]).reshape(60, 20))


def test_labels_are_left_out_and_colours_are_planes(one_tar, tmp_path):
    splits = load_dataset(one_tar.dataset, tmp_path, 6, True, None)
    assert_is_well_formed(splits)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (54, 6, 30)
    records = one_tar.contents["test_batch.bin"]
    for i, image in enumerate(splits.test.reshape(30, 3, 4, 4)):
        for channel in range(3):
            start = i * 49 + 1 + channel * 16
            assert torch.equal(image[channel], values_of(records[start : start + 16]).reshape(4, 4))


def values_of(pixels: bytes) -> torch.Tensor:
    return torch.tensor(list(pixels), dtype=torch.float32) / 255


def test_digest_tells_one_flipped_bit(two_archives, tmp_path):
    whole = load_dataset(two_archives.dataset, tmp_path, 6, True, None).digest
    home = tmp_path / "by hand" / two_archives.dataset.home
    home.mkdir(parents=True)
    for name, content in two_archives.contents.items():
        (home / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert load_dataset(two_archives.dataset, tmp_path / "by hand", 6, True, None).digest != whole


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10"])
def test_catalogued_files_are_read_as_the_catalogue_says(name, tmp_path):
    """Files of the published names and form, cut to ten images each; without a network."""
    dataset = find_dataset(name)
    archives = []
    for archive in dataset.archives:
        files = tuple(dataclasses.replace(file, n_images=10, sha256=None) for file in archive.files)
        archives.append(dataclasses.replace(archive, files=files))
    short = dataclasses.replace(dataset, archives=tuple(archives), n_val=2)
    (tmp_path / dataset.home).mkdir(parents=True)
    for number, file in enumerate(short.files):
        record = bytes([9] * file.n_labels + [number] * file.n_values)
        (tmp_path / dataset.home / file.name).write_bytes(file.header + record * 10)
    splits = load_dataset(short, tmp_path, 6, True, None)
    last = len(short.files) - 1
    assert torch.equal(splits.test, torch.full((10, short.n_values), last / 255))
    assert (len(splits.train), len(splits.val)) == (last * 10 - 2, 2)
    assert set(torch.cat([splits.train, splits.val]).flatten().mul(255).round().tolist()) == set(range(last))


def test_load_splits_downloads_what_is_missing(tmp_path, monkeypatch):
    """It tries to: there is nothing at the proxy that this test names."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    lines: list[str] = []
    with pytest.raises(UnreachableError, match="FashionMNIST/raw/train-images-idx3-ubyte isn't there"):
        load_splits("fashion_mnist", tmp_path, 6, progress=lines.append)
    assert len(lines) == 1
    assert lines[0].startswith("downloading http://fashion-mnist")


def test_unknown_data_set_is_said(tmp_path):
    with pytest.raises(NotFoundError, match="there is no data set 'mnits'; did you mean"):
        load_splits("mnits", tmp_path, 6)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seed_out_of_range_is_said(tmp_path, seed):
    with pytest.raises(UsageError, match=f"random_seed is {seed}"):
        load_splits("digits", tmp_path, seed)


def test_labels_are_those_of_their_images(tmp_path):
    from sklearn.datasets import load_digits

    theirs = load_digits()
    label_of = {tuple(image): int(label) for image, label in zip(theirs.data, theirs.target, strict=True)}
    for train in (True, False):
        splits = load_splits("digits", tmp_path, 6, train, labels=True)
        assert splits.digest == load_splits("digits", tmp_path, 6, train).digest
        for part in ("train", "val", "test"):
            images, labels = getattr(splits, part), getattr(splits, f"{part}_labels")
            assert labels.dtype == torch.int64
            assert labels.tolist() == [label_of[tuple(image)] for image in (images * 16).tolist()]


def test_labels_are_read_only_where_they_are_asked_for(tmp_path):
    splits = load_splits("digits", tmp_path, 6)
    assert (splits.train_labels, splits.val_labels, splits.test_labels) == (None, None, None)


def test_labels_come_from_the_images_files_where_these_hold_them(one_tar, tmp_path):
    splits = load_dataset(one_tar.dataset, tmp_path, 6, True, None, labels=True)
    assert splits.digest == load_dataset(one_tar.dataset, tmp_path, 6, True, None).digest
    assert splits.test_labels.tolist() == [2] * 30
    assert sorted([*splits.train_labels.tolist(), *splits.val_labels.tolist()]) == [0] * 30 + [1] * 30

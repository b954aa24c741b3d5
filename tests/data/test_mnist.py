"""The real MNIST files: in LOSSY_TEST_MNIST_DIR, or in ../shared/data as seen from the repository."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from lossy_mlflow.data import load_splits
from lossy_mlflow.errors import UnreachableError

BESIDE = Path(__file__).parents[2].parent / "shared" / "data"
ROOT = Path(os.environ.get("LOSSY_TEST_MNIST_DIR") or BESIDE)
TEST_IMAGES = Path("MNIST", "raw", "t10k-images-idx3-ubyte")

pytestmark = pytest.mark.skipif(
    not (ROOT / TEST_IMAGES).exists(),
    reason=f"needs the real MNIST files: LOSSY_TEST_MNIST_DIR names no torchvision root with {TEST_IMAGES}",
)


@pytest.fixture(scope="module")
def splits():
    return load_splits("mnist", ROOT, 6)


def test_test_images_are_bit_for_bit_those_of_torchvision(splits):
    from torchvision.datasets import MNIST
    from torchvision.transforms import ToTensor

    theirs = MNIST(str(ROOT), train=False, transform=ToTensor())
    assert splits.test.shape == (len(theirs), 784)
    for i in range(0, 10_000, 50):
        assert torch.equal(splits.test[i].reshape(1, 28, 28), theirs[i][0])


def test_train_and_val_are_all_the_training_images_once(splits):
    from torchvision.datasets import MNIST

    assert (splits.train.shape, splits.val.shape) == ((50_000, 784), (10_000, 784))
    ours = torch.cat([splits.train, splits.val]).mul(255).round().to(torch.uint8)
    theirs = MNIST(str(ROOT), train=True).data.reshape(60_000, 784)
    assert torch.equal(in_order(ours), in_order(theirs))


def in_order(images: torch.Tensor) -> torch.Tensor:
    """The images sorted by a random projection, which only equal ones share."""
    key = images.to(torch.float64) @ torch.rand(
        784, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    return images[key.argsort()]


def test_images_stay_in_the_part_they_are_in(splits):
    """Another digest here means that every published run was trained on other images than it says."""
    assert splits.digest == "d094e3b14149ee4af4c1b8da421090de0506e39fd393b61a77d8b52963298075"


def test_a_flipped_byte_is_found(tmp_path, monkeypatch):
    """Against the built-in SHA-256; there is nothing at the proxies that this test names."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    home = tmp_path / "MNIST" / "raw"
    home.mkdir(parents=True)
    (home / "train-images-idx3-ubyte").symlink_to(ROOT / "MNIST" / "raw" / "train-images-idx3-ubyte")
    shutil.copyfile(ROOT / TEST_IMAGES, tmp_path / TEST_IMAGES)
    with (tmp_path / TEST_IMAGES).open("r+b") as file:
        file.seek(5_000_000)
        file.write(b"\x01")
    with pytest.raises(UnreachableError, match="t10k-images-idx3-ubyte is damaged"):
        load_splits("mnist", tmp_path, 6)


def test_labels_are_those_of_torchvision_and_leave_the_images_as_they_are(splits):
    from torchvision.datasets import MNIST

    labelled = load_splits("mnist", ROOT, 6, labels=True)
    assert labelled.digest == splits.digest
    assert torch.equal(labelled.test_labels, MNIST(str(ROOT), train=False).targets)
    ours = torch.bincount(torch.cat([labelled.train_labels, labelled.val_labels]))
    assert torch.equal(ours, torch.bincount(MNIST(str(ROOT), train=True).targets))

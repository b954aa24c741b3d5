"""The models really learn: measured against probabilistic PCA, whose best likelihood is known in closed form.

Tipping and Bishop 1999, equations 7 and 8: with the eigenvalues of the data's covariance, the best noise
variance is the mean of those left out, and the best weights span the others.
"""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path

import pytest
import torch

from lossy_mlflow.data import Splits, load_splits
from lossy_mlflow.hparams import Hparam, get_hparams
from lossy_mlflow.models import build_model
from lossy_mlflow.models.vae import Vae
from lossy_mlflow.training import Settings, generator_for, iwae_bound, make_optimizer, seeded, train_epochs

BESIDE = Path(__file__).parents[2].parent / "shared" / "data"
MNIST_ROOT = Path(os.environ.get("LOSSY_TEST_MNIST_DIR") or BESIDE)


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """N(mean, covariance), float64."""

    mean: torch.Tensor
    covariance: torch.Tensor

    def log_likelihood(self, images: torch.Tensor) -> float:
        """Mean over the images, in nats per image."""
        x = images.double() - self.mean
        scatter = x.T @ x / len(x)
        misfit = torch.linalg.solve(self.covariance, scatter).trace()
        return -0.5 * (len(self.mean) * math.log(2 * math.pi) + torch.logdet(self.covariance) + misfit).item()


def best_ppca(images: torch.Tensor, z_size: int) -> Gaussian:
    x = images.double()
    mean = x.mean(0)
    eigenvalues, vectors = torch.linalg.eigh((x - mean).T @ (x - mean) / len(x))
    noise = eigenvalues[:-z_size].mean()
    vectors, excess = vectors[:, -z_size:], eigenvalues[-z_size:] - noise
    return Gaussian(mean, vectors * excess @ vectors.T + noise * torch.eye(len(mean)))


def of_linear_vae(model: Vae) -> Gaussian:
    weight, bias = (value.detach().double() for value in model.decoder.net.parameters())
    noise = model.decoder.x_logvar.detach().double().exp()
    return Gaussian(bias, weight @ weight.T + noise * torch.eye(len(bias)))


def train(tree: Hparam, splits: Splits, stages: list[tuple[float, int, int]]) -> tuple[Vae, float]:
    """The model and its last train_loss. `stages`: learning rate, epochs in all, batch size."""
    with seeded(tree.random_seed):
        model = build_model(tree)
    done = 0
    for learning_rate, epochs, batch_size in stages:
        settings = Settings(batch_size, epochs, learning_rate, tree.random_seed, n_val_batch=1)
        optimizer = make_optimizer(model, learning_rate)
        *_, last = train_epochs(model, optimizer, splits.train, splits.val, settings, done)
        done = epochs
    return model, last.train_loss


def train_as_said(tree: Hparam, splits: Splits) -> tuple[Vae, float]:
    return train(tree, splits, [(tree.learning_rate, tree.model_train.epochs, tree.model_train.batch_size)])


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Splits:
    return load_splits("digits", tmp_path_factory.mktemp("no_files_needed"), seed=6)


def test_ppca_is_the_best_of_its_kind(digits):
    """The oracle: any change makes its likelihood on its own images worse."""
    best = best_ppca(digits.train, 10)
    value = best.log_likelihood(digits.train)
    assert value == pytest.approx(17.97, abs=0.01)
    for factor in (0.97, 1.03):
        assert Gaussian(best.mean, factor * best.covariance).log_likelihood(digits.train) < value - 0.005
    assert best_ppca(digits.train, 9).log_likelihood(digits.train) < value - 0.5


def test_the_linear_vae_reaches_ppca_on_digits(digits):
    """Within 0.5 nats, which a constant learning rate leaves, and never above; so is its bound."""
    model, train_loss = train_as_said(get_hparams("linear_vae10_digits"), digits)
    best = best_ppca(digits.train, 10).log_likelihood(digits.train)
    reached = of_linear_vae(model).log_likelihood(digits.train)
    assert best - 0.5 < reached < best
    assert reached - 2.5 < -train_loss < best + 0.5


@pytest.mark.skipif(
    not (MNIST_ROOT / "MNIST" / "raw" / "train-images-idx3-ubyte").exists(),
    reason="needs the real MNIST files: LOSSY_TEST_MNIST_DIR names no torchvision root with MNIST/raw",
)
def test_the_linear_vae_reaches_ppca_on_mnist():
    """Within 1 nat of 182, in 10 epochs of falling learning rate and growing batches."""
    splits = load_splits("mnist", MNIST_ROOT, seed=6)
    tree = get_hparams("linear_vae100_mnist", {"model_train.z_size": 10, "model_train.x_var_learned": True})
    stages = [(1e-2, 2, 100), (3e-3, 5, 200), (1e-3, 8, 500), (3e-4, 10, 1000)]
    model, _ = train(tree, splits, stages)
    best = best_ppca(splits.train, 10).log_likelihood(splits.train)
    assert best == pytest.approx(181.84, abs=0.01)
    reached = of_linear_vae(model).log_likelihood(splits.train)
    assert best - 1 < reached < best


def test_the_deep_vae_beats_ppca_on_held_out_digits(digits):
    """By more than 12 nats per image, five of its standard errors taken off. Measured: 34.5 against 16.4."""
    tree = get_hparams("vae10_digits")
    model, _ = train_as_said(tree, digits)
    bound, error = iwae_bound(model, digits.test, 500, generator_for(tree.random_seed, "iwae"))
    ppca = best_ppca(digits.train, tree.model_train.z_size).log_likelihood(digits.test)
    assert error < 2
    assert bound - 5 * error > ppca
    assert bound > ppca + 12

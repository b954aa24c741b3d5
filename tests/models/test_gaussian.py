"""The Gaussian formulas, against torch.distributions, which writes them another way."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from lossy_mlflow.models.gaussian import kl_from_standard, log_density, sample, standard_log_density

BATCH, N = 5, 7


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(BATCH, N, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(), (1,), (N,), (BATCH, N)])
def test_log_density_with_its_constant(x, shape):
    mean = torch.linspace(-1, 1, N, dtype=torch.float64).expand(BATCH, N)
    logvar = torch.linspace(-3, 1, max(1, len(torch.empty(shape).flatten())), dtype=torch.float64).reshape(
        shape
    )
    expected = Normal(mean, (0.5 * logvar).exp()).log_prob(x).sum(1)
    torch.testing.assert_close(log_density(x, mean, logvar), expected)


def test_standard_log_density(x):
    torch.testing.assert_close(standard_log_density(x), Normal(0, 1).log_prob(x).sum(1))


def test_kl_from_the_standard_normal(x):
    logvar = 0.3 * x.flip(0)
    expected = kl_divergence(Normal(x, (0.5 * logvar).exp()), Normal(torch.zeros_like(x), 1.0)).sum(1)
    torch.testing.assert_close(kl_from_standard(x, logvar), expected)


def test_samples_have_the_mean_and_the_variance():
    mean = torch.full((200_000, 1), 2.0)
    drawn = sample(mean, torch.full_like(mean, -1.0), torch.Generator().manual_seed(3))
    # Five standard errors of each of the two estimates.
    sd = torch.tensor(-0.5).exp()
    assert abs(drawn.mean() - 2) < 5 * sd / 200_000**0.5
    assert abs(drawn.var() - sd**2) < 5 * sd**2 * (2 / 200_000) ** 0.5


def test_samples_follow_the_generator_and_let_gradients_through():
    mean, logvar = torch.zeros(4, 2, requires_grad=True), torch.zeros(4, 2, requires_grad=True)
    first, again = (sample(mean, logvar, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again)
    first.sum().backward()
    assert torch.equal(mean.grad, torch.ones(4, 2))
    torch.testing.assert_close(logvar.grad, first.detach() / 2)

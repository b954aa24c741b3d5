"""Linear decoders: two routes to rate, distortion and log Z, against each other, against sums over a grid, and as a curve."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import MultivariateNormal

from lossy_mlflow.rate_distortion import Quadratic, closed_form, closed_form_by_marginal
from lossy_mlflow.rate_distortion.linear import bits_per_dimension
from tests.rate_distortion.problems import by_quadrature, linear, quadratic

SIZES = [(1, 1), (1, 30), (2, 3), (10, 64), (20, 5), (200, 784)]
BETAS = [1e-6, 0.1, 1.0, 30.0, 36000.0]
EACH = ("log_z", "rate", "distortion")


def sized(z_size, n_pixels):
    """More dimensions than pixels too: then some singular values are zero."""
    if z_size <= n_pixels:
        return quadratic(z_size, n_pixels, 3)
    matrix = torch.randn(n_pixels, z_size, generator=torch.Generator().manual_seed(1)).double()
    images = torch.randn(3, n_pixels, generator=torch.Generator().manual_seed(2)).double()
    return Quadratic(matrix, torch.zeros(n_pixels), images, torch.ones(()))


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize(("z_size", "n_pixels"), SIZES)
def test_the_two_routes_agree(z_size, n_pixels, beta):
    distortion = sized(z_size, n_pixels)
    one, other = closed_form(distortion, beta), closed_form_by_marginal(distortion, beta)
    for name in EACH:
        # The marginal's rate is a difference of numbers near beta d, of which float64 keeps 15 digits.
        loss = 1e-12 * beta * float(distortion.least.max()) if name != "distortion" else 0.0
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=1e-9, atol=1e-9 + loss)


@pytest.mark.parametrize("beta", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("z_size", [1, 2])
def test_they_agree_with_sums_over_a_grid(z_size, beta):
    distortion = quadratic(z_size, 5, 3)
    exact, summed = closed_form(distortion, beta), by_quadrature(distortion, beta)
    for name in EACH:
        torch.testing.assert_close(getattr(exact, name), getattr(summed, name), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("beta", [0.5, 7.0])
def test_z_is_the_marginal_density_of_a_gaussian_model(beta):
    """exp(-beta ||x - f(z)||^2) is N(x; f(z), I / (2 beta)) but for (pi / beta)^(n/2): by torch.distributions."""
    matrix, bias = linear(3, 8)
    images = torch.randn(4, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    distortion = Quadratic(matrix, bias, images, torch.ones(()))
    covariance = matrix @ matrix.t() + torch.eye(8, dtype=torch.float64) / (2 * beta)
    expected = MultivariateNormal(bias, covariance).log_prob(images) + 4 * math.log(math.pi / beta)
    torch.testing.assert_close(closed_form(distortion, beta).log_z, expected)


problems = st.builds(
    quadratic,
    z_size=st.integers(1, 6),
    n_pixels=st.integers(6, 12),
    n_data=st.just(2),
    seed=st.integers(0, 10**6),
    noise=st.floats(0, 3),
    scale=st.floats(0.01, 30),
)
betas = st.floats(1e-3, 1e4)


@settings(max_examples=60, deadline=None)
@given(problems, betas)
def test_distortion_is_the_slope_of_minus_log_z(distortion, beta):
    h = 1e-3 * beta
    # Five points: the error is of order h^4 = 1e-12 of the fifth derivative.
    at = [closed_form_by_marginal(distortion, beta + k * h).log_z for k in (-2, -1, 1, 2)]
    slope = (at[0] - 8 * at[1] + 8 * at[2] - at[3]) / (12 * h)
    torch.testing.assert_close(-slope, closed_form(distortion, beta).distortion, rtol=1e-6, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(problems, st.lists(betas, min_size=3, max_size=8, unique=True))
def test_rate_falls_with_distortion_and_is_convex(distortion, betas):
    """Every point lies above the tangent of every other: R(D') >= R(D) - beta (D' - D)."""
    points = [closed_form(distortion, beta) for beta in sorted(betas)]
    for lower, higher in pairwise(points):
        assert (higher.distortion <= lower.distortion + 1e-9).all()
        assert (higher.rate >= lower.rate - 1e-9).all()
    for beta, here in zip(sorted(betas), points, strict=True):
        for there in points:
            tangent = here.rate - beta * (there.distortion - here.distortion)
            assert (there.rate >= tangent - 1e-8 * (1 + beta)).all()


@settings(max_examples=40, deadline=None)
@given(problems, betas)
def test_rate_is_never_negative_and_distortion_between_best_and_prior(distortion, beta):
    exact = closed_form(distortion, beta)
    assert (exact.rate >= -1e-9).all()
    at_prior = distortion.least + distortion.gram.diagonal().sum()
    assert (exact.distortion <= at_prior + 1e-9).all()


def test_at_a_tiny_beta_nothing_is_said():
    distortion = quadratic(4, 9, 2)
    exact = closed_form(distortion, 1e-12)
    torch.testing.assert_close(exact.rate, torch.zeros(2, dtype=torch.float64), atol=1e-9, rtol=0)
    torch.testing.assert_close(exact.distortion, distortion.least + distortion.gram.diagonal().sum())


def test_bits_per_dimension():
    assert bits_per_dimension(784 * math.log(2), 784) == pytest.approx(1.0)

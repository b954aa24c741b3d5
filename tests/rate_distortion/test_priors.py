"""The priors: density, score and samples against autograd, sums over a grid and torch.distributions; what a mixture costs."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import MultivariateNormal

from lossy_mlflow.rate_distortion import MixturePrior, Quadratic, StandardNormal, closed_form, curve, tune
from tests.rate_distortion.problems import assert_unbiased, linear, quadratic, seeded

mixtures = st.builds(MixturePrior, weight=st.floats(1e-6, 1 - 1e-6), bad_std=st.floats(0.05, 30))
priors = st.one_of(st.just(StandardNormal()), mixtures)
# At |z| = 1000 one component underflows, and with it a density that isn't computed from logarithms.
points = st.lists(st.floats(-1000, 1000), min_size=1, max_size=8).map(
    lambda z: torch.tensor(z, dtype=torch.float64)
)


def mixture_by_torch(prior, z):
    eye = torch.eye(z.shape[-1], dtype=torch.float64)
    zero = torch.zeros(z.shape[-1], dtype=torch.float64)
    good = MultivariateNormal(zero, eye).log_prob(z) + math.log(1 - prior.weight)
    bad = MultivariateNormal(zero, prior.bad_std**2 * eye).log_prob(z) + math.log(prior.weight)
    return torch.logaddexp(good, bad)


def assert_is_mixture(prior, z):
    torch.testing.assert_close(prior.log_density(z)[0], mixture_by_torch(prior, z))


def assert_score(prior, z):
    tracked = z.clone().requires_grad_()
    log_p, _ = prior.log_density(tracked)
    slope = torch.autograd.grad(log_p.sum(), tracked)[0]
    torch.testing.assert_close(prior.log_density(z)[1], slope, rtol=1e-9, atol=1e-12)


@settings(deadline=None)
@given(mixtures, points)
def test_a_mixture_is_of_vectors(prior, z):
    assert_is_mixture(prior, z)


@settings(deadline=None)
@given(priors, points)
def test_the_score_is_the_gradient(prior, z):
    assert_score(prior, z)


@pytest.mark.parametrize("prior", [StandardNormal(), MixturePrior(0.3, 5.0), MixturePrior(0.9, 0.2)])
@pytest.mark.parametrize("size", [1, 2])
def test_a_density_sums_to_one(prior, size):
    line = torch.linspace(-40, 40, 1601, dtype=torch.float64)
    z = torch.cartesian_prod(*[line] * size).reshape(-1, size)
    total = float(prior.log_density(z)[0].exp().sum()) * 0.05**size
    assert total == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("prior", [StandardNormal(), MixturePrior(0.3, 5.0), MixturePrior(0.7, 0.2)])
def test_samples_have_the_density(prior):
    """By the norm of vectors of 3, whose distribution is found from the density: shares of eight shells."""
    z = prior.sample((40_000, 3), seeded(1))
    edges = torch.tensor([0, 0.2, 0.5, 1, 1.5, 2.5, 4, 8, 60], dtype=torch.float64)
    radius = torch.linspace(0, 60, 600_001, dtype=torch.float64)
    at = torch.stack([radius, torch.zeros_like(radius), torch.zeros_like(radius)], 1)
    density = prior.log_density(at)[0].exp() * 4 * math.pi * radius.square()
    mass = torch.cumulative_trapezoid(density, radius)
    expected = torch.cat([torch.zeros(1), mass])[torch.searchsorted(radius, edges).clamp(max=600_000)].diff()
    found = torch.histogram(z.norm(dim=1), edges).hist / len(z)
    se = (expected * (1 - expected) / len(z)).sqrt()
    assert ((found - expected).abs() < 4 * se + 1e-5).all(), (found, expected)


def test_a_vector_has_one_component():
    """Per dimension, a vector of 50 would nearly always have some large parts and some small ones."""
    z = MixturePrior(0.5, 100.0).sample((2000, 50), seeded(1))
    large = (z.abs() > 5).double().mean(1)
    # Of N(0, 100^2), 96 % are beyond 5; of N(0, 1), none.
    assert ((large < 0.01) | (large > 0.7)).all()
    assert 0.45 < float((large > 0.5).double().mean()) < 0.55


@pytest.mark.parametrize(("weight", "bad_std"), [(0.2, 3.0), (0.9, 10.0)])
def test_z_under_a_mixture_is_the_mixture_of_zs(weight, bad_std):
    """Z = (1 - w) Z_1 + w Z_s, where Z_s is of z = s u, u ~ N(0, I): the decoder with W stretched by s."""
    beta = 20.0
    matrix, bias = linear(3, 12)
    images = (bias + torch.randn(12, generator=seeded(4), dtype=torch.float64)).expand(300, -1)
    distortion, stretched = (Quadratic(w, bias, images, torch.ones(())) for w in (matrix, bad_std * matrix))
    good = closed_form(distortion, beta).log_z + math.log(1 - weight)
    bad = closed_form(stretched, beta).log_z + math.log(weight)
    prior = MixturePrior(weight, bad_std)
    tuning = tune(distortion, [beta], seeded(1), n_steps=150, prior=prior)
    found = curve(distortion, [beta], tuning, seeded(2), prior=prior)
    assert_unbiased(found.log_z[0], torch.logaddexp(good, bad), at_most=0.1)


@pytest.mark.parametrize("weight", [0.01, 0.5, 0.99])
def test_a_mixture_adds_at_most_minus_log_one_minus_w(weight):
    """p >= (1 - w) N(0, I), so -log Z rises by at most -log(1 - w); here with a bad part that is of no use."""
    distortion = quadratic(3, 12, 60)
    betas = [1.0, 30.0]
    prior = MixturePrior(weight, 30.0)
    tuning = tune(distortion, betas, seeded(1), n_steps=300, prior=prior)
    found = curve(distortion, betas, tuning, seeded(2), n_chains=32, prior=prior)
    for index, beta in enumerate(betas):
        exact = closed_form(distortion, beta)
        rise = exact.log_z - found.log_z[index]
        noise = 4 * float(found.log_z[index].sub(exact.log_z).std()) / math.sqrt(60) + 0.1
        assert float(rise.mean()) < -math.log(1 - weight) + noise
        # Nor is it free: a part of the vectors is spent far away.
        assert float(rise.mean()) > -noise

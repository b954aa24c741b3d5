"""A bent decoder in two dimensions: sums over a grid as an oracle that knows nothing of chains; the variational curve."""

from __future__ import annotations

import math

import pytest
import torch

from lossy_mlflow.rate_distortion import closed_form, curve, tune
from lossy_mlflow.rate_distortion.curves import as_point, curve_of
from lossy_mlflow.rate_distortion.variational import fresh_encoder, variational_curve
from tests.rate_distortion.problems import (
    assert_mean,
    assert_unbiased,
    by_quadrature,
    quadratic,
    seeded,
    small_net,
    through_a_network,
)

BETAS = [0.5, 5.0, 50.0, 500.0]


def image(network):
    z = torch.tensor([[0.8, -0.5]], dtype=torch.float64)
    noise = torch.randn(1, 8, generator=seeded(4), dtype=torch.float64)
    return (network(z) + 0.2 * noise).detach()


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.campaign)])
def test_a_bent_decoder_by_chains_and_by_a_grid(seed):
    network = small_net(2, 8, seed=seed, scale=1.5)
    x = image(network)
    distortion = through_a_network(network, x.expand(100, -1), 2)
    tuning = tune(distortion, BETAS, seeded(1), n_steps=200)
    found = curve(distortion, BETAS, tuning, seeded(2))
    one = through_a_network(network, x, 2)
    for index, beta in enumerate(BETAS):
        truth = by_quadrature(one, beta, points=801, reach=5.0)
        bias = float(found.log_z[index].var())
        assert bias < 0.3
        assert_unbiased(found.log_z[index], truth.log_z, at_most=0.1)
        assert_mean(found.rate[index], truth.rate, bias=bias)
        assert_mean(beta * found.distortion[index], beta * truth.distortion, bias=bias)
    assert not found.doubts()


def encoded(made, images, n_pixels, z_size, epochs):
    points = []
    generator = seeded(1)
    encoder = fresh_encoder(n_pixels, z_size, generator)
    variational_curve(
        made, images, images[:50], [1.0, 10.0], epochs, generator, encoder=encoder, on_point=points.append
    )
    return curve_of([as_point(point) for point in points])


@pytest.mark.campaign
def test_the_variational_curve_lies_above_and_comes_near():
    """R + beta D of any encoder is at least -log Z, here exactly known, of each image; a trained one comes near.

    The decoder's axes are not the encoder's: a diagonal Gaussian can't reach it.
    """
    distortion = quadratic(3, 12, 400, scale=2.0)
    images = distortion._bias + torch.linalg.lstsq(distortion._matrix.t(), distortion.pull.t()).solution.t()

    def made(x):
        return type(distortion)(distortion._matrix, distortion._bias, x.double(), torch.ones(()))

    trained, fresh = (encoded(made, images.float(), 12, 3, epochs) for epochs in (30, 0))
    for index, beta in enumerate([1.0, 10.0]):
        exact = closed_form(made(images[:50].float()), beta)
        above = exact.log_z - trained.log_z[index]
        # d is a mean of 100 samples.
        assert (above > -5 * beta * trained.distortion_se[index]).all()
        noise = 4 * beta * float(trained.distortion_se[index].mean()) / math.sqrt(50)
        assert float(above.mean()) > -noise
        assert float(above.mean()) < 1.5
        assert float((exact.log_z - fresh.log_z[index]).mean()) > float(above.mean()) + 0.1


def test_the_variational_curve_lies_above_annealing():
    network = small_net(2, 8, scale=1.5)
    z = torch.randn(400, 2, generator=seeded(3), dtype=torch.float64)
    images = network(z).detach() + 0.1 * torch.randn(400, 8, generator=seeded(4), dtype=torch.float64)

    def made(x):
        return through_a_network(network, x.double(), 2)

    above = encoded(made, images.float(), 8, 2, epochs=20)
    distortion = made(images[:50])
    tuning = tune(distortion, [1.0, 10.0], seeded(5), n_steps=200)
    below = curve(distortion, [1.0, 10.0], tuning, seeded(6))
    for index, beta in enumerate([1.0, 10.0]):
        # -log Z of annealing is too high by at most its own error, the encoder's by what it lacks.
        difference = below.log_z[index] - above.log_z[index]
        noise = 4 * beta * float(above.distortion_se[index].mean()) / math.sqrt(50)
        assert float(difference.mean()) > -noise
        # At equal distortion, read along annealing's tangent -beta, its rate is higher.
        tangent = below.rate[index] - beta * (above.distortion[index] - below.distortion[index])
        assert float((above.rate[index] - tangent).mean()) > -noise

"""Decoders with several modes per image, all known: the curve is right, or says that it isn't."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lossy_mlflow.rate_distortion import curve, gap, simulate, squared_error, tune
from tests.rate_distortion.problems import assert_unbiased, by_quadrature, seeded

BETAS = [1.0, 10.0, 100.0, 1000.0]


class Folded(nn.Module):
    """Looks at z only through z^2: each image has 2^z_size modes, mirror images of each other."""

    def __init__(self, z_size=2):
        super().__init__()
        self.register_buffer("weight", torch.randn(6, z_size, generator=seeded(3), dtype=torch.float64))
        self.x_logvar = torch.zeros((), dtype=torch.float64)

    def decode(self, z):
        return z.square() @ self.weight.t()


class Spiked(nn.Module):
    """A wide basin around z = 0, and at 1.5 a well of that width, which fits the image 0 better by 0.07."""

    def __init__(self, width):
        super().__init__()
        self.width = width
        self.x_logvar = torch.zeros((), dtype=torch.float64)

    def decode(self, z):
        well = torch.exp(-0.5 * ((z - 1.5) / self.width).square())
        return torch.cat([0.3 * (1 - well), 0.1 * z], 1)


def spiked(width, n):
    return squared_error(Spiked(width), torch.zeros(n, 2, dtype=torch.float64), 1)


def measured(distortion, n_steps=300, n_chains=16):
    tuning = tune(distortion, BETAS, seeded(1), n_steps=n_steps)
    return curve(distortion, BETAS, tuning, seeded(2), n_chains=n_chains)


def test_equal_modes_are_right():
    """Chains that never cross from one to another: those that are in each weigh as much."""
    decoder = Folded()
    image = decoder.decode(torch.tensor([[1.2, -0.7]], dtype=torch.float64)) + 0.05
    distortion = squared_error(decoder, image.expand(100, -1), 2)
    found = measured(distortion)
    one = squared_error(decoder, image, 2)
    for index, beta in enumerate(BETAS):
        truth = by_quadrature(one, beta, points=601, reach=3.0)
        assert_unbiased(found.log_z[index], truth.log_z, at_most=0.1)
        spread = float(found.log_z[index].var())
        assert abs(float(found.rate[index].mean() - truth.rate)) < 0.2 + spread
    assert found.doubts() == []
    assert found.doubted_from() is None


def test_equal_modes_leave_the_gap_small():
    """A backward chain knows one of four modes: log Z is off by log 4 at most where it stays there."""
    decoder = Folded()
    one = squared_error(decoder, torch.zeros(1, 6, dtype=torch.float64), 2)
    simulated, z = simulate(one, 20, 100.0, seeded(5))
    tuning = tune(simulated, [100.0], seeded(6), n_steps=300)
    found = gap(simulated, z, tuning, 16, seeded(7))
    truth = by_quadrature(simulated, 100.0, points=301, reach=4.0).log_z
    assert float((found.lower - truth).mean()) < 0.1
    assert float((found.upper - truth).mean()) > -0.1
    assert -3 * found.se < found.mean < math.log(4) + 3 * found.se


@pytest.mark.parametrize("width", [0.1, 0.001])
def test_a_narrow_mode_that_some_chains_miss_is_told(width):
    """At beta = 1000 it outweighs the rest by up to e^60; of 800 chains, most to one find it.

    Right would mean: within a nat. Where it isn't, the curve must say so.
    """
    found = measured(spiked(width, 50))
    truth = by_quadrature(spiked(width, 1), 1000.0, points=100_001).log_z
    off = float((found.log_z[-1] - truth).mean())
    assert off < -0.1
    assert f" from beta {found.doubted_from():.4g} on: " in " ".join(found.doubts())
    if off < -5:
        assert "modes are missed" in " ".join(found.doubts())


def test_the_number_of_images_on_one_chain_alone_would_not_have_told():
    """Why there is `lead`: here two images in fifty rest on one chain, and the mean is 50 nats off."""
    found = measured(spiked(0.002, 50))
    truth = by_quadrature(spiked(0.002, 1), 1000.0, points=100_001).log_z
    assert float((found.log_z[-1] - truth).mean()) < -50
    assert float((found.ess[-1] < 2).double().mean()) < 0.1
    assert float(found.lead[-1].mean()) > 1


@pytest.mark.parametrize("width", [0.5])
def test_a_mode_wide_enough_is_right_and_not_doubted(width):
    found = measured(spiked(width, 100), n_steps=300)
    truth = by_quadrature(spiked(width, 1), 100.0, points=100_001).log_z
    assert_unbiased(found.log_z[2], truth, at_most=0.1)
    assert not found.doubts()


def test_what_no_chain_has_found_is_not_seen():
    """The limit of it, written down: a mode that nobody finds is missed in silence, and a gap doesn't see it either.

    Data simulated from the prior fall into it as rarely as chains do. An encoder that knows it would tell: its bound
    -R - beta D, here of a Gaussian in the well, lies above the log Z of the chains, which a lower bound cannot if they are right.
    """
    width, beta = 1e-5, 1000.0
    distortion = spiked(width, 20)
    found = measured(distortion)
    assert found.doubts() == []
    simulated, z = simulate(distortion, 20, beta, seeded(5))
    tuning = tune(simulated, [beta], seeded(6), n_steps=300)
    assert gap(simulated, z, tuning, 16, seeded(7)).mean < 1
    std = width / math.sqrt(2 * beta) / 3
    noise = torch.randn(1, 4000, 1, generator=seeded(8), dtype=torch.float64)
    d, _ = spiked(width, 1)(1.5 + std * noise)
    rate = 0.5 * (1.5**2 + std**2 - 1) - math.log(std)
    assert -rate - beta * float(d.mean()) > float(found.log_z[-1].mean()) + 10

"""Bounds on log Z from both sides, on data simulated for the very distortion, against the truth."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from lossy_mlflow.rate_distortion import (
    closed_form,
    feature_error,
    gap,
    negative_log_likelihood,
    simulate,
    stretched,
    tune,
)
from lossy_mlflow.rate_distortion.bdmc import Gap
from lossy_mlflow.rate_distortion.distortion import Quadratic
from tests.rate_distortion.problems import (
    assert_bounds,
    by_quadrature,
    linear,
    quadratic,
    seeded,
    small_net,
    through_a_network,
)


def simulated_gap(distortion, beta, *, n=200, n_steps=100, n_chains=8, std=None):
    """(the gap, the simulated distortion)."""
    simulated, z = simulate(distortion, n, beta, seeded(1), std)
    tuning = tune(simulated, [beta], seeded(2), n_steps=n_steps)
    return gap(simulated, z, tuning, n_chains, seeded(3)), simulated


@pytest.mark.parametrize(("z_size", "n_pixels", "n_steps"), [(1, 5, 40), (10, 64, 250)])
@pytest.mark.parametrize("beta", [1.0, 100.0])
def test_the_truth_lies_between(z_size, n_pixels, n_steps, beta):
    found, simulated = simulated_gap(quadratic(z_size, n_pixels, 1), beta, n_steps=n_steps)
    assert_bounds(found, closed_form(simulated, beta).log_z)


def test_the_gap_is_never_negative_on_average_and_closes_with_steps():
    distortion = quadratic(3, 20, 1)
    gaps = [simulated_gap(distortion, 1000.0, n_steps=n, n_chains=4)[0] for n in (10, 40, 160)]
    for shorter, longer in pairwise(gaps):
        assert shorter.mean > longer.mean + 3 * math.hypot(shorter.se, longer.se)
    assert gaps[-1].mean > -3 * gaps[-1].se
    assert gaps[-1].mean < 1


def test_through_a_bent_decoder():
    """By a grid in z, which shares nothing with the chains."""
    network = small_net(2, 8)
    distortion = through_a_network(network, torch.zeros(1, 8, dtype=torch.float64), 2)
    found, simulated = simulated_gap(distortion, 20.0, n=60)
    assert_bounds(found, by_quadrature(simulated, 20.0, points=151, reach=5.5).log_z)


def test_of_the_joint_with_a_variance_of_each_pixel():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.x_logvar = small_net(2, 6), torch.linspace(-2, 1, 6, dtype=torch.float64)

        def decode(self, z):
            return self.net(z)

    distortion = negative_log_likelihood(Own(), torch.zeros(1, 6, dtype=torch.float64), 2)
    found, simulated = simulated_gap(distortion, 5.0, n=60)
    assert_bounds(found, by_quadrature(simulated, 5.0, points=151, reach=5.5).log_z)


@pytest.mark.parametrize("bad_std", [3.0, 0.3])
def test_of_data_drawn_from_the_parts_of_a_mixture_prior(bad_std):
    """Each under the part that it is from, of which Z is a closed form."""
    beta, n = 20.0, 200
    matrix, bias = linear(3, 12)
    one = Quadratic(matrix, bias, bias[None], torch.ones(()))
    wide = torch.rand(n, generator=seeded(5)) < 0.4
    std = torch.where(wide, bad_std, 1.0).double()
    found, simulated = simulated_gap(one, beta, n=n, n_steps=200, std=std)
    exact = [closed_form(stretched(simulated.unstretched, width), beta).log_z for width in (1.0, bad_std)]
    assert_bounds(found, torch.where(wide, exact[1], exact[0]))


class Features(nn.Module):
    """Linear features that stretch pixels by `stretch`."""

    def __init__(self, stretch):
        super().__init__()
        self.matrix = stretch * torch.randn(7, 6, generator=seeded(4), dtype=torch.float64) / 6**0.5

    def features(self, x):
        return x @ self.matrix.t()


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.matrix, self.bias = linear(2, 6)
        self.register_buffer("x_logvar", torch.zeros((), dtype=torch.float64))

    def decode(self, z):
        return z @ self.matrix.t() + self.bias, self.x_logvar


def feature_truth(stretch, targets, beta):
    """The features of a linear decoder are a linear decoder."""
    features, decoder = Features(stretch), Linear()
    w, b = features.matrix @ decoder.matrix, features.matrix @ decoder.bias
    return closed_form(Quadratic(w, b, targets, torch.ones(())), beta).log_z


def test_of_features():
    """Features are what is simulated: there is no image that has them."""
    beta, stretch = 30.0, 5.0
    distortion = feature_error(Linear(), Features(stretch), torch.zeros(1, 6, dtype=torch.float64), 2)
    found, simulated = simulated_gap(distortion, beta, n_steps=300)
    assert_bounds(found, feature_truth(stretch, simulated._targets, beta))


def test_simulated_data_are_what_f_beta_means():
    """x ~ N(f(z), 1 / (2 beta w)): d at its own z is chi-squared / (2 beta), whose mean is n / (2 beta)."""
    beta, n_pixels = 50.0, 20
    for distortion in (
        quadratic(3, n_pixels, 1),
        through_a_network(small_net(3, n_pixels), torch.zeros(1, n_pixels), 3),
    ):
        simulated, z = simulate(distortion, 2000, beta, seeded(1))
        d = simulated(z.unsqueeze(1))[0][:, 0]
        se = float(d.std()) / 2000**0.5
        assert abs(float(d.mean()) - n_pixels / (2 * beta)) < 4 * se
        assert float(d.var()) == pytest.approx(n_pixels / (2 * beta**2), rel=0.15)


def test_a_gap_is_the_mean_over_data_with_its_error():
    found = Gap.between(2.0, torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.5, 3.0, 3.0]))
    assert (found.beta, found.mean) == (2.0, 0.5)
    assert found.se == pytest.approx(0.5 / 3**0.5)

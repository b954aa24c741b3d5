"""The errors of the published code, and some of our own making, planted: the checks of the other files see each of them.

A check that passes with the error in it would be worth nothing. Each is run without it, too.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import pytest
import torch

from lossy_mlflow.rate_distortion import Quadratic, closed_form, curve, feature_error, gap, simulate, tune
from lossy_mlflow.rate_distortion import annealing as annealing_module
from lossy_mlflow.rate_distortion import hmc as hmc_module
from lossy_mlflow.rate_distortion.annealing import Annealing, anneal, start
from lossy_mlflow.rate_distortion.distortion import SquaredError
from lossy_mlflow.rate_distortion.hmc import State, hmc, leapfrog
from lossy_mlflow.rate_distortion.mixture import Stretched
from tests.rate_distortion.problems import (
    assert_bounds,
    assert_mean,
    assert_unbiased,
    copies,
    linear,
    quadratic,
    seeded,
    small_net,
    through_a_network,
)
from tests.rate_distortion.test_bdmc import Features, Linear, feature_truth
from tests.rate_distortion.test_mixture import (
    assert_is_of,
    by_parts,
    log_z_of_gaussians,
    of_vectors,
)
from tests.rate_distortion.test_odd_cases import assert_right_around_a_hole

# 1. Step sizes that follow the acceptance since the first step


class Published:
    """The published move: no mass, 10 leapfrog steps, a step size of each chain that follows its acceptance."""

    def __init__(self, cumulative):
        self.cumulative = cumulative
        self.step = self.rate = None
        self.n = 0

    def __call__(self, state, beta, distortion, _, generator):
        if self.step is None:
            self.step, self.rate = torch.full_like(state.d, 0.05), torch.zeros_like(state.d)
        eye = torch.eye(distortion.z_size, dtype=torch.float64).expand(distortion.n_data, -1, -1)
        moved, info = hmc(state, beta, eye, self.step, leapfrog(10), distortion, generator)
        accepted = (moved.z != state.z).any(-1)
        self.n += 1
        self.rate = self.rate + (accepted.double() - self.rate) / self.n
        up = self.rate > 0.65 if self.cumulative else accepted
        down = 0.98 if self.cumulative else 1.02 ** (-0.65 / 0.35)
        self.step = (self.step * torch.where(up, 1.02, down)).clamp(1e-4, 0.5)
        return moved, info


def annealed_as_published(monkeypatch, cumulative):
    """log Z at beta = 36,000 and the truth: z = 10, 1000 betas of the sigmoid schedule."""
    beta = 36000.0
    distortion = copies(10, 64, 20)
    tuning = tune(distortion, [beta], seeded(1), n_steps=10)
    gamma = torch.sigmoid(torch.linspace(-10, 10, 1000, dtype=torch.float64))
    betas = beta * (gamma - gamma[0]) / (gamma[-1] - gamma[0])
    betas[-1] = beta
    monkeypatch.setattr(annealing_module, "_move", Published(cumulative))
    found = curve(distortion, [beta], replace(tuning, betas=betas), seeded(2))
    return found.log_z[0], closed_form(distortion, beta).log_z


def test_step_sizes_that_wind_up(monkeypatch):
    """Of the published rule and one that follows each move: same steps, same betas. Within 3 nats, or not."""
    log_z, truth = annealed_as_published(monkeypatch, cumulative=False)
    assert_mean(log_z, truth, bias=3.0)
    log_z, truth = annealed_as_published(monkeypatch, cumulative=True)
    with pytest.raises(AssertionError, match="off by -"):
        assert_mean(log_z, truth, bias=3.0)


# 2. Log weights in float32


def test_log_weights_in_float32(monkeypatch):
    """At beta d = 3e7, one rounding is a nat."""
    beta = 36000.0
    distortion = copies(2, 784, 200, noise=1.0)
    truth = closed_form(distortion, beta).log_z
    tuning = tune(distortion, [beta], seeded(1), n_steps=300)

    def check():
        log_z = curve(distortion, [beta], tuning, seeded(2)).log_z[0]
        assert_mean(log_z, truth, bias=0.3)
        assert_unbiased(log_z, truth)

    check()

    def rounded(step, state, log_w, *rest):
        return Annealing(step, state, log_w.float().double(), *rest)

    monkeypatch.setattr(annealing_module, "Annealing", rounded)
    with pytest.raises(AssertionError, match="off by"):
        check()


# 3. A rejected proposal that isn't finite, times zero


def test_proposals_mixed_instead_of_chosen(monkeypatch):
    def mixed(moved, there, here):
        def mix(name):
            new, old = getattr(there, name), getattr(here, name)
            accept = moved.double() if new.dim() == 2 else moved.double().unsqueeze(-1)
            return accept * new + (1 - accept) * old

        return State(*[mix(name) for name in State.__slots__])

    monkeypatch.setattr(hmc_module, "_where", mixed)
    with pytest.raises(AssertionError):
        assert_right_around_a_hole(2.2)


# 4. A mixture that is of each dimension, or whose gradient is missing


def test_a_mixture_of_each_dimension():
    """Z by parts is that of a mixture of vectors, and not of one whose dimensions each have a coin of their own."""
    weight, bad_std, beta, size = 0.4, 4.0, 20.0, 2
    matrix, bias = linear(size, 12)
    image = bias + torch.randn(12, generator=seeded(4), dtype=torch.float64)
    found = by_parts(Quadratic(matrix, bias, image.expand(200, -1), torch.ones(())), [beta], weight, bad_std)

    def check(mixture):
        truth = log_z_of_gaussians(matrix, bias, image, beta, mixture)
        assert_unbiased(found.log_z[0], truth.expand(200), at_most=0.1)

    check(of_vectors(weight, bad_std, size))
    odds = ((1 - weight, 1.0), (weight, bad_std))
    of_dimensions = [
        (math.prod(share for share, _ in each), torch.tensor([std for _, std in each], dtype=torch.float64))
        for each in product(odds, repeat=size)
    ]
    with pytest.raises(AssertionError, match="Zhat / Z ="):
        check(of_dimensions)


class WithoutGradient(Stretched):
    def __call__(self, z):
        d, gradient = super().__call__(z)
        return d, gradient / self._std


def test_a_mixture_without_its_gradient():
    bent = through_a_network(small_net(3, 8), torch.zeros(2, 8, dtype=torch.float64), 3)
    std = torch.tensor(10.0)
    assert_is_of(Stretched(bent, std), bent, 10.0)
    with pytest.raises(AssertionError):
        assert_is_of(WithoutGradient(bent, std), bent, 10.0)


# 5. Gaps on data that are not what the chains are for


def feature_gap(noise_of_pixels):
    """(the gap, the truth) for features that stretch an image's noise fivefold."""
    beta, stretch, n = 30.0, 5.0, 300
    decoder, features = Linear(), Features(stretch)
    one = feature_error(decoder, features, torch.zeros(1, 6, dtype=torch.float64), 2)
    simulated, z = simulate(one, n, beta, seeded(1))
    if noise_of_pixels:
        images = decoder.decode(z)[0]
        noise = torch.randn(images.shape, generator=seeded(2), dtype=torch.float64)
        images = images + noise / math.sqrt(2 * beta)
        simulated = feature_error(decoder, features, images, 2)
    # Short moves, and few: of a Gaussian, a move of the usual length forgets at once where it began.
    tuning = tune(simulated, [beta], seeded(3), n_steps=100, n_leapfrog=1)
    found = gap(simulated, z, tuning, 8, seeded(4))
    return found, feature_truth(stretch, simulated._targets, beta)


def test_a_gap_of_features_with_the_noise_of_pixels():
    assert_bounds(*feature_gap(noise_of_pixels=False))
    with pytest.raises(AssertionError):
        assert_bounds(*feature_gap(noise_of_pixels=True))


def test_a_gap_with_what_was_tuned_on_other_data():
    """Exact all the same, but of chains that aren't those measured: masses and step sizes of other images, a larger gap."""
    beta = 3000.0
    network = small_net(4, 30, scale=2.0)
    one = through_a_network(network, torch.zeros(1, 30, dtype=torch.float64), 4)
    simulated, z = simulate(one, 30, beta, seeded(1))
    other, _ = simulate(one, 30, beta, seeded(2))
    assert isinstance(simulated, SquaredError)
    own, theirs = (tune(data, [beta], seeded(3), n_steps=400) for data in (simulated, other))

    def small(tuning):
        found = gap(simulated, z, tuning, 8, seeded(4))
        assert found.mean < 2, found.mean

    small(own)
    with pytest.raises(AssertionError):  # by hundreds of nats
        small(theirs)


# Of our own making


def linear_run():
    beta = 1000.0
    distortion = copies(3, 20, 300)
    tuning = tune(distortion, [beta], seeded(1), n_steps=400)
    return distortion, tuning, beta, closed_form(distortion, beta).log_z


def test_the_mean_of_log_weights():
    distortion, tuning, beta, truth = linear_run()
    taken = []
    generator = seeded(2)
    first = start(distortion, 16, generator)
    anneal(first, distortion, tuning, [beta], generator, on_point=lambda kept, _: taken.append(kept.log_w))
    assert_unbiased(torch.logsumexp(taken[0], 1) - math.log(16), truth)
    with pytest.raises(AssertionError, match="Zhat / Z ="):
        assert_unbiased(taken[0].mean(1), truth)


def planted_move(monkeypatch, change):
    move = annealing_module._move
    monkeypatch.setattr(
        annealing_module, "_move", lambda state, beta, *rest: move(state, change(beta), *rest)
    )


def test_a_kernel_at_a_tenth_more_than_beta(monkeypatch):
    distortion, tuning, beta, truth = linear_run()
    assert_unbiased(curve(distortion, [beta], tuning, seeded(2)).log_z[0], truth)
    planted_move(monkeypatch, lambda beta: 1.1 * beta)
    with pytest.raises(AssertionError, match="Zhat / Z"):
        assert_unbiased(curve(distortion, [beta], tuning, seeded(2)).log_z[0], truth)


def test_a_backward_kernel_at_another_beta(monkeypatch):
    simulated, z = simulate(quadratic(3, 20, 1), 200, 100.0, seeded(1))
    tuning = tune(simulated, [100.0], seeded(2), n_steps=200)
    truth = closed_form(simulated, 100.0).log_z
    assert_bounds(gap(simulated, z, tuning, 8, seeded(3)), truth)
    planted_move(monkeypatch, lambda beta: 1.1 * beta)
    with pytest.raises(AssertionError):
        assert_bounds(gap(simulated, z, tuning, 8, seeded(3)), truth)

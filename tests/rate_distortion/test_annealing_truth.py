"""Annealed importance sampling on linear decoders, over hundreds of seeds, against the closed form."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from lossy_mlflow.rate_distortion import Quadratic, closed_form, curve, simulate, tune
from lossy_mlflow.rate_distortion.network import FullyConnected, Layer
from tests.rate_distortion.problems import (
    assert_mean,
    assert_unbiased,
    copies,
    linear,
    seeded,
    small_net,
    through_a_network,
)

BETAS = [0.1, 1.0, 10.0, 1000.0, 36000.0]
N_CHAINS = 16


def measured(distortion, n_steps, *, betas=BETAS, n_chains=N_CHAINS, seed=1):
    tuning = tune(distortion, betas, seeded(seed), n_steps=n_steps)
    return curve(distortion, betas, tuning, seeded(seed + 1000), n_chains=n_chains)


@pytest.fixture(scope="module", params=[(1, 6, 150), (3, 20, 600), (10, 64, 400)], ids=lambda p: f"z{p[0]}")
def run(request):
    """(the curve of 300 copies of one image, what is true of it at each beta)."""
    z_size, n_pixels, n_steps = request.param
    distortion = copies(z_size, n_pixels, 300)
    return measured(distortion, n_steps), [closed_form(distortion, beta) for beta in BETAS]


def test_z_is_right_on_average(run):
    """E[Zhat] = Z at any number of steps (Neal 2001)."""
    curve, exact = run
    for index, truth in enumerate(exact):
        assert_unbiased(curve.log_z[index], truth.log_z, at_most=0.1)


def test_log_z_rate_and_distortion_are_right(run):
    """Self-normalised weights are biased by about -var/2 in log Z, where var is that of Zhat / Z: taken from the spread itself.

    Rate and beta D can be off by as much: they are sums of terms of that order.
    """
    curve, exact = run
    for index, (beta, truth) in enumerate(zip(BETAS, exact, strict=True)):
        bias = float(curve.log_z[index].var())
        assert bias < 0.5
        assert_mean(curve.log_z[index], truth.log_z, bias=bias)
        assert_mean(curve.rate[index], truth.rate, bias=bias)
        assert_mean(beta * curve.distortion[index], beta * truth.distortion, bias=bias)


def test_the_error_bars_of_chains_are_the_spread_over_seeds(run):
    """Where the weights are even. Elsewhere a first order is too little: there `ess` warns."""
    curve, _ = run
    even = [index for index in range(len(BETAS)) if float(curve.ess[index].mean()) > 0.6 * N_CHAINS]
    assert even
    for index in even:
        for name in ("log_z", "rate", "distortion"):
            spread = float(getattr(curve, name)[index].std())
            claimed = float(getattr(curve, f"{name}_se")[index].square().mean().sqrt())
            assert 0.7 < claimed / spread < 1.4


def test_distortion_falls_and_rate_rises_with_beta_and_the_curve_is_convex(run):
    """Of the mean over seeds; slopes are between the betas of the two ends. From beta 1 on: before, it is flat for z = 1."""
    curve, _ = run
    rate, distortion = curve.mean("rate")[1:], curve.mean("distortion")[1:]
    assert (distortion.diff() < 0).all()
    assert (rate.diff() > 0).all()
    slopes = -rate.diff() / distortion.diff()
    assert (slopes.diff() > 0).all()
    assert (slopes > torch.tensor(BETAS[1:-1]) * 0.8).all()
    assert (slopes < torch.tensor(BETAS[2:]) * 1.2).all()


def test_distortion_is_the_slope_of_minus_log_z():
    """Two estimates from one run that share no formula: the weights' mean of d, and the difference of log Z nearby."""
    distortion = copies(3, 20, 200)
    betas = [9.5, 10.0, 10.5]
    found = measured(distortion, 300, betas=betas, n_chains=32)
    slope = -(found.log_z[2] - found.log_z[0])
    # The second derivative of the slope over 0.5, by the closed form: what a central difference is off by.
    exact = [closed_form(distortion, beta) for beta in betas]
    curved = float((exact[0].log_z - exact[2].log_z - exact[1].distortion)[0])
    assert abs(curved) < 0.01
    assert_mean(slope, found.distortion[1], bias=abs(curved) + float(found.log_z[1].var()))


def test_log_z_is_below_the_truth_on_average_and_rises_to_it():
    distortion = copies(3, 20, 200)
    truth = closed_form(distortion, 1000.0).log_z
    short = [
        measured(distortion, n_steps, betas=[1000.0], n_chains=4).log_z[0] - truth
        for n_steps in (15, 60, 240)
    ]
    means = [float(off.mean()) for off in short]
    ses = [float(off.std()) / 200**0.5 for off in short]
    assert means[0] + 4 * ses[0] < means[1]
    assert means[1] + 4 * ses[1] < means[2]
    assert means[2] < 4 * ses[2]
    # The rate errs upwards.
    assert means[0] < -1


def test_through_a_network_it_is_the_same_as_by_matrices():
    """The same seeds, the same numbers, but for rounding that a chain amplifies: so the means are compared."""
    matrix, bias = linear(3, 20)
    images = bias + torch.randn(60, 20, generator=seeded(5), dtype=torch.float64)
    network = FullyConnected([Layer(matrix, bias, "identity")])
    through = through_a_network(network, images, 3)
    by_matrices = Quadratic(matrix, bias, images, torch.ones(()))
    ours, theirs = (
        measured(one, 100, betas=[0.3, 5.0], n_chains=8, seed=3) for one in (through, by_matrices)
    )
    torch.testing.assert_close(ours.log_z, theirs.log_z, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours.rate, theirs.rate, rtol=1e-6, atol=1e-6)


def test_a_decoder_in_float32_is_enough():
    """At beta 36,000, where beta d is near 1e6. d is off by 1e-7 of itself: a tenth of a nat, and log Z is within that."""
    matrix, bias = linear(2, 100)
    image = bias + 0.5 * torch.randn(100, generator=seeded(5), dtype=torch.float64)
    network = FullyConnected([Layer(matrix.float(), bias.float(), "identity")])
    found = measured(through_a_network(network, image.expand(100, -1), 2), 200, betas=[36000.0])
    truth = closed_form(Quadratic(matrix, bias, image[None], torch.ones(())), 36000.0)
    off = float(found.log_z[0].var()) + 36000.0 * float(truth.distortion) * 2**-24
    assert off < 0.5
    assert_mean(found.log_z[0], truth.log_z, bias=off)
    assert_mean(found.rate[0], truth.rate, bias=off)


def test_chains_accept_as_much_as_the_pilot_aimed_at():
    """Of a bent decoder, whose Jacobian differs along the posterior: a mass suits those it was found by, and others less."""
    one = through_a_network(small_net(40, 40, scale=4.0), torch.zeros(1, 40, dtype=torch.float64), 40)
    simulated, _ = simulate(one, 20, 1000.0, seeded(1))
    found = measured(simulated, 200, betas=[1.0, 30.0, 300.0, 1000.0], n_chains=8)
    # 0.8, but for what no mean of masses suits. By their own mass, particles promise steps of which chains take 6 % at the end.
    assert ((found.mean("acceptance") > 0.5) & (found.mean("acceptance") < 0.9)).all()


def test_no_move_comes_back_to_where_it_began():
    """With the prior for a posterior, any step is accepted, and of length pi a move keeps d: the schedule would see no spread."""
    distortion = copies(2, 100, 50)
    tuning = tune(distortion, [36000.0], seeded(1), n_steps=200)
    for n_leapfrog in (1, 2, 4):
        sizes = replace(tuning, n_leapfrog=n_leapfrog).step_sizes(36000.0)
        # Leapfrog of a step e turns by 2 asin(e / 2): a quarter turn in all, or less.
        assert (2 * n_leapfrog * torch.asin(sizes / 2) < math.pi / 2 + 1e-9).all()
    # d = chi-squared with 2 degrees of freedom / (2 beta): its log weight gains with an sd of 1 for each nat of log beta.
    spread = (tuning.knots.unsqueeze(1) * tuning.spread)[tuning.knots > 3600].mean()
    assert 0.7 < float(spread) < 1.2


@pytest.mark.campaign
def test_many_more_seeds():
    distortion = copies(10, 64, 1200, seed=7)
    found = measured(distortion, 600)
    for index, beta in enumerate(BETAS):
        assert_unbiased(found.log_z[index], closed_form(distortion, beta).log_z, at_most=0.1)

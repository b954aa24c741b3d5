"""A bent decoder in more dimensions than a grid can have: blackjax's NUTS as the oracle, whose chains stay at one beta.

They give E[d] there. -log Z is the integral of that over beta, since d(-log Z) / d beta = D and Z(0) = 1.
"""

from __future__ import annotations

import functools
import json
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lossy_mlflow.rate_distortion import Curve, closed_form, curve, tune
from lossy_mlflow.rate_distortion import annealing as annealing_module
from lossy_mlflow.rate_distortion import hmc as hmc_module
from tests.rate_distortion.problems import (
    SIGMAS,
    by_quadrature,
    quadratic,
    seeded,
    small_net,
    through_a_network,
)

ENDS = [0.5, 10.0, 500.0]  # where log Z is compared; D is at five betas before each
QUADRATURE = 0.002  # nats: how wrong the integral of exact D is; a test shows it


@dataclass(frozen=True, slots=True)
class Rule:
    """The integral of D from one of ENDS to the next is the sum over a row of weight * D(beta). (3, 5) each."""

    betas: Tensor
    weights: Tensor


def rule(d_of_prior: float) -> Rule:
    """Gauss and Legendre's in log(beta + 1 / E_prior[d]): D, level up to there, then falls as a power of it."""
    x, w = (torch.from_numpy(values) for values in np.polynomial.legendre.leggauss(5))
    ends = torch.log(torch.tensor([0.0, *ENDS], dtype=torch.float64) + 1 / d_of_prior).unsqueeze(1)
    half, middle = ends.diff(dim=0) / 2, (ends[1:] + ends[:-1]) / 2
    shifted = torch.exp(middle + half * x)
    return Rule(shifted - 1 / d_of_prior, half * w * shifted)


@dataclass(frozen=True, slots=True)
class Oracle:
    """NUTS on one image: D at the rule's betas (3, 5), -log Z at ENDS (3,), and their standard errors."""

    network: nn.Sequential
    x: Tensor
    betas: Tensor
    d: Tensor
    d_se: Tensor
    minus_log_z: Tensor
    minus_log_z_se: Tensor


@functools.cache
def oracle(z_size: int, seed: int) -> Oracle:
    network = small_net(z_size, 5 * z_size, seed=seed, scale=1.5)
    z = torch.randn(400, z_size, generator=seeded(seed + 1), dtype=torch.float64)
    noise = 0.2 * torch.randn(1, 5 * z_size, generator=seeded(seed + 2), dtype=torch.float64)
    x = network(z[:1]).detach() + noise
    d_at_z, gradient_at_z = through_a_network(network, x, z_size)(z.unsqueeze(0))
    made = rule(float(d_at_z.mean()))
    said = nuts(network, x, made.betas.flatten().tolist(), z)
    # The same d, written twice: a torch network with a gradient by hand, and jax.
    torch.testing.assert_close(said["d_at_z"], d_at_z[0], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(said["gradient_at_z"], gradient_at_z[0], rtol=1e-9, atol=1e-9)
    # Chains from all over the prior agree, have many draws in effect, and none was thrown off.
    assert float(said["r_hat"].max()) < 1.01
    assert float(said["ess"].min()) > 2000
    assert int(said["n_diverged"]) == 0
    d, d_se = (said[name].view_as(made.betas) for name in ("distortion", "distortion_se"))
    return Oracle(
        network,
        x,
        made.betas,
        d,
        d_se,
        minus_log_z=(made.weights * d).sum(1).cumsum(0),
        minus_log_z_se=(made.weights * d_se).square().sum(1).cumsum(0).sqrt(),
    )


def nuts(network: nn.Sequential, x: Tensor, betas: list[float], z: Tensor) -> dict[str, Tensor]:
    first, _, last = network
    layers = {"w1": first.weight, "b1": first.bias, "w2": last.weight, "b2": last.bias, "x": x[0]}
    decoder = {name: tensor.tolist() for name, tensor in layers.items()}
    question = {
        "arrays": {"decoder": decoder, "betas": betas, "z": z.tolist()},
        "seed": 0,
        "n_chains": 8,
        "n_warm_up": 300,
        "n_draws": 1500,
    }
    process = subprocess.run(
        [sys.executable, Path(__file__).with_name("nuts.py")],
        input=json.dumps(question),
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return {
        name: torch.tensor(value, dtype=torch.float64) for name, value in json.loads(process.stdout).items()
    }


def annealed(asked: Oracle, n_steps: int = 200) -> Curve:
    """Of the image 200 times over, each with a pilot and chains of its own."""
    distortion = through_a_network(asked.network, asked.x.expand(200, -1), asked.network[0].in_features)
    betas = sorted({*asked.betas.flatten().tolist(), *ENDS})
    tuning = tune(distortion, betas, seeded(1), n_steps=n_steps)
    return curve(distortion, betas, tuning, seeded(2))


def assert_same_distortion(found: Curve, asked: Oracle) -> None:
    """beta D, of all copies weighted as one: their bias is then a 200th of one copy's, var(log Z) / 2."""
    betas = found.beta.tolist()
    by_nuts = (values.flatten().tolist() for values in (asked.betas, asked.d, asked.d_se))
    for beta, d, d_se in zip(*by_nuts, strict=True):
        at = betas.index(beta)
        share = torch.softmax(found.log_z[at], 0)
        mean = float((share * found.distortion[at]).sum())
        se = float((share * (found.distortion[at] - mean)).norm())
        bias = float(found.log_z[at].var()) / 2 / len(share)
        assert_near(f"beta D at {beta:.4g}", beta * (mean - d), beta * math.hypot(se, d_se), bias)


def assert_same_log_z(found: Curve, asked: Oracle) -> None:
    betas = found.beta.tolist()
    by_nuts = asked.minus_log_z.tolist(), asked.minus_log_z_se.tolist()
    for beta, truth, truth_se in zip(ENDS, *by_nuts, strict=True):
        log_z = found.log_z[betas.index(beta)]
        mean = float(torch.logsumexp(log_z, 0)) - math.log(len(log_z))
        se = float(torch.exp(log_z - mean).std()) / math.sqrt(len(log_z))
        assert_near(f"-log Z at {beta}", -mean - truth, math.hypot(se, truth_se), QUADRATURE)


def assert_near(what: str, off: float, noise: float, bias: float) -> None:
    """In nats: a difference within `SIGMAS` of the standard error of both samplers, which must be small enough to tell."""
    assert noise < 0.15, f"{what} isn't known well enough to tell: {noise:.3f}"
    assert abs(off) < SIGMAS * noise + bias, f"{what} is off by {off:.3f} +- {noise:.3f}"


def test_the_integral_of_what_is_known():
    """The rule's own error, where D and log Z need no sampler: a bent decoder on a grid, a linear one of six dimensions."""
    network = small_net(2, 8, scale=1.5)
    bent = through_a_network(network, network(torch.tensor([[0.8, -0.5]], dtype=torch.float64)), 2)
    linear = quadratic(6, 30, 1, scale=3.0)
    for distortion, truth in (
        (bent, lambda beta: by_quadrature(bent, beta, points=401, reach=5.0)),
        (linear, lambda beta: closed_form(linear, beta)),
    ):
        z = torch.randn(1, 400, distortion.z_size, generator=seeded(1), dtype=torch.float64)
        made = rule(float(distortion(z)[0].mean()))
        d = torch.tensor([float(truth(beta).distortion) for beta in made.betas.flatten().tolist()])
        integral = (made.weights * d.view_as(made.betas)).sum(1).cumsum(0)
        for index, beta in enumerate(ENDS):
            assert abs(float(integral[index] + truth(beta).log_z)) < QUADRATURE


MORE = [(6, 1, 200), (6, 2, 200), (8, 3, 1000), (10, 4, 1000)]


@pytest.mark.parametrize(
    ("z_size", "seed", "n_steps"),
    [(6, 0, 200), *(pytest.param(*case, marks=pytest.mark.campaign) for case in MORE)],
)
def test_a_bent_decoder_by_annealing_and_by_nuts(z_size, seed, n_steps):
    asked = oracle(z_size, seed)
    found = annealed(asked, n_steps)
    assert_same_distortion(found, asked)
    assert_same_log_z(found, asked)
    assert not found.doubts()


def always_accepted(monkeypatch):
    where = hmc_module._where
    monkeypatch.setattr(
        hmc_module, "_where", lambda moved, there, here: where(torch.ones_like(moved), there, here)
    )


def steps_by_place(monkeypatch):
    """Half as long where a chain of the image is worse than the others: they must not depend on where it is."""

    def planted(state, beta, scale, step_size, *rest):
        worse = state.d > state.d.median(1, keepdim=True).values
        return hmc_module.hmc(state, beta, scale, torch.where(worse, step_size / 2, step_size), *rest)

    monkeypatch.setattr(annealing_module, "hmc", planted)


@pytest.mark.parametrize("plant", [always_accepted, steps_by_place])
def test_what_is_planted_is_seen(plant, monkeypatch):
    asked = oracle(6, 0)
    plant(monkeypatch)
    found = annealed(asked)
    with pytest.raises(AssertionError, match="is off by"):
        assert_same_distortion(found, asked)
    with pytest.raises(AssertionError, match="is off by"):
        assert_same_log_z(found, asked)

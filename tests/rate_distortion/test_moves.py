"""Steps of a move: the same backwards, and in pairs truer to the energy than leapfrog, for the same gradients."""

from __future__ import annotations

import math

import pytest
import torch

from lossy_mlflow.rate_distortion.hmc import hmc, leapfrog, state_at, two_stage
from tests.rate_distortion.problems import copies, seeded

BETA = 30.0


@pytest.mark.parametrize("steps", [leapfrog, two_stage])
@pytest.mark.parametrize("n_steps", range(1, 8))
def test_the_force_acts_as_long_as_the_drifts_last_and_the_same_backwards(steps, n_steps):
    kicks = steps(n_steps)
    assert len(kicks) == n_steps + 1
    assert sum(kicks) == pytest.approx(n_steps)
    assert kicks == pytest.approx(kicks[::-1])
    assert min(kicks) > 0


def _acceptance(distortion, kicks, angle):
    """Of moves that turn a Gaussian by about that angle, from draws of f_beta; `distortion` is of copies, and quadratic."""
    n_steps = len(kicks) - 1
    precision = torch.eye(distortion.z_size, dtype=torch.float64) + 2 * BETA * distortion.gram
    curvature, axes = torch.linalg.eigh(precision)
    scale = (axes / curvature.sqrt()).expand(distortion.n_data, -1, -1)
    centre = torch.linalg.solve(precision, 2 * BETA * distortion.pull[0])
    noise = torch.randn((distortion.n_data, 8, distortion.z_size), generator=seeded(1), dtype=torch.float64)
    state = state_at(centre + noise @ scale.transpose(1, 2), distortion)
    size = torch.full(state.d.shape, angle / n_steps, dtype=torch.float64)
    _, info = hmc(state, BETA, scale, size, kicks, distortion, seeded(2))
    return float(info.acceptance.mean())


def test_in_pairs_nearly_every_quarter_turn_is_accepted():
    distortion = copies(40, 60, 200)
    assert _acceptance(distortion, leapfrog(2), math.pi / 2) < 0.7
    assert _acceptance(distortion, two_stage(2), math.pi / 2) > 0.9
    assert _acceptance(distortion, two_stage(4), math.pi / 2) > 0.95

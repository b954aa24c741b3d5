"""One Hamiltonian Monte Carlo move (Neal 2011) that leaves f_beta(z) = p(z) exp(-beta d(x, z)) as it is, for all data and chains.

Energies are compared by their differences, in float64: at beta = 36,000 they are near 1e6, and a difference of 0.1 matters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lossy_mlflow.rate_distortion.distortion import Distortion
from lossy_mlflow.rate_distortion.prior import Prior


@dataclass(frozen=True, slots=True)
class State:
    """Where the chains are, (n_data, n_chains, z_size), with d and its gradient there, and log p and its. float64."""

    z: Tensor
    d: Tensor
    d_gradient: Tensor
    log_p: Tensor
    score: Tensor


@dataclass(frozen=True, slots=True)
class Info:
    """What a move did: acceptance probabilities (n_data, n_chains), 0 where a proposal wasn't finite; how many of those."""

    acceptance: Tensor
    n_non_finite: Tensor


def state_at(z: Tensor, distortion: Distortion, prior: Prior) -> State:
    """The chains at z. One gradient. Where the decoder gives nothing finite, d is infinite: f_beta is 0 there.

    A chain that begins there stays, with weight 0, and each of its proposals counts as not finite.
    """
    d, d_gradient = distortion(z)
    d = torch.where(torch.isfinite(d) & torch.isfinite(d_gradient).all(-1), d, math.inf)
    log_p, score = prior.log_density(z)
    return State(z, d, d_gradient, log_p, score)


def hmc(
    state: State,
    beta: float,
    scale: Tensor,
    step_size: Tensor,
    n_leapfrog: int,
    distortion: Distortion,
    prior: Prior,
    generator: torch.Generator,
) -> tuple[State, Info]:
    """A move of `n_leapfrog` leapfrog steps, each a gradient.

    `scale` A (n_data, z_size, z_size), with A A^T the inverse of the mass matrix: steps are taken in coordinates in which f_beta
    is about round. `step_size` (n_data, n_chains). Both must not depend on where the chains are.
    """
    z, d, d_gradient = state.z, state.d, state.d_gradient
    log_p, score = state.log_p, state.score
    momentum = torch.randn(z.shape, generator=generator, device=z.device, dtype=z.dtype)
    start = momentum
    step = step_size.unsqueeze(-1)
    momentum = momentum - 0.5 * step * (beta * d_gradient - score) @ scale
    for index in range(n_leapfrog):
        z = z + step * (momentum @ scale.transpose(1, 2))
        d, d_gradient = distortion(z)
        log_p, score = prior.log_density(z)
        length = 1.0 if index + 1 < n_leapfrog else 0.5
        momentum = momentum - length * step * (beta * d_gradient - score) @ scale
    rise = beta * (d - state.d) - (log_p - state.log_p)
    rise = rise + 0.5 * ((momentum - start) * (momentum + start)).sum(-1)
    finite = torch.isfinite(rise) & torch.isfinite(d_gradient).all(-1)
    acceptance = torch.where(finite, torch.exp(-rise.clamp(min=0)), 0.0)
    coin = torch.rand(rise.shape, generator=generator, device=z.device, dtype=z.dtype)
    moved = coin < acceptance
    # Chosen, not mixed by 0 and 1: 0 times NaN is NaN.
    proposed = State(z, d, d_gradient, log_p, score)
    return _where(moved, proposed, state), Info(acceptance, (~finite).sum())


def _where(moved: Tensor, there: State, here: State) -> State:
    wide = moved.unsqueeze(-1)
    return State(
        torch.where(wide, there.z, here.z),
        torch.where(moved, there.d, here.d),
        torch.where(wide, there.d_gradient, here.d_gradient),
        torch.where(moved, there.log_p, here.log_p),
        torch.where(wide, there.score, here.score),
    )

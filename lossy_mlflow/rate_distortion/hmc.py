"""One Hamiltonian Monte Carlo move (Neal 2011) that leaves f_beta(z) = p(z) exp(-beta d(x, z)) as it is, for all data and chains.

Energies are compared by their differences, in float64: at beta = 36,000 they are near 1e6, and a difference of 0.1 matters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lossy_mlflow.rate_distortion.distortion import Distortion

_OUTER = 0.21178  # the share of a pair of steps for which the force acts before its first drift, and after its second


@dataclass(frozen=True, slots=True)
class State:
    """Where the chains are, (n_data, n_chains, z_size), with d and its gradient there. float64."""

    z: Tensor
    d: Tensor
    d_gradient: Tensor


@dataclass(frozen=True, slots=True)
class Info:
    """What a move did: acceptance probabilities (n_data, n_chains), 0 where a proposal wasn't finite; how many of those."""

    acceptance: Tensor
    n_non_finite: Tensor


def drawn(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Of the prior N(0, I), float64, on the generator's device; the last dimension is z_size."""
    return torch.randn(shape, generator=generator, device=generator.device, dtype=torch.float64)


def state_at(z: Tensor, distortion: Distortion) -> State:
    """The chains at z. One gradient. Where the decoder gives nothing finite, d is infinite: f_beta is 0 there.

    A chain that begins there stays, with weight 0, and each of its proposals counts as not finite.
    """
    d, d_gradient = distortion(z)
    d = torch.where(torch.isfinite(d) & torch.isfinite(d_gradient).all(-1), d, math.inf)
    return State(z, d, d_gradient)


def leapfrog(n_steps: int) -> list[float]:
    """For how much of a step the force acts before the first of so many drifts, between them, and after the last."""
    return [0.5, *[1.0] * (n_steps - 1), 0.5]


def two_stage(n_steps: int) -> list[float]:
    """The same in pairs, truer to the energy: on a Gaussian it errs, in the mean, a thirtieth as much by one, a ninth by two.

    An odd number are leapfrog steps.

    Both are the same backwards, as a reversible move must be. Source: Blanes, Casas and Sanz-Serna (2014), section 4.
    """
    if n_steps % 2:
        return leapfrog(n_steps)
    one = [2 * _OUTER, 2 - 4 * _OUTER]
    return [*one, *[4 * _OUTER, one[1]] * (n_steps // 2 - 1), one[0]]


def hmc(
    state: State,
    beta: float,
    scale: Tensor,
    step_size: Tensor,
    kicks: Sequence[float],
    distortion: Distortion,
    generator: torch.Generator,
) -> tuple[State, Info]:
    """A move whose steps, a gradient each, are those of `leapfrog` or `two_stage`.

    `scale` A (n_data, z_size, z_size), with A A^T the inverse of the mass matrix: steps are taken in coordinates in which f_beta
    is about round. `step_size` (n_data, n_chains). Both must not depend on where the chains are.
    """
    z, d, d_gradient = state.z, state.d, state.d_gradient
    momentum = torch.randn(z.shape, generator=generator, device=z.device, dtype=z.dtype)
    start = momentum
    step = step_size.unsqueeze(-1)
    first, *others = kicks
    momentum = momentum - first * step * (beta * d_gradient + z) @ scale
    for kick in others:
        z = z + step * (momentum @ scale.transpose(1, 2))
        d, d_gradient = distortion(z)
        momentum = momentum - kick * step * (beta * d_gradient + z) @ scale
    rise = beta * (d - state.d) + 0.5 * ((z - state.z) * (z + state.z)).sum(-1)
    rise = rise + 0.5 * ((momentum - start) * (momentum + start)).sum(-1)
    finite = torch.isfinite(rise) & torch.isfinite(d_gradient).all(-1)
    acceptance = torch.where(finite, torch.exp(-rise.clamp(min=0)), 0.0)
    coin = torch.rand(rise.shape, generator=generator, device=z.device, dtype=z.dtype)
    moved = coin < acceptance
    # Chosen, not mixed by 0 and 1: 0 times NaN is NaN.
    proposed = State(z, d, d_gradient)
    return _where(moved, proposed, state), Info(acceptance, (~finite).sum())


def _where(moved: Tensor, there: State, here: State) -> State:
    wide = moved.unsqueeze(-1)
    return State(
        torch.where(wide, there.z, here.z),
        torch.where(moved, there.d, here.d),
        torch.where(wide, there.d_gradient, here.d_gradient),
    )

"""Bidirectional Monte Carlo (Grosse, Ghahramani and Adams 2015; Wu et al. 2017): how far an estimate of log Z can be off.

On data drawn from the very model that f_beta means, one exact draw of the posterior is known. From it chains run backwards, and
bound log Z from above, as the forward ones bound it from below.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from lossy_mlflow.rate_distortion.annealing import anneal, reverse_log_weights, start
from lossy_mlflow.rate_distortion.distortion import Distortion
from lossy_mlflow.rate_distortion.hmc import drawn
from lossy_mlflow.rate_distortion.mixture import Stretched
from lossy_mlflow.rate_distortion.tuning import Tuning


@dataclass(frozen=True, slots=True)
class Gap:
    """Upper minus lower bound on log Z at beta, in nats: the mean over simulated data, its standard error, and each (n_data,)."""

    beta: float
    mean: float
    se: float | None
    lower: Tensor
    upper: Tensor

    @classmethod
    def between(cls, beta: float, lower: Tensor, upper: Tensor) -> Self:
        """The gap between bounds (n_data,) of each datum. One datum has no standard error."""
        each = upper - lower
        se = float(each.std() / math.sqrt(len(each))) if len(each) > 1 else None
        return cls(beta, float(each.mean()), se, lower, upper)


def simulate(
    distortion: Distortion,
    n_data: int,
    beta: float,
    generator: torch.Generator,
    std: Tensor | None = None,
) -> tuple[Distortion, Tensor]:
    """Data drawn as f_beta has it, z ~ p and x ~ exp(-beta d(x, z)), as a distortion of theirs; and their z (n_data, z_size).

    `std` (n_data,): p is N(0, std^2 I) for each datum, and z is of N(0, I), in units of it. Drawn from a mixture prior's parts,
    the gap is the mean error over the parts that images come from: log of the parts' sum is off by no more than that, on average.
    """
    z = drawn((n_data, distortion.z_size), generator)
    if std is None:
        return distortion.simulated(z, beta, generator), z
    return Stretched(distortion.simulated(std.unsqueeze(1) * z, beta, generator), std), z


def gap(
    simulated: Distortion,
    z: Tensor,
    tuning: Tuning,
    n_chains: int,
    generator: torch.Generator,
    *,
    progress: Callable[[], None] | None = None,
) -> Gap:
    """The gap at the last beta of the tuning's schedule, which a pilot on these very data has made.

    `z` (n_data, z_size): what the data were drawn from. `progress` hears of each move, forwards and backwards.
    """
    beta = float(tuning.betas[-1])
    lower: list[Tensor] = []
    anneal(
        start(simulated, n_chains, generator),
        simulated,
        tuning,
        [beta],
        generator,
        on_point=lambda _, point: lower.append(point.log_z),
        on_step=lambda _: progress() if progress else None,
    )
    log_w = reverse_log_weights(z, n_chains, simulated, tuning, generator, progress)
    upper = math.log(n_chains) - torch.logsumexp(log_w, 1)
    return Gap.between(beta, lower[0], upper)

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
from lossy_mlflow.rate_distortion.prior import Prior, StandardNormal
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
    distortion: Distortion, n_data: int, beta: float, generator: torch.Generator, prior: Prior | None = None
) -> tuple[Distortion, Tensor]:
    """Data drawn as f_beta has it, z ~ p and x ~ exp(-beta d(x, z)), as a distortion of theirs; and their z (n_data, z_size)."""
    z = (prior or StandardNormal()).sample((n_data, distortion.z_size), generator)
    return distortion.simulated(z, beta, generator), z


def gap(
    simulated: Distortion,
    z: Tensor,
    tuning: Tuning,
    n_chains: int,
    generator: torch.Generator,
    *,
    prior: Prior | None = None,
    progress: Callable[[], None] | None = None,
) -> Gap:
    """The gap at the last beta of the tuning's schedule, which a pilot on these very data has made.

    `z` (n_data, z_size): what the data were drawn from. `progress` hears of each move backwards.
    """
    beta = float(tuning.betas[-1])
    lower: list[Tensor] = []
    anneal(
        start(simulated, n_chains, generator, prior),
        simulated,
        tuning,
        [beta],
        generator,
        prior=prior,
        on_point=lambda _, point: lower.append(point.log_z),
    )
    log_w = reverse_log_weights(z, n_chains, simulated, tuning, generator, prior, progress)
    upper = math.log(n_chains) - torch.logsumexp(log_w, 1)
    return Gap.between(beta, lower[0], upper)

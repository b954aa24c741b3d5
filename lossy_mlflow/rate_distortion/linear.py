"""Rate, distortion and log Z of a linear decoder, exactly: f_beta is a Gaussian (Huang et al. 2020, appendix).

By two routes that share no step, so that each checks the other: the posterior's moments, and the data's marginal density.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lossy_mlflow.rate_distortion.distortion import Quadratic


@dataclass(frozen=True, slots=True)
class Exact:
    """By datum, (n_data,) each, float64, in nats (distortion: in d's units)."""

    rate: Tensor
    distortion: Tensor
    log_z: Tensor


def closed_form(distortion: Quadratic, beta: float) -> Exact:
    """From the posterior N(mu, S), S = (I + 2 beta G)^-1, mu = 2 beta S h.

    R = KL(N(mu, S) || N(0, I)), D = E d, log Z = -R - beta D.
    """
    eigenvalues, axes = torch.linalg.eigh(distortion.gram)
    eigenvalues = eigenvalues.clamp(min=0)
    shrunk = 1 / (1 + 2 * beta * eigenvalues)
    pull = distortion.pull @ axes
    mean = 2 * beta * shrunk * pull
    rate = 0.5 * ((shrunk - 1 - shrunk.log()).sum() + mean.square().sum(1))
    d = distortion.least - 2 * (pull * mean).sum(1) + (eigenvalues * (mean.square() + shrunk)).sum(1)
    d = d + distortion.constant
    return Exact(rate, d, -rate - beta * d)


def closed_form_by_marginal(distortion: Quadratic, beta: float) -> Exact:
    """From Z = integral of N(z; 0, I) exp(-beta d), by completing the square: D = -d log Z / d beta, R = -log Z - beta D."""
    size = distortion.z_size
    precision = torch.eye(size, dtype=torch.float64, device=distortion.device) + 2 * beta * distortion.gram
    factor = torch.linalg.cholesky(precision)
    solved = torch.cholesky_solve(distortion.pull.t(), factor).t()
    log_det = 2 * factor.diagonal().log().sum()
    least = distortion.least + distortion.constant
    log_z = -beta * least + 2 * beta**2 * (distortion.pull * solved).sum(1) - 0.5 * log_det
    trace = torch.cholesky_solve(distortion.gram, factor).diagonal().sum()
    bent = ((solved @ distortion.gram) * solved).sum(1)
    slope = -least + 4 * beta * (distortion.pull * solved).sum(1) - 4 * beta**2 * bent - trace
    return Exact(-log_z + beta * slope, -slope, log_z)


def bits_per_dimension(nats: float, n_dimensions: int) -> float:
    """A rate in bits for each of the data's dimensions."""
    return nats / math.log(2) / n_dimensions

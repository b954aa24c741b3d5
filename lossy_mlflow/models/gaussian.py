"""Diagonal Gaussians: log densities with their constants, divergence, samples. All in nats."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_LOG_2PI = math.log(2 * math.pi)


def log_density(x: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    """Log N(x; mean, exp(logvar)) of each row, (batch,).

    x and mean are (batch, n), logvar is a scalar, (n,) or (batch, n).
    """
    if logvar.numel() == 1:
        # One variance for all: a single pass over the (batch, n) residuals.
        squares = (x - mean).square().sum(1)
        return -0.5 * (squares * torch.exp(-logvar) + x.shape[1] * (logvar + _LOG_2PI))
    return -0.5 * ((x - mean).square() * torch.exp(-logvar) + logvar + _LOG_2PI).sum(1)


def standard_log_density(z: Tensor) -> Tensor:
    """Log N(z; 0, I) of each row, (batch,)."""
    return -0.5 * (z.square().sum(1) + z.shape[1] * _LOG_2PI)


def kl_from_standard(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) || N(0, I)) of each row, (batch,). Kingma and Welling 2014, appendix B."""
    return 0.5 * (mean.square() + logvar.exp() - logvar - 1).sum(1)


def sample(mean: Tensor, logvar: Tensor, generator: torch.Generator) -> Tensor:
    """One draw of N(mean, exp(logvar)), differentiable in both (Kingma and Welling 2014, section 2.4)."""
    noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
    return mean + torch.exp(0.5 * logvar) * noise

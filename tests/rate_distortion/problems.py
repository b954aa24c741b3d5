"""Decoders whose truth is known, and the two checks that every estimate of Z must pass.

Many seeds at little cost: one image, many times over. Each copy has a pilot, particles and chains of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import logsumexp
from torch import Tensor, nn

from lossy_mlflow.rate_distortion import Distortion, Quadratic
from lossy_mlflow.rate_distortion.distortion import SquaredError
from lossy_mlflow.rate_distortion.network import Network, network_of

# How many standard errors a right estimate may be off. One in 16,000 is further; the seeds are fixed all the same.
SIGMAS = 4.0


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def linear(z_size: int, n_pixels: int, seed: int = 0, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """(W, b) whose singular values differ by a factor of ten."""
    generator = seeded(seed)
    left = torch.linalg.qr(torch.randn(n_pixels, z_size, generator=generator, dtype=torch.float64))[0]
    right = torch.linalg.qr(torch.randn(z_size, z_size, generator=generator, dtype=torch.float64))[0]
    stretch = scale * torch.logspace(-1, 0, z_size, dtype=torch.float64)
    return left * stretch @ right, torch.randn(n_pixels, generator=generator, dtype=torch.float64)


def quadratic(
    z_size: int, n_pixels: int, n_data: int, *, seed: int = 0, noise: float = 0.3, scale: float = 1.0
) -> Quadratic:
    """A linear decoder, and images near what it makes."""
    matrix, bias = linear(z_size, n_pixels, seed, scale)
    generator = seeded(seed + 100)
    z = torch.randn(n_data, z_size, generator=generator, dtype=torch.float64)
    images = z @ matrix.t() + bias
    images = images + noise * torch.randn(images.shape, generator=generator, dtype=torch.float64)
    return Quadratic(matrix, bias, images, torch.ones((), dtype=torch.float64))


def copies(z_size: int, n_pixels: int, n: int, *, seed: int = 0, noise: float = 0.3) -> Quadratic:
    """One image n times."""
    matrix, bias = linear(z_size, n_pixels, seed)
    generator = seeded(seed + 100)
    image = matrix @ torch.randn(z_size, generator=generator, dtype=torch.float64) + bias
    image = image + noise * torch.randn(n_pixels, generator=generator, dtype=torch.float64)
    return Quadratic(matrix, bias, image.expand(n, -1), torch.ones((), dtype=torch.float64))


def through_a_network(network: nn.Module | Network, targets: Tensor, z_size: int) -> SquaredError:
    """Squared error in float64, not by a Quadratic even where it could be."""
    if isinstance(network, nn.Module):
        network = network_of(network.double(), z_size, torch.zeros((), dtype=torch.float64))
    return SquaredError(network, targets, torch.ones(()))


def small_net(z_size: int, n_pixels: int, seed: int = 0, scale: float = 1.0) -> nn.Sequential:
    """tanh, then linear: bent, but not much."""
    net = nn.Sequential(nn.Linear(z_size, 16), nn.Tanh(), nn.Linear(16, n_pixels))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=seeded(seed + parameter.numel())))
            parameter.mul_(scale / math.sqrt(parameter.shape[-1]))
    return net.double()


@dataclass(frozen=True, slots=True)
class Truth:
    """By datum, (n_data,)."""

    log_z: Tensor
    rate: Tensor
    distortion: Tensor


def by_quadrature(distortion: Distortion, beta: float, *, points: int = 601, reach: float = 9.0) -> Truth:
    """Sums over a grid on [-reach, reach]^z_size, for z_size 1 or 2: shares nothing with a sampler but d itself."""
    line = torch.linspace(-reach, reach, points, dtype=torch.float64)
    z = torch.cartesian_prod(*[line] * distortion.z_size).reshape(-1, distortion.z_size)
    d, _ = distortion(z.expand(distortion.n_data, -1, -1))
    log_prior = -0.5 * z.square().sum(1) - 0.5 * distortion.z_size * math.log(2 * math.pi)
    log_f = (log_prior - beta * d).numpy() + distortion.z_size * math.log(2 * reach / (points - 1))
    log_z = torch.from_numpy(np.asarray(logsumexp(log_f, axis=1)))
    weights = torch.exp(torch.from_numpy(log_f) - log_z.unsqueeze(1))
    # KL(q || p), summed up as it is defined, not from the other two.
    rate = (weights * (-beta * d - log_z.unsqueeze(1))).sum(1)
    return Truth(log_z, rate, (weights * d).sum(1))


def assert_unbiased(log_z: Tensor, truth: Tensor, *, at_most: float = 0.2) -> None:
    """The mean over seeds (n,) of Zhat / Z is 1 within its standard error, which must itself be small enough to tell."""
    ratio = torch.exp(log_z - truth)
    se = float(ratio.std() / math.sqrt(len(ratio)))
    assert se < at_most, f"Zhat / Z spreads too much to tell anything: {se:.3g}"
    assert abs(float(ratio.mean()) - 1) < SIGMAS * se + 1e-9, (
        f"Zhat / Z = {float(ratio.mean()):.4f} +- {se:.4f}"
    )


def assert_mean(values: Tensor, truth: Tensor, *, bias: float) -> None:
    """The mean over seeds is the truth, within `SIGMAS` of its standard errors and a `bias` that is argued for."""
    off = values - truth
    se = float(off.std() / math.sqrt(len(off)))
    assert abs(float(off.mean())) < SIGMAS * se + bias, f"off by {float(off.mean()):.4f} +- {se:.4f}"

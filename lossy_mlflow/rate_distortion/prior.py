"""The prior p(z) that a rate is measured against: its density, with constants, its score, its samples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

_LOG_2PI = math.log(2 * math.pi)


class Prior(Protocol):
    """z is (..., z_size), float64."""

    def log_density(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """(log p(z) (...), its gradient (..., z_size)), in nats."""
        ...

    def sample(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draws, of that shape, whose last dimension is z_size, on the generator's device, float64."""
        ...


@dataclass(frozen=True, slots=True)
class StandardNormal:
    """N(0, I)."""

    def log_density(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return -0.5 * (z.square().sum(-1) + z.shape[-1] * _LOG_2PI), -z

    def sample(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        return torch.randn(shape, generator=generator, device=generator.device, dtype=torch.float64)


@dataclass(frozen=True, slots=True)
class MixturePrior:
    """(1 - weight) N(0, I) + weight N(0, bad_std^2 I), one draw of the component for a whole vector.

    Huang et al. 2020, section 5.4. A rate rises by at most -log(1 - weight), since the density is at least (1 - weight) N(0, I).
    """

    weight: float
    bad_std: float

    def log_density(self, z: Tensor) -> tuple[Tensor, Tensor]:
        squares, size = z.square().sum(-1), z.shape[-1]
        good = math.log1p(-self.weight) - 0.5 * squares
        bad = math.log(self.weight) - 0.5 * squares / self.bad_std**2 - size * math.log(self.bad_std)
        total = torch.logaddexp(good, bad)
        # The score is the components' scores, weighted by what they are responsible for.
        pull = torch.exp(good - total) + torch.exp(bad - total) / self.bad_std**2
        return total - 0.5 * size * _LOG_2PI, -pull.unsqueeze(-1) * z

    def sample(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        noise = torch.randn(shape, generator=generator, device=generator.device, dtype=torch.float64)
        coin = torch.rand(shape[:-1], generator=generator, device=generator.device, dtype=torch.float64)
        scale = torch.where(coin < self.weight, self.bad_std, 1.0)
        return noise * scale.unsqueeze(-1)

"""A prior that is a mixture of Gaussians of several widths (Huang et al. 2020, section 5.4): each part has chains of its own.

Z is linear in the prior: Z = sum_k share_k Z_k, where Z_k is under N(0, std_k^2 I), of which the decoder of z = std_k u and
u ~ N(0, I) has the same. Chains of the mixture itself would hardly pass from a wide part, where most of them begin, to a narrow
one, where images are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lossy_mlflow.rate_distortion.curves import Curve
from lossy_mlflow.rate_distortion.distortion import Distortion, Quadratic
from lossy_mlflow.rate_distortion.linear import Exact


class Stretched:
    """d(x, std u) as a function of u. `std`: one for all, (), or one of each datum, (n_data,)."""

    def __init__(self, distortion: Distortion, std: Tensor) -> None:
        self.unstretched = distortion
        self._std = std.to(distortion.device, torch.float64)
        self.n_data, self.z_size = distortion.n_data, distortion.z_size
        self.n_outputs, self.device = distortion.n_outputs, distortion.device

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
        std = self._std.view(-1, 1, 1)
        d, gradient = self.unstretched(std * z)
        return d, std * gradient

    def curvature(self, z: Tensor) -> Tensor:
        std = self._std.view(-1, 1, 1)
        return std.square() * self.unstretched.curvature(std * z)

    def simulated(self, z: Tensor, beta: float, generator: torch.Generator) -> Stretched:
        return Stretched(self.unstretched.simulated(self._std.view(-1, 1) * z, beta, generator), self._std)


def stretched(distortion: Distortion, std: float) -> Distortion:
    """What d is under the prior N(0, std^2 I), as a function of u = z / std."""
    if std == 1:
        return distortion
    if isinstance(distortion, Quadratic):
        return distortion.stretched(std)
    return Stretched(distortion, torch.tensor(std, dtype=torch.float64))


def mixed(curves: Sequence[Curve], shares: Sequence[float]) -> Curve:
    """The curve under the mixture, of those under its parts, on the same data at the same betas. Shares sum up to 1.

    The effective number of chains is that of all parts' together. Standard errors are to first order.
    """
    if len(curves) == 1:
        return curves[0]
    log_z, share = _posterior([curve.log_z for curve in curves], shares)

    def parts(name: str) -> Tensor:
        # A part without any weight may have no finite numbers.
        return torch.where(share > 0, torch.stack([getattr(curve, name) for curve in curves]), 0.0)

    betas = curves[0].beta.unsqueeze(1)
    d = parts("distortion")
    distortion = (share * d).sum(0)
    # A part's log Z moves the mixture's by its share, and its D by that much of how far its own is from it.
    off = share * (d - distortion) * parts("log_z_se")
    kept = torch.exp(-torch.stack([curve.lead for curve in curves]))
    return replace(
        curves[0],
        rate=-log_z - betas * distortion,
        rate_se=torch.hypot(share * parts("rate_se"), betas * off).norm(dim=0),
        distortion=distortion,
        distortion_se=torch.hypot(share * parts("distortion_se"), off).norm(dim=0),
        log_z=log_z,
        log_z_se=(share * parts("log_z_se")).norm(dim=0),
        ess=1 / torch.where(share > 0, share.square() / parts("ess"), 0.0).sum(0),
        lead=-torch.log(1 - share + share * kept).amin(0),
        acceptance=torch.stack([curve.acceptance for curve in curves]).mean(0),
        n_non_finite=torch.stack([curve.n_non_finite for curve in curves]).sum(0),
    )


def mixed_exact(parts: Sequence[Exact], shares: Sequence[float]) -> Exact:
    """`mixed` of closed forms at one beta, by their log Z, rate and distortion alone."""
    log_z, share = _posterior([part.log_z for part in parts], shares)
    # R = -log Z - beta D, with beta D_k = -log Z_k - R_k.
    distortion = (share * torch.stack([part.distortion for part in parts])).sum(0)
    moved = torch.stack([part.log_z for part in parts]) - log_z
    rate = (share * (torch.stack([part.rate for part in parts]) + moved)).sum(0)
    return Exact(rate, distortion, log_z)


def _posterior(log_z: Sequence[Tensor], shares: Sequence[float]) -> tuple[Tensor, Tensor]:
    """(log Z of the mixture, the share of each of its parts in that, (n_parts, ...))."""
    each = torch.stack([part + math.log(share) for part, share in zip(log_z, shares, strict=True)])
    total = torch.logsumexp(each, 0)
    return total, torch.exp(each - total)

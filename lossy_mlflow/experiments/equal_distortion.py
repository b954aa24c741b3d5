"""Two curves at equal distortion: the rate that each needs there, and how well the difference is known. Pure.

The rate at distortion D is the largest of -log Z(beta) - beta D over beta: -log Z is concave in beta, and its slope is D. At that
beta, an error of beta changes nothing to first order. So every image has its share of the rate, -log Z_i(beta) - beta D, of which
the curve's rate is the mean; and the standard error is that of a mean, whatever the slope.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lossy_mlflow.errors import LossyError

Floats = NDArray[np.float64]

# Betas further apart than by this factor leave more than a tenth of a nat between them: a cubic doesn't follow log Z there.
_WIDEST = 3.5


@dataclass(frozen=True, slots=True)
class ByImage:
    """A curve at betas (B,), ascending: log Z and distortion of each image, (B, n), finite.

    `log_z_se` (B,): the standard error of the mean log Z; it counts where there is one image, whose chains alone can tell.
    """

    beta: Floats
    log_z: Floats
    distortion: Floats
    log_z_se: Floats

    def range(self, below: float = math.inf) -> tuple[float, float]:
        """The smallest and the largest mean distortion, of the betas below that one; of all, where those are fewer than two."""
        means = self.distortion.mean(1)
        first = means[self.beta < below]
        means = first if len(first) > 1 else means
        return float(means.min()), float(means.max())


@dataclass(frozen=True, slots=True)
class Shares:
    """At one distortion: the slope of the curve there is -beta, and the rate is the mean of each image's share (n,), in nats."""

    beta: float
    each: Floats
    chains_se: float

    @property
    def rate(self) -> float:
        return float(self.each.mean())

    @property
    def se(self) -> float:
        """The standard error of the rate."""
        return _se(self.each, self.chains_se)


@dataclass(frozen=True, slots=True)
class Difference:
    """The rate of the second curve minus that of the first, in nats, at equal distortion."""

    value: float
    se: float


def by_image(beta: Floats, log_z: Floats, distortion: Floats, log_z_se: Floats) -> ByImage:
    """A curve without the betas at which a number isn't finite. Raises LossyError where too few are left, or too far apart."""
    whole = np.isfinite(log_z).all(1) & np.isfinite(distortion).all(1)
    if whole.sum() < 2:
        raise LossyError(
            f"Of the {len(beta)} betas of a curve {whole.sum()} have finite numbers; two are needed.",
            "Evaluate with more: --set rd.n_betas=100",
        )
    widest = float((beta[whole][1:] / beta[whole][:-1]).max())
    if widest > _WIDEST:
        raise LossyError(
            f"Neighbouring betas of a curve are a factor of {widest:.3g} apart: for a rate in between, {_WIDEST:g} at most.",
            "Evaluate with more: --set rd.n_betas=100",
        )
    return ByImage(beta[whole], log_z[whole], distortion[whole], log_z_se[whole])


def rate_at(curve: ByImage, distortion: float) -> Shares:
    """The shares at a mean distortion within `curve.range()`."""
    # The chains' noise may let it rise a little.
    falling = np.minimum.accumulate(curve.distortion.mean(1))
    logs = np.log(curve.beta)
    log_beta = float(np.interp(-distortion, -falling, logs))
    beta = min(max(math.exp(log_beta), curve.beta[0]), curve.beta[-1])
    se = float(np.interp(log_beta, logs, curve.log_z_se))
    return Shares(beta, -_log_z_at(curve, beta) - beta * distortion, se)


def difference(a: Shares, b: Shares, paired: bool) -> Difference:
    """`paired`: both have the same images, in the same order, so that what makes an image hard for both cancels."""
    value = b.rate - a.rate
    if paired:
        return Difference(value, _se(b.each - a.each, math.hypot(a.chains_se, b.chains_se)))
    return Difference(value, math.hypot(a.se, b.se))


def _se(each: Floats, of_chains: float) -> float:
    return float(each.std(ddof=1) / math.sqrt(len(each))) if len(each) > 1 else of_chains


def _log_z_at(curve: ByImage, beta: float) -> Floats:
    """Of each image between two betas, by the cubic through both values and slopes: -log Z has the slope d at beta.

    A straight line between two points of the curve would lie above it, by a tenth of a nat for z of a hundred dimensions.
    """
    upper = int(np.clip(np.searchsorted(curve.beta, beta), 1, len(curve.beta) - 1))
    lower = upper - 1
    width = float(curve.beta[upper] - curve.beta[lower])
    t = (beta - float(curve.beta[lower])) / width
    slopes = -width * curve.distortion[lower], -width * curve.distortion[upper]
    return np.asarray(
        (1 + 2 * t) * (1 - t) ** 2 * curve.log_z[lower]
        + t * (1 - t) ** 2 * slopes[0]
        + t**2 * (3 - 2 * t) * curve.log_z[upper]
        + t**2 * (t - 1) * slopes[1]
    )

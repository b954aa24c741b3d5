"""A rate-distortion curve: what the chains say of each datum, averaged, with error bars and what casts doubt on it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from lossy_mlflow.rate_distortion.annealing import Annealing, Point, anneal, start
from lossy_mlflow.rate_distortion.distortion import Distortion
from lossy_mlflow.rate_distortion.tuning import Tuning
from lossy_mlflow.rate_distortion.variational import VariationalPoint

LEAST_ESS = 2.0  # below it, an estimate rests on one chain
_DOUBTFUL_SHARE = 0.1  # of the data with so few
_LARGE_LEAD = 1.0  # nats, of the mean over data
_BY_DATUM = [field.name for field in fields(Point) if field.name not in ("beta", "n_non_finite")]


@dataclass(frozen=True, slots=True)
class Curve:
    """At betas (B,), ascending, what `Point` has of each datum, (B, n_data), float64, on the CPU, in nats. n_non_finite (B,)."""

    beta: Tensor
    rate: Tensor
    rate_se: Tensor
    distortion: Tensor
    distortion_se: Tensor
    log_z: Tensor
    log_z_se: Tensor
    ess: Tensor
    lead: Tensor
    acceptance: Tensor
    n_non_finite: Tensor

    def mean(self, name: str) -> Tensor:
        """The mean over data of `rate`, `distortion`, `log_z`, `ess` or `acceptance`, (B,)."""
        values: Tensor = getattr(self, name)
        return values.mean(1)

    def standard_error(self, name: str) -> Tensor:
        """Of the mean of `rate`, `distortion` or `log_z`, (B,): over data, or, where there is one, over its chains."""
        values: Tensor = getattr(self, name)
        if values.shape[1] == 1:
            within: Tensor = getattr(self, f"{name}_se")
            return within[:, 0]
        return values.std(1) / math.sqrt(values.shape[1])

    def doubted_from(self) -> float | None:
        """The first beta at which too many data rest on one chain, or modes are missed; None where there is none."""
        doubtful = (self._lonely() > _DOUBTFUL_SHARE) | (self.lead.mean(1) > _LARGE_LEAD)
        return float(self.beta[doubtful][0]) if bool(doubtful.any()) else None

    def _lonely(self) -> Tensor:
        """The share of the data that rest on one chain, (B,)."""
        return (self.ess < LEAST_ESS).double().mean(1)

    def doubts(self) -> list[str]:
        """What a reader must know before believing the curve; empty where there is nothing.

        Of a mode that no chain of any image has found nothing is known here. A lower bound from elsewhere can tell: an encoder's.
        """
        found = []
        lonely = self._lonely()
        if self.ess.shape[1] and bool((doubtful := lonely > _DOUBTFUL_SHARE).any()):
            first = int(doubtful.nonzero()[0])
            worst = int(lonely.argmax())
            found.append(
                f"not converged from beta {self.beta[first]:.4g} on: up to {lonely[worst]:.0%} of the images rest on fewer than"
                f" {LEAST_ESS:.0f} effective chains; raise anneal_steps or n_chains"
            )
        lead = self.lead.mean(1)
        if bool((large := lead > _LARGE_LEAD).any()):
            first, worst = int(large.nonzero()[0]), int(lead.argmax())
            found.append(
                f"modes are missed from beta {self.beta[first]:.4g} on: without the best chain of each image, log Z falls by"
                f" {lead[worst]:.3g} nats (in one image by {self.lead[worst].max():.3g}); the true curve lies below,"
                " by as much or more; raise n_chains"
            )
        if n := int((~torch.isfinite(self.log_z)).any(0).sum()):
            found.append(
                f"{n} of {self.log_z.shape[1]} images have no finite estimate, so the means have none"
            )
        if n := int(self.n_non_finite.sum()):
            found.append(
                f"{n} proposals were not finite and were rejected: the decoder gives NaN or infinity somewhere"
            )
        return found


def curve(
    distortion: Distortion,
    betas: Sequence[float],
    tuning: Tuning,
    generator: torch.Generator,
    *,
    n_chains: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> Curve:
    """The curve at `betas`, which the tuning's schedule holds, by chains that start from the prior.

    `progress` hears (moves done, of how many). The generator must not be the one that tuned.
    """
    points: list[Point] = []

    def heard(annealing: Annealing) -> None:
        if progress:
            progress(annealing.step, len(tuning.betas) - 1)

    first = start(distortion, n_chains, generator)
    anneal(
        first,
        distortion,
        tuning,
        betas,
        generator,
        on_point=lambda _, point: points.append(point),
        on_step=heard,
    )
    return curve_of(points)


def curve_of(points: Sequence[Point]) -> Curve:
    """The points of one run, in their order, put together."""

    def together(name: str) -> Tensor:
        return torch.stack([getattr(point, name) for point in points]).cpu()

    return Curve(
        beta=torch.tensor([point.beta for point in points], dtype=torch.float64),
        **{name: together(name) for name in _BY_DATUM},
        n_non_finite=torch.tensor([point.n_non_finite for point in points]),
    )


def joined(curves: Sequence[Curve]) -> Curve:
    """Curves of several batches of data at the same betas, as one of all data."""
    return Curve(
        beta=curves[0].beta,
        **{name: torch.cat([getattr(curve, name) for curve in curves], dim=1) for name in _BY_DATUM},
        n_non_finite=torch.stack([curve.n_non_finite for curve in curves]).sum(0),
    )


def as_point(point: VariationalPoint) -> Point:
    """A point of the variational curve, which has no chains: log Z is its bound, -R - beta D; what chains tell is NaN."""
    unknown = torch.full_like(point.rate, math.nan)
    return Point(
        point.beta,
        rate=point.rate,
        rate_se=torch.zeros_like(point.rate),
        distortion=point.distortion,
        distortion_se=point.distortion_se,
        log_z=-point.rate - point.beta * point.distortion,
        log_z_se=point.beta * point.distortion_se,
        ess=unknown,
        lead=unknown,
        acceptance=unknown,
        n_non_finite=0,
    )

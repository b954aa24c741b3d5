"""Compare two decoders by the rate that each needs at equal distortion."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lossy_mlflow.errors import UsageError
from lossy_mlflow.experiments.curve_record import CurveRecord, GapRecord, read_by_datum
from lossy_mlflow.experiments.equal_distortion import ByImage, by_image, difference, rate_at
from lossy_mlflow.experiments.evaluations import Evaluated, latest_evaluations

if TYPE_CHECKING:
    from mlflow import MlflowClient

_POINTS = 5


@dataclass(frozen=True, slots=True)
class Compared:
    """One of the two: its evaluation, the range of its distortions, and what a reader must know of it."""

    label: str
    run_id: str
    reference: str
    n_data: int
    least_distortion: float
    largest_distortion: float
    gap: list[GapRecord]
    doubts: list[str]


@dataclass(frozen=True, slots=True)
class AtDistortion:
    """Rates in nats at one distortion, each with its standard error; `difference`: b's minus a's."""

    distortion: float
    rate_a: float
    rate_a_se: float
    rate_b: float
    rate_b_se: float
    difference: float
    difference_se: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """`paired`: both are of the same images, so that the error is that of each image's difference."""

    target: str
    paired: bool
    a: Compared
    b: Compared
    points: list[AtDistortion]


def compare(a: str, b: str, at: Sequence[float] = (), *, quick: bool = False) -> Comparison:
    """The latest finished evaluations of the labels `a` and `b`, at the distortions `at`; else at five, a constant
    factor apart, that both reach where neither is in doubt.

    `quick`: one that was made with --quick may be it. Raises UsageError where a curve doesn't reach a distortion: nothing is
    extrapolated; else as `latest_evaluations` does.
    """
    from lossy_mlflow.tracking.connection import connect, explained

    with explained():
        connection = connect()
        found = latest_evaluations(connection, [a, b], quick)
        curves = [_by_image(connection.client, evaluated) for evaluated in found]
    ranges = [curve.range() for curve in curves]
    least, largest = _common(ranges)
    whose = " and ".join(
        f"{label} has distortions from {low:.4g} to {high:.4g}"
        for label, (low, high) in zip((a, b), ranges, strict=True)
    )
    if least >= largest:
        raise UsageError(f"{whose}: they share none.", "Evaluate to a larger beta: --set rd.max_beta=VALUE")
    outside = [value for value in at if not least <= value <= largest]
    if outside:
        raise UsageError(
            f"At a distortion of {outside[0]:g} nothing can be said: {whose}.",
            f"Take one from {least:.4g} to {largest:.4g}: --at {(least + largest) / 2:.4g}",
        )
    paired = found[0].has_images_of(found[1])
    at = at or _spread(*_sound(found, curves))
    points = [_compared(curves[0], curves[1], value, paired) for value in at]
    sides = [_side(evaluated, within) for evaluated, within in zip(found, ranges, strict=True)]
    return Comparison(found[0].curve.target, paired, sides[0], sides[1], points)


def _by_image(client: MlflowClient, evaluated: Evaluated) -> ByImage:
    record: CurveRecord = evaluated.curve
    data = read_by_datum(client, evaluated.run_id, record)
    errors = [0.0 if se is None else se for se in record.log_z_se]
    return by_image(np.array(record.beta, np.float64), data["log_z"], data["distortion"], np.array(errors))


def _common(ranges: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return max(low for low, _ in ranges), min(high for _, high in ranges)


def _sound(found: Sequence[Evaluated], curves: Sequence[ByImage]) -> tuple[float, float]:
    """The distortions that both have measured at betas that aren't in doubt; at all betas, where those have none in common."""
    doubted = [evaluated.curve.doubted_from for evaluated in found]
    limits = [math.inf if beta is None else beta for beta in doubted]
    least, largest = _common([curve.range(below) for curve, below in zip(curves, limits, strict=True)])
    return (least, largest) if least < largest else _common([curve.range() for curve in curves])


def _spread(least: float, largest: float) -> list[float]:
    """By equal factors: small distortions are where rates differ. A likelihood's, which may be negative, by equal steps.

    Without the ends: at the one the worse curve is so steep that its rate means little, at the other rates are nothing.
    """
    space = np.geomspace if least > 0 else np.linspace
    return [float(value) for value in space(least, largest, _POINTS + 2)[1:-1]]


def _compared(a: ByImage, b: ByImage, distortion: float, paired: bool) -> AtDistortion:
    one, other = rate_at(a, distortion), rate_at(b, distortion)
    between = difference(one, other, paired)
    return AtDistortion(distortion, one.rate, one.se, other.rate, other.se, between.value, between.se)


def _side(evaluated: Evaluated, within: tuple[float, float]) -> Compared:
    curve = evaluated.curve
    return Compared(
        curve.label,
        evaluated.run_id,
        curve.reference,
        curve.n_data,
        *within,
        gap=curve.gap,
        doubts=curve.cautions(),
    )

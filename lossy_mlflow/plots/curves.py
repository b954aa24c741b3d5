"""Rate-distortion curves as a figure: nats and bits per dimension over distortion, error bands, what the gaps leave open."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BAND = 2.0  # standard errors to either side
_LEAST_RATE = 0.1  # nats: below it a logarithmic axis shows noise alone
_SIZE = 5.0, 3.8  # inches of a panel


@dataclass(frozen=True, slots=True)
class DrawnCurve:
    """A curve in nats, as lists by beta. gaps: (distortion, rate, gap) where there is one. exact: distortion and rate of a linear
    decoder's closed form.
    """

    name: str
    distortion: Sequence[float]
    rate: Sequence[float]
    rate_se: Sequence[float]
    gaps: Sequence[tuple[float, float, float]] = ()
    exact: tuple[Sequence[float], Sequence[float]] | None = None


def rd_figure(
    curves: Sequence[DrawnCurve],
    n_dimensions: int,
    x_label: str,
    *,
    panels: Sequence[str] = ("linear", "log"),
    max_distortion: float | None = None,
) -> Figure:
    """Rate over distortion, one panel for each scale of the rate. `n_dimensions`: of an image, for bits per dimension.

    A band is two standard errors wide to either side; a bar at a point reaches down by its BDMC gap, to where the truth may lie.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_SIZE[0] * len(panels), _SIZE[1]), layout="constrained")
    FigureCanvasAgg(figure)
    for index, scale in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), index + 1)
        for place, curve in enumerate(curves):
            _draw(axes, curve, f"C{place}", max_distortion)
        axes.set_xlabel(x_label)
        axes.set_ylabel("rate (nats)")
        axes.set_xlim(left=0, right=max_distortion)
        if scale == "log":
            axes.set_yscale("log")
            axes.set_ylim(bottom=_LEAST_RATE)
        else:
            axes.set_ylim(bottom=0)
        _add_bits(axes, n_dimensions)
        axes.grid(alpha=0.3, linewidth=0.5)
        if index == 0:
            axes.legend(frameon=False, fontsize="small")
    return figure


def _draw(axes: Axes, curve: DrawnCurve, color: str, max_distortion: float | None) -> None:
    kept = [
        point
        for point in zip(curve.distortion, curve.rate, curve.rate_se, strict=True)
        if max_distortion is None or point[0] <= max_distortion
    ]
    if not kept:
        return
    distortion, rate, error = (list(column) for column in zip(*kept, strict=True))
    axes.plot(distortion, rate, color=color, linewidth=1.2, label=curve.name)
    low = [max(value - _BAND * se, 1e-9) for value, se in zip(rate, error, strict=True)]
    high = [value + _BAND * se for value, se in zip(rate, error, strict=True)]
    axes.fill_between(distortion, low, high, color=color, alpha=0.2, linewidth=0)
    for at, value, gap in curve.gaps:
        if max_distortion is None or at <= max_distortion:
            axes.errorbar(
                [at], [value], yerr=[[min(max(gap, 0.0), value)], [0.0]], color=color, marker="*", capsize=2
            )
    if curve.exact:
        exact = [
            point
            for point in zip(*curve.exact, strict=True)
            if max_distortion is None or point[0] <= max_distortion
        ]
        places, rates = ([point[side] for point in exact] for side in (0, 1))
        axes.plot(places, rates, color=color, linestyle="--", linewidth=0.8, label=f"{curve.name}, exact")


def _add_bits(axes: Axes, n_dimensions: int) -> None:
    bits = math.log(2) * n_dimensions

    def to_bits(nats: Any) -> Any:
        return nats / bits

    def to_nats(value: Any) -> Any:
        return value * bits

    right = axes.secondary_yaxis("right", functions=(to_bits, to_nats))
    right.set_ylabel("bits per dimension")

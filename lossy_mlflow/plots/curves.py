"""Rate-distortion curves as a figure: rate in nats over distortion, with error bands and gaps."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lossy_mlflow.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]

Scale = Literal["linear", "log"]
FORMATS = ("pdf", "png", "svg")
_PANEL_INCHES = (4.2, 3.4)
_DPI = 200
_NOTHING = 1e-9  # nats: what a logarithmic axis takes for none
_LEAST_RATE = 0.1  # nats: on a log axis, what lies below it is noise around nothing
# Okabe and Ito's colours, which colour-blind readers tell apart; the style of the line tells them apart on grey paper.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLES = ("-", (0, (6, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)))
_SETTINGS: dict[Any, Any] = {
    "font.size": 8.0,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "legend.frameon": False,
    # Text stays text, which a reader can search and select; one salt, so that the same curves are the same file.
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "lossy_mlflow",
}


@dataclass(frozen=True, slots=True)
class GapMark:
    """A BDMC gap, nats: at `beta` the true curve lies at most so far below, on average."""

    beta: float
    gap: float
    se: float | None


@dataclass(frozen=True, slots=True)
class PlottedCurve:
    """A curve to draw. Lists are by beta, rates in nats; what is None or not finite is left out.

    `se`: the standard error of the rate at a given distortion, which is that of log Z: where a point moves along its curve, by
    dR = -beta dD, no curve has moved. `exact_rate`, `exact_distortion`: a closed form, or empty.
    """

    name: str
    n_dimensions: int
    beta: Sequence[float]
    rate: Sequence[float | None]
    distortion: Sequence[float | None]
    se: Sequence[float | None]
    gaps: Sequence[GapMark] = ()
    exact_rate: Sequence[float] = ()
    exact_distortion: Sequence[float] = ()


def rd_figure(
    curves: Sequence[PlottedCurve],
    scales: Sequence[Scale] = ("linear", "log"),
    unit: str = "squared error",
    max_distortion: float | None = None,
) -> Figure:
    """A panel for each of `scales` of the rate's axis, with the bits per dimension on the right where all curves have as many.

    Bands are 2 standard errors wide to either side. A gap hangs below its point of the curve, as long as it is; a closed form is
    dashed. `unit`: what distortion is measured in. `max_distortion` cuts the axis there. Raises UsageError where nothing is left
    to draw.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    for curve in curves:
        if not _drawable(curve, max_distortion).any():
            where = "" if max_distortion is None else f" at a distortion of up to {max_distortion:g}"
            raise UsageError(
                f"The curve of {curve.name} has no point{where}.", _largest(curve, max_distortion)
            )
    with rc_context(_SETTINGS):
        width, height = _PANEL_INCHES
        figure = Figure(figsize=(width * len(scales), height), layout="constrained")
        panels = figure.subplots(1, len(scales), squeeze=False)[0]
        for axes, scale in zip(panels, scales, strict=True):
            _panel(axes, curves, scale, unit, max_distortion)
        panels[0].legend()
    return figure


def figure_bytes(figure: Figure, kind: str) -> bytes:
    """The figure as a file of one of FORMATS. The same curves give the same bytes: nothing in them tells the time."""
    from matplotlib import rc_context

    file = io.BytesIO()
    dated = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
    with rc_context(_SETTINGS):
        figure.savefig(file, format=kind, dpi=_DPI, metadata=dated.get(kind))
    return file.getvalue()


def _panel(
    axes: Axes, curves: Sequence[PlottedCurve], scale: Scale, unit: str, max_distortion: float | None
) -> None:
    for index, curve in enumerate(curves):
        colour = _COLOURS[index % len(_COLOURS)]
        _draw(axes, curve, colour, _STYLES[index % len(_STYLES)], scale, max_distortion)
    axes.set_xlabel(f"distortion ({unit})")
    axes.set_ylabel("rate (nats)")
    axes.grid(visible=True, linewidth=0.3, alpha=0.5)
    axes.margins(x=0.02)
    if scale == "log":
        axes.set_yscale("log")
        if axes.get_ylim()[1] > 10 * _LEAST_RATE:
            axes.set_ylim(bottom=_LEAST_RATE)
    else:
        axes.set_ylim(bottom=0)
    if len({curve.n_dimensions for curve in curves}) == 1:
        nats = math.log(2) * curves[0].n_dimensions
        bits = axes.secondary_yaxis("right", functions=(_multiply(1 / nats), _multiply(nats)))
        bits.set_ylabel("bits per dimension")


def _multiply(factor: float) -> Callable[[ArrayLike], NDArray[np.float64]]:
    return lambda values: np.asarray(values, np.float64) * factor


def _draw(
    axes: Axes, curve: PlottedCurve, colour: str, style: object, scale: Scale, max_distortion: float | None
) -> None:
    there = _drawable(curve, max_distortion)
    distortion, rate, se = (_array(values)[there] for values in (curve.distortion, curve.rate, curve.se))
    axes.plot(distortion, rate, color=colour, linestyle=style, label=curve.name)
    outline = _band(_array(curve.beta)[there], distortion, rate, 2 * np.nan_to_num(se), scale)
    axes.fill(*outline, color=colour, alpha=0.2, linewidth=0)
    marks = {gap.beta: gap.gap for gap in curve.gaps if math.isfinite(gap.gap)}
    at = [step for step, beta in enumerate(_array(curve.beta)[there]) if beta in marks]
    gaps = np.array([marks[beta] for beta in _array(curve.beta)[there][at]])
    if len(at):
        # A gap that came out below zero is zero within its error.
        down = np.vstack([np.maximum(gaps, 0), np.zeros(len(gaps))])
        axes.errorbar(
            distortion[at],
            rate[at],
            yerr=down,
            fmt="o",
            color=colour,
            markersize=2.5,
            capsize=2,
            elinewidth=0.8,
        )
    if len(curve.exact_rate):
        exact = _array(curve.exact_distortion), _array(curve.exact_rate)
        within = np.isin(np.arange(len(exact[0])), np.flatnonzero(there))
        axes.plot(
            *(values[within] for values in exact),
            "--",
            color="black",
            linewidth=0.8,
            label=_exact_label(curve),
        )


def _band(
    beta: Floats, distortion: Floats, rate: Floats, error: Floats, scale: Scale
) -> tuple[Floats, Floats]:
    """The outline of what lies within `error` of the curve, (distortions, rates).

    The curve's own slope is -beta: a point that moves by dR + beta dD = error is off the curve by that, whichever way it goes.
    Upwards alone, a band would be hundreds of nats high where the curve is steep; so each goes the way that is shortest on paper.
    """
    width = max(float(np.ptp(distortion)), 1e-12)
    if scale == "linear":
        height = np.full_like(rate, max(float(np.ptp(rate)), 1e-12))
    else:
        # A step of the logarithm is as long wherever it is.
        height = np.maximum(rate, _LEAST_RATE) * math.log(max(float(rate.max()) / _LEAST_RATE, math.e))
    share = error / (height**2 + (beta * width) ** 2)
    across, up = share * beta * width**2, share * height**2
    low = np.maximum(rate - up, _NOTHING)
    return np.append(distortion + across, (distortion - across)[::-1]), np.append(rate + up, low[::-1])


def _exact_label(curve: PlottedCurve) -> str:
    return f"{curve.name}, closed form"


def _drawable(curve: PlottedCurve, max_distortion: float | None) -> NDArray[np.bool_]:
    distortion, rate = _array(curve.distortion), _array(curve.rate)
    there = np.isfinite(distortion) & np.isfinite(rate)
    return there if max_distortion is None else there & (distortion <= max_distortion)


def _largest(curve: PlottedCurve, max_distortion: float | None) -> str:
    if max_distortion is None:
        return "Evaluate again: its numbers aren't finite."
    return f"Its smallest distortion is {np.nanmin(_array(curve.distortion)):.4g}."


def _array(values: Sequence[float | None]) -> NDArray[np.float64]:
    return np.array([math.nan if value is None else value for value in values], np.float64)

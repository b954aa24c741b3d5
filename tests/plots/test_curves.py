"""A figure of curves: what is on it, by its own parts; and that it is a file of its kind."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from lossy_mlflow.errors import UsageError
from lossy_mlflow.plots.curves import GapMark, PlottedCurve, figure_bytes, rd_figure

CURVE = PlottedCurve(
    name="vae",
    n_dimensions=100,
    beta=[1.0, 2.0, 4.0, 8.0],
    rate=[1.0, 2.0, 4.0, 9.0],
    distortion=[40.0, 20.0, 10.0, 5.0],
    se=[0.5, 0.5, 0.5, None],
    gaps=[GapMark(4.0, 0.7, 0.1), GapMark(8.0, math.inf, None)],
)


def test_it_draws_the_curve_its_band_and_its_gaps() -> None:
    figure = rd_figure([CURVE], ("linear",))
    (axes,) = figure.axes
    line = axes.get_lines()[0]
    assert np.array_equal(line.get_xydata(), np.stack([CURVE.distortion, CURVE.rate], 1))
    (container,) = axes.containers
    ((low, high),) = [segment[:, 1] for segment in container[2][0].get_segments()]
    assert (low, high) == pytest.approx(
        (3.3, 4.0)
    )  # the one that is finite, downwards from the point at beta 4
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["vae"]


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_a_band_is_two_errors_wide_and_no_higher_where_the_curve_is_steep(scale: str) -> None:
    beta, se = np.geomspace(0.1, 1e4, 60), 0.5
    # A curve with dR = -beta dD at every beta.
    distortion, rate = 4 + 5 / (1 + beta), 5 * (np.log(1 + beta) - beta / (1 + beta))
    curve = PlottedCurve("steep", 64, beta, rate, distortion, [se * value for value in 1 + beta])
    (axes,) = rd_figure([curve], (scale,)).axes
    (band,) = axes.patches
    corners = band.get_xy()[:120]
    above, below = corners[:60], corners[60:][::-1]
    for side, sign in ((above, 1), (below, -1)):
        across, up = side[:, 0] - distortion, side[:, 1] - rate
        cut = side[:, 1] <= 1e-9  # below nothing there is nothing
        assert (up + beta * across)[~cut] == pytest.approx(sign * 2 * se * (1 + beta)[~cut])
    assert above[:, 1].max() < 2 * rate.max()  # straight upwards it would be 10,000 nats


def test_the_bits_are_on_the_right_where_they_mean_the_same() -> None:
    figure = rd_figure([CURVE], ("linear",))
    figure_bytes(figure, "png")  # the axis on the right follows when it is drawn
    (axes,) = figure.axes
    (right,) = axes.child_axes
    nats, bits = axes.get_ylim()[1], right.get_ylim()[1]
    assert bits == pytest.approx(nats / math.log(2) / 100)
    (axes,) = rd_figure([CURVE, replace(CURVE, name="b", n_dimensions=64)], ("linear",)).axes
    assert axes.child_axes == []


def test_a_closed_form_is_dashed_and_both_panels_have_all() -> None:
    exact = replace(CURVE, exact_rate=[1.0, 2.0, 4.0, 8.0], exact_distortion=[40.0, 20.0, 10.0, 5.0])
    panels = rd_figure([exact, replace(CURVE, name="other")]).axes
    assert [axes.get_yscale() for axes in panels] == ["linear", "log"]
    for axes in panels:
        lines = {line.get_label(): line for line in axes.get_lines() if line.get_label()[0] != "_"}
        assert list(lines) == ["vae", "vae, closed form", "other"]
        assert lines["vae, closed form"].get_linestyle() == "--"


def test_what_is_too_far_or_not_finite_is_left_out() -> None:
    broken = replace(CURVE, rate=[1.0, None, 4.0, math.inf])
    (axes,) = rd_figure([broken], ("linear",), max_distortion=30.0).axes
    assert axes.get_lines()[0].get_xydata().tolist() == [[10.0, 4.0]]
    with pytest.raises(
        UsageError, match=r"no point at a distortion of up to 2(.|\n)*smallest distortion is 5"
    ):
        rd_figure([CURVE], max_distortion=2.0)
    with pytest.raises(UsageError, match="no point"):
        rd_figure([replace(CURVE, rate=[None] * 4)])


@pytest.mark.parametrize(("kind", "start"), [("pdf", b"%PDF"), ("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_the_same_curves_give_the_same_file(kind: str, start: bytes) -> None:
    first, second = (figure_bytes(rd_figure([CURVE], ("linear",)), kind) for _ in range(2))
    assert first == second
    assert first.startswith(start)

"""Lay the rate-distortion curves of several labels side by side: their latest evaluations, from the server, in one figure."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lossy_mlflow.errors import LossyError, UsageError
from lossy_mlflow.experiments.curve_record import UNITS, plotted
from lossy_mlflow.experiments.evaluations import latest_evaluations

DEFAULT_FILE = "curves.png"


@dataclass(frozen=True, slots=True)
class Drawn:
    """A curve of the figure: whose, from which run, of how many images of which digest; what a reader must know of it."""

    label: str
    run_id: str
    reference: str
    n_data: int
    data_digest: str
    quick: bool
    doubts: list[str]


@dataclass(frozen=True, slots=True)
class PlotResult:
    """The figure in `file`, and its curves. `same_images`: all of them are of the same ones."""

    file: str
    target: str
    same_images: bool
    curves: list[Drawn]


def plot(
    labels: Sequence[str],
    file: Path | None = None,
    *,
    log: bool = False,
    max_distortion: float | None = None,
    quick: bool = False,
) -> PlotResult:
    """Draw the latest finished evaluation of each label into `file`: .pdf, .png or .svg, written over; else curves.png.

    `log`: the rate on a logarithmic axis alone. `quick`: one that was made with --quick may be it. Raises UsageError for another
    kind of file and for an axis with nothing on it; else as `latest_evaluations` does.
    """
    from lossy_mlflow.plots.curves import FORMATS, figure_bytes, rd_figure
    from lossy_mlflow.tracking.connection import connect, explained

    file = file or Path(DEFAULT_FILE)
    kind = file.suffix.lower().removeprefix(".")
    if kind not in FORMATS:
        raise UsageError(
            f"{file} says no kind of figure that can be drawn.", f"End it with .{', .'.join(FORMATS)}"
        )
    labels = list(dict.fromkeys(labels))
    with explained():
        found = latest_evaluations(connect(), labels, quick)
    target = found[0].curve.target
    figure = rd_figure(
        [plotted(evaluated.curve) for evaluated in found],
        ("log",) if log else ("linear", "log"),
        UNITS.get(target, target),
        max_distortion,
    )
    _write(file, figure_bytes(figure, kind))
    curves = [
        Drawn(
            evaluated.curve.label,
            evaluated.run_id,
            evaluated.curve.reference,
            evaluated.curve.n_data,
            evaluated.curve.data_digest,
            evaluated.curve.quick,
            evaluated.curve.cautions(),
        )
        for evaluated in found
    ]
    same_images = all(evaluated.has_images_of(found[0]) for evaluated in found)
    return PlotResult(str(file), target, same_images, curves)


def _write(file: Path, content: bytes) -> None:
    # Beside it, so that no half of it ever bears its name.
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        aside.write_bytes(content)
        aside.replace(file)
    except OSError as error:
        raise LossyError(
            f"{file} can't be written: {error.strerror}.", "Name another file: -o FILE"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            aside.unlink()

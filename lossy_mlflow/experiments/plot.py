"""Curves of finished evaluations side by side: one figure, or their difference at equal distortion."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lossy_mlflow.errors import ConflictError, LossyError, NotFoundError, UsageError, did_you_mean

if TYPE_CHECKING:
    import numpy as np
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from numpy.typing import NDArray

    from lossy_mlflow.experiments.evaluation_record import CurveRecord
    from lossy_mlflow.plots import DrawnCurve

    Numbers = NDArray[np.float64]

_ENDINGS = (".png", ".pdf", ".svg")
_UNITS = {
    "mse": "distortion (squared error)",
    "joint": "distortion (nats)",
    "features": "distortion (squared error of features)",
}
_DEFAULT_PLACES = (0.25, 0.5, 0.75)  # of the range of distortion that both curves cover


@dataclass(frozen=True, slots=True)
class Plotted:
    """Where the figure is, and whose curves it shows: label, run, and what casts doubt on it."""

    file: str
    curves: list[PlottedCurve]


@dataclass(frozen=True, slots=True)
class PlottedCurve:
    label: str
    run_id: str
    doubts: list[str]


@dataclass(frozen=True, slots=True)
class Difference:
    """At `distortion`: the rates of the two in nats, B's minus A's, and the standard error of that."""

    distortion: float
    rate_a: float
    rate_b: float
    difference: float
    se: float | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two evaluations. `paired`: they are of the same images, so that what images differ by is out of the error."""

    a: str
    b: str
    run_a: str
    run_b: str
    paired: bool
    at: list[Difference]


def plot(
    names: Sequence[str],
    output: str,
    *,
    log_rate: bool = False,
    max_distortion: float | None = None,
    quick: bool = False,
) -> Plotted:
    """Draw the latest finished evaluation of each label into the file `output` (PNG, PDF or SVG, by its ending).

    `log_rate`: the rate on a logarithmic axis alone. `quick`: those made with --quick count as well. Raises NotFoundError where a
    label has none, ConflictError where they measure different distortions, UsageError for a file that can't be written.
    """
    from lossy_mlflow.plots import rd_figure

    file = Path(output)
    if file.suffix.lower() not in _ENDINGS:
        raise UsageError(f"{output} doesn't end in {', '.join(_ENDINGS)}.", "-o curves.pdf")
    if not file.parent.is_dir():
        raise UsageError(
            f"There is no folder {file.parent} for {file.name}.", f"mkdir -p {shlex.quote(str(file.parent))}"
        )
    found = _latest(names, quick)
    records = [record for _, record in found]
    _refuse_mixed(records)
    figure = rd_figure(
        [drawn(record) for record in records],
        records[0].n_dimensions,
        _UNITS[records[0].target],
        panels=["log"] if log_rate else ["linear", "log"],
        max_distortion=max_distortion,
    )
    try:
        figure.savefig(file, dpi=160)
    except OSError as error:
        raise LossyError(f"The figure can't be written to {file}: {error.strerror or error}.") from error
    curves = [PlottedCurve(record.label, run.info.run_id, record.doubts) for run, record in found]
    return Plotted(str(file), curves)


def drawn(record: CurveRecord) -> DrawnCurve:
    """The curve of a record as a figure takes it; points that can't be known are left out."""
    from lossy_mlflow.plots import DrawnCurve

    points = [
        (distortion, rate, se or 0.0)
        for distortion, rate, se in zip(record.distortion, record.rate, record.rate_se, strict=True)
        if distortion is not None and rate is not None
    ]
    index = {beta: step for step, beta in enumerate(record.beta)}
    gaps = []
    for gap in record.gap:
        at, rate = record.distortion[index[gap.beta]], record.rate[index[gap.beta]]
        if at is not None and rate is not None:
            gaps.append((at, rate, gap.gap))
    exact = record.closed_form
    return DrawnCurve(
        record.label,
        distortion=[distortion for distortion, _, _ in points],
        rate=[rate for _, rate, _ in points],
        rate_se=[se for _, _, se in points],
        gaps=gaps,
        exact=(exact.distortion, exact.rate) if exact else None,
    )


def compare(a: str, b: str, at: Sequence[float] = (), *, quick: bool = False) -> Comparison:
    """The difference in rate of two labels' latest evaluations at equal distortion, B's minus A's.

    `at`: the distortions; without any, three within both ranges. Raises as `plot` does, and UsageError for a distortion that one
    of them doesn't reach.
    """
    (run_a, record_a), (run_b, record_b) = _latest([a, b], quick)
    _refuse_mixed([record_a, record_b])
    images_a, images_b = _by_image(run_a), _by_image(run_b)
    low = max(min(images_a.mean_distortion), min(images_b.mean_distortion))
    high = min(max(images_a.mean_distortion), max(images_b.mean_distortion))
    for place in at:
        if not low <= place <= high:
            raise UsageError(
                f"At distortion {place:g} the two can't be compared: both have curves from {low:.4g} to {high:.4g} only.",
                f"Take one between: --at {(low + high) / 2:.3g}",
            )
    if low >= high:
        raise UsageError(
            f"The curves of {a} and {b} share no distortion: one ends at {high:.4g}, one begins at {low:.4g}."
        )
    paired = record_a.data_digest == record_b.data_digest
    places = list(at) or [low + share * (high - low) for share in _DEFAULT_PLACES]
    differences = [_difference(images_a.at(place), images_b.at(place), place, paired) for place in places]
    return Comparison(
        record_a.label, record_b.label, run_a.info.run_id, run_b.info.run_id, paired, differences
    )


def _difference(a: Numbers, b: Numbers, place: float, paired: bool) -> Difference:
    """`a` and `b`: what each image adds to the rate at that distortion, (n_images,)."""

    def squared_error(values: Numbers) -> float:
        return float(values.var(ddof=1)) / len(values) if len(values) > 1 else math.nan

    squared = squared_error(b - a) if paired else squared_error(a) + squared_error(b)
    se = math.sqrt(squared) if math.isfinite(squared) else None
    rate_a, rate_b = float(a.mean()), float(b.mean())
    return Difference(place, rate_a, rate_b, rate_b - rate_a, se)


@dataclass(frozen=True, slots=True)
class _Images:
    """Rate and distortion of every image at every beta, (n_betas, n_images)."""

    beta: Numbers
    rate: Numbers
    distortion: Numbers

    @property
    def mean_distortion(self) -> Numbers:
        means: Numbers = self.distortion.mean(1)
        return means

    def at(self, distortion: float) -> Numbers:
        """What each image adds to the rate of the curve at that distortion, (n_images,).

        At the beta where the mean distortion is that, between two measured ones linearly in log beta. R_i + beta (D_i - D): along
        the curve dR = -beta dD, so that an image whose own distortion is off by little counts as if it weren't.
        """
        import numpy as np

        means = self.mean_distortion
        # From the largest beta on, the distortion rises but for noise.
        order = np.argsort(means)
        log_beta = float(np.interp(distortion, means[order], np.log(self.beta)[order]))
        places = np.log(self.beta)
        right = int(np.clip(np.searchsorted(places, log_beta), 1, len(places) - 1))
        share = (log_beta - places[right - 1]) / (places[right] - places[right - 1])

        def between(values: Numbers) -> Numbers:
            mixed: Numbers = values[right - 1] + share * (values[right] - values[right - 1])
            return mixed

        return between(self.rate) + math.exp(log_beta) * (between(self.distortion) - distortion)


def _by_image(run: Run) -> _Images:
    import numpy as np

    from lossy_mlflow.experiments.evaluation_record import read_by_image, read_record
    from lossy_mlflow.tracking.connection import connect

    client = connect().client
    record = read_record(client, run.info.run_id)
    tensors = read_by_image(client, run.info.run_id)
    return _Images(np.array(record.beta), tensors["rate"], tensors["distortion"])


def _latest(names: Sequence[str], quick: bool) -> list[tuple[Run, CurveRecord]]:
    from lossy_mlflow.experiments.evaluation_record import read_record
    from lossy_mlflow.tracking.connection import connect, explained

    with explained():
        client = connect().client
        runs = [_latest_run(client, name, quick) for name in names]
        return [(run, read_record(client, run.info.run_id)) for run in runs]


def _latest_run(client: MlflowClient, label: str, quick: bool) -> Run:
    from lossy_mlflow.tracking.runs import runs_of_label, search_all_runs

    finished = [run for run in runs_of_label(client, label, "evaluate") if run.info.status == "FINISHED"]
    whole = [run for run in finished if quick or run.data.tags.get("quick") != "true"]
    if whole:
        return whole[0]
    if finished:
        raise NotFoundError(
            f"{label} has evaluations made with --quick only ({len(finished)}).",
            f"Take them: --quick    or evaluate it whole: lossy evaluate {shlex.quote(label)}",
        )
    labels = {run.data.tags.get("label", "") for run in search_all_runs(client, "tags.kind = 'evaluate'")} - {
        ""
    }
    near = did_you_mean(label, labels) or (
        f"evaluated are {', '.join(sorted(labels)[:8])}." if labels else "nothing is yet."
    )
    raise NotFoundError(
        f"There is no finished evaluation of {label!r}; {near}",
        f"Evaluate it: lossy evaluate {shlex.quote(label)}",
    )


def _refuse_mixed(records: Sequence[CurveRecord]) -> None:
    first = records[0]
    for other in records[1:]:
        if other.target != first.target:
            raise ConflictError(
                f"{first.label} measures {first.target}, {other.label} {other.target}: their distortions can't be laid together.",
                f"Evaluate one as the other: lossy evaluate {shlex.quote(other.label)} --set rd.target={first.target}",
            )

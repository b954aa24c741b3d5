"""What an evaluation leaves in its run: the curve as JSON and tensors, metrics by beta, a table, the pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import torch
from mlflow import MlflowClient
from mlflow.entities import Metric
from torch import Tensor

from lossy_mlflow.errors import UsageError
from lossy_mlflow.experiments.curve_record import (
    BY_BETA,
    BY_DATUM,
    CURVE_FILE,
    DATA_FILE,
    UNITS,
    ClosedForm,
    CurveRecord,
    GapRecord,
    plotted,
)
from lossy_mlflow.models import decode, tensor_of
from lossy_mlflow.plots import image_grid
from lossy_mlflow.plots.curves import figure_bytes, rd_figure
from lossy_mlflow.rate_distortion import Curve, Distortion, Gap, Quadratic, closed_form, mixed_exact
from lossy_mlflow.tracking.metrics import METRICS_A_BATCH
from lossy_mlflow.tracking.provenance import log_bytes, log_text

_TABLE_FILE = "rd_table.txt"
_FIGURE_FILE = "rd_curve.png"


def curve_lists(curve: Curve) -> dict[str, list[float | None]]:
    """The lists of a record: means over the data, and their standard errors."""
    lists = {name: numbers(curve.mean(name)) for name in (*BY_DATUM, "acceptance")}
    errors = {f"{name}_se": numbers(curve.standard_error(name)) for name in ("rate", "distortion", "log_z")}
    return lists | errors


def gap_records(gaps: Sequence[Gap]) -> list[GapRecord]:
    return [GapRecord(gap.beta, gap.mean, gap.se) for gap in gaps]


def exact_curve(
    distortions: Sequence[Sequence[Distortion]], shares: Sequence[float], betas: Sequence[float]
) -> ClosedForm | None:
    """Of the images of all batches, each under the parts of a prior with such shares; None where the decoder isn't linear."""
    quadratic = [[part for part in parts if isinstance(part, Quadratic)] for parts in distortions]
    if any(len(parts) < len(shares) for parts in quadratic):
        return None
    found: dict[str, list[float]] = {"rate": [], "distortion": [], "log_z": []}
    for beta in betas:
        batches = [mixed_exact([closed_form(part, beta) for part in parts], shares) for parts in quadratic]
        for name, values in found.items():
            values.append(float(torch.cat([getattr(batch, name) for batch in batches]).mean()))
    return ClosedForm(**found)


def numbers(values: Tensor) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values.tolist()]


def log_record(client: MlflowClient, run_id: str, record: CurveRecord, curve: Curve) -> None:
    """The files and the metrics. Safe to repeat: metrics have the run's own time, and so are the same points."""
    from safetensors.torch import save

    log_text(client, run_id, json.dumps(asdict(record), indent=1) + "\n", CURVE_FILE)
    log_text(client, run_id, table(record), _TABLE_FILE)
    _log_figure(client, run_id, record)
    by_datum = {name: getattr(curve, name).contiguous() for name in BY_DATUM}
    log_bytes(client, run_id, save(by_datum), DATA_FILE)
    at = client.get_run(run_id).info.start_time
    metrics = [
        Metric(name, value, at, step)
        for step in range(len(record.beta))
        for name in BY_BETA
        if (value := getattr(record, name)[step]) is not None
    ]
    index = {beta: step for step, beta in enumerate(record.beta)}
    for gap in record.gap:
        metrics.append(Metric("bdmc_gap", gap.gap, at, index[gap.beta]))
        if gap.se is not None:
            metrics.append(Metric("bdmc_gap_se", gap.se, at, index[gap.beta]))
    metrics += [
        Metric(name, value, at, 0) for name, value in record.log_likelihood.items() if value is not None
    ]
    for first in range(0, len(metrics), METRICS_A_BATCH):
        client.log_batch(run_id, metrics=metrics[first : first + METRICS_A_BATCH])


def _log_figure(client: MlflowClient, run_id: str, record: CurveRecord) -> None:
    try:
        figure = rd_figure([plotted(record)], unit=UNITS[record.target])
    except UsageError:  # nothing finite is left to draw, as the record says itself
        return
    log_bytes(client, run_id, figure_bytes(figure, "png"), _FIGURE_FILE)


def table(record: CurveRecord) -> str:
    """The curve in columns, for people."""
    gaps = {gap.beta: gap for gap in record.gap}
    head = ["beta", "rate", "+-", "distortion", "+-", "bits/dim", "ess", "gap", "+-"]
    rows = [head]
    for step, beta in enumerate(record.beta):
        rate, gap = record.rate[step], gaps.get(beta)
        rows.append(
            [
                f"{beta:.4g}",
                _shown(rate, 3),
                _shown(record.rate_se[step], 3),
                _shown(record.distortion[step], 4),
                _shown(record.distortion_se[step], 4),
                _shown(None if rate is None else rate / math.log(2) / record.n_dimensions, 4),
                _shown(record.ess[step], 1),
                _shown(gap.gap, 3) if gap else "",
                _shown(gap.se, 3) if gap else "",
            ]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    return "\n".join([*lines, "", *record.doubts]).rstrip() + "\n"


def _shown(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


@torch.no_grad()
def log_reconstructions(
    client: MlflowClient,
    run_id: str,
    decoder: torch.nn.Module,
    images: Tensor,
    drawn: Mapping[int, Tensor],
    input_dims: Sequence[int],
) -> None:
    """A picture: `images` in the first row, below them what their heaviest chains decode to, the smallest beta first."""
    if not drawn or len(input_dims) != 3 or input_dims[0] not in (1, 3):
        return
    like = tensor_of(decoder)
    rows = [images.cpu()]
    for index in sorted(drawn):
        means, _ = decode(decoder, drawn[index].to(like))
        rows.append(means.cpu())
    grid = image_grid(torch.cat(rows), input_dims, columns=len(images))
    client.log_image(run_id, grid, artifact_file="reconstructions.png")

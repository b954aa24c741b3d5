"""A rate-distortion curve as a run keeps it: what its two files hold, and how they are read back. Needs no torch."""

from __future__ import annotations

import json
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lossy_mlflow.errors import LossyError
from lossy_mlflow.plots.curves import GapMark, PlottedCurve

if TYPE_CHECKING:
    from mlflow import MlflowClient

CURVE_FILE = "rd_curve.json"
DATA_FILE = "rd_data.safetensors"
# What each target measures distortion in.
UNITS = {"mse": "squared error", "joint": "nats", "features": "squared error of features"}
# What CurveRecord has by beta, and what DATA_FILE has by beta and image.
BY_BETA = (
    "beta",
    "rate",
    "rate_se",
    "distortion",
    "distortion_se",
    "log_z",
    "log_z_se",
    "ess",
    "acceptance",
)
BY_DATUM = ("rate", "distortion", "log_z", "ess")
# What is in them is no program, and nobody's fault but a disk's or an editor's: the numbers can be had again.
_AGAIN = "Evaluate again: delete the run, then lossy evaluate NAME"


@dataclass(frozen=True, slots=True)
class GapRecord:
    """Upper minus lower bound on log Z at `beta`, in nats. `se` is None of one datum."""

    beta: float
    gap: float
    se: float | None


@dataclass(frozen=True, slots=True)
class ClosedForm:
    """The exact curve of a linear decoder at the same betas, in nats."""

    rate: list[float]
    distortion: list[float]
    log_z: list[float]


@dataclass(frozen=True, slots=True)
class CurveRecord:
    """A curve as `rd_curve.json` has it. Lists are by beta; None in them is what can't be known, as an error of one chain.

    `doubted_from`: the first beta that `doubts` cast doubt on. Files that were written before it came have none.
    rate, log_z in nats; distortion in the target's units (squared error of pixels in [0, 1], nats, squared error of features).
    """

    label: str
    reference: str
    weights_sha256: str
    data_digest: str
    target: str
    estimator: str
    n_data: int
    n_chains: int
    n_dimensions: int
    z_size: int
    quick: bool
    beta: list[float]
    rate: list[float | None]
    rate_se: list[float | None]
    distortion: list[float | None]
    distortion_se: list[float | None]
    log_z: list[float | None]
    log_z_se: list[float | None]
    ess: list[float | None]
    acceptance: list[float | None]
    gap: list[GapRecord]
    closed_form: ClosedForm | None
    log_likelihood: dict[str, float | None]
    doubts: list[str]
    doubted_from: float | None = None

    def cautions(self) -> list[str]:
        """What whoever lays it beside others must know."""
        by_encoders = "by encoders: it lies above the curve by chains, and its points needn't be convex"
        return [*([by_encoders] if self.estimator == "variational" else []), *self.doubts]


def measured_by(estimator: str, n_chains: int) -> str:
    """What has measured a curve, in words."""
    return "by encoders" if estimator == "variational" else f"{n_chains} chains"


def read_record(client: MlflowClient, run_id: str) -> CurveRecord:
    """The record of a finished evaluation. Raises LossyError where its file is gone, or isn't one."""
    content = _content(client, run_id, CURVE_FILE)
    try:
        found = json.loads(content)
        exact = found.pop("closed_form")
        gaps = [GapRecord(**gap) for gap in found.pop("gap")]
        record = CurveRecord(gap=gaps, closed_form=exact and ClosedForm(**exact), **found)
        flaw = _flaw(record)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _damaged(run_id, CURVE_FILE) from error
    if flaw:
        raise _damaged(run_id, CURVE_FILE, flaw)
    return record


def read_by_datum(client: MlflowClient, run_id: str, record: CurveRecord) -> dict[str, NDArray[np.float64]]:
    """What BY_DATUM names, (betas, images) each, of the evaluation with that record. Raises LossyError as `read_record` does."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    content = _content(client, run_id, DATA_FILE)
    try:
        found = load(content)
    except (SafetensorError, ValueError, TypeError, KeyError) as error:
        raise _damaged(run_id, DATA_FILE) from error
    shape = (len(record.beta), record.n_data)
    for name in BY_DATUM:
        if name not in found:
            raise _damaged(run_id, DATA_FILE, f"it has no {name}")
        if found[name].shape != shape or found[name].dtype != np.float64:
            raise _damaged(run_id, DATA_FILE, f"its {name} has shape {found[name].shape}, not {shape}")
    return {name: found[name] for name in BY_DATUM}


def plotted(record: CurveRecord) -> PlottedCurve:
    """A record as the figure takes it."""
    exact = record.closed_form
    return PlottedCurve(
        name=record.label,
        n_dimensions=record.n_dimensions,
        beta=record.beta,
        rate=record.rate,
        distortion=record.distortion,
        se=record.log_z_se,
        gaps=[GapMark(gap.beta, gap.gap, gap.se) for gap in record.gap],
        exact_rate=exact.rate if exact else (),
        exact_distortion=exact.distortion if exact else (),
    )


def _content(client: MlflowClient, run_id: str, name: str) -> bytes:
    from lossy_mlflow.tracking.runs import artifacts_of, paths_in

    artifacts = artifacts_of(client, run_id)
    if name not in paths_in(artifacts):
        raise LossyError(f"The run {run_id} has no {name}: it is gone, or waits in an outbox still.")
    with tempfile.TemporaryDirectory() as folder:
        return Path(artifacts.download_artifacts(name, folder)).read_bytes()


def _flaw(record: CurveRecord) -> str:
    """What no evaluation writes; '' where there is nothing of the kind."""
    exact = record.closed_form
    numbers = {name: getattr(record, name) for name in BY_BETA}
    if exact:
        numbers |= {f"closed_form.{name}": getattr(exact, name) for name in ("rate", "distortion", "log_z")}
    for name, values in numbers.items():
        if len(values) != len(record.beta):
            return "its lists differ in length"
        known = [value for value in values if value is not None or name == "beta"]
        if not all(_is_number(value) for value in known):
            return f"its {name} has what is no number"
    for gap in record.gap:
        # A chain that goes astray can make one infinite, which is worth reading.
        if not (_is_number(gap.beta) and type(gap.gap) is float and type(gap.se) in (float, type(None))):
            return "its gap has what is no number"
    if record.doubted_from is not None and not _is_number(record.doubted_from):
        return "its doubted_from is no number"
    for name in ("label", "reference", "data_digest", "target"):
        if not isinstance(getattr(record, name), str):
            return f"its {name} is no text"
    for name in ("n_data", "n_dimensions"):
        value = getattr(record, name)
        if type(value) is not int or value < 1:
            return f"its {name} is no whole number above 0"
    if not all(isinstance(doubt, str) for doubt in record.doubts):
        return "its doubts are no texts"
    if not record.beta or any(a >= b for a, b in zip(record.beta, record.beta[1:], strict=False)):
        return "its betas don't rise"
    return ""


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def _damaged(run_id: str, name: str, why: str = "") -> LossyError:
    return LossyError(f"The {name} of the run {run_id} is damaged{': ' if why else ''}{why}.", _AGAIN)

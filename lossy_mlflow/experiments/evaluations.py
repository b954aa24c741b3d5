"""Finished evaluations by the label that they are of, from the server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lossy_mlflow.errors import ConflictError, NotFoundError, nearest
from lossy_mlflow.experiments.curve_record import CurveRecord, read_record

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

# Of labels that have one, those that an error names.
_SHOWN = 6


@dataclass(frozen=True, slots=True)
class Evaluated:
    """A finished evaluation: its run, and the curve that it holds."""

    run_id: str
    curve: CurveRecord


def latest_evaluations(client: MlflowClient, labels: Sequence[str], quick: bool) -> list[Evaluated]:
    """The latest finished evaluation of each label; one that was made with --quick only where `quick` allows it.

    Raises NotFoundError where a label has none, ConflictError where their distortions are not of one kind, LossyError for a file
    that is gone or damaged.
    """
    runs = [_latest(client, label, quick) for label in labels]
    found = [Evaluated(run.info.run_id, read_record(client, run.info.run_id)) for run in runs]
    first = found[0].curve
    for label, other in zip(labels, found, strict=True):
        if other.curve.target != first.target:
            raise ConflictError(
                f"The latest evaluation of {labels[0]} has the distortion {first.target}, that of {label} {other.curve.target}: "
                "they can't be laid side by side.",
                f"Evaluate one by the other's: lossy evaluate {label} --set rd.target={first.target}",
            )
    return found


def _latest(client: MlflowClient, label: str, quick: bool) -> Run:
    from lossy_mlflow.tracking.runs import runs_of_label

    finished = [run for run in runs_of_label(client, label, "evaluate") if run.info.status == "FINISHED"]
    allowed = finished if quick else [run for run in finished if not _is_quick(run)]
    if allowed:
        return allowed[0]
    if finished:
        raise NotFoundError(
            f"{label} has been evaluated with --quick alone.",
            f"Evaluate it: lossy evaluate {label}    or take that one: --quick",
        )
    there = _evaluated_labels(client, quick)
    near = [*nearest(label, there), *(other for other in there if other not in nearest(label, there))]
    more = f", and {len(near) - _SHOWN} more" if len(near) > _SHOWN else ""
    others = f"evaluated are {', '.join(near[:_SHOWN])}{more}" if near else "nothing is evaluated there yet"
    raise NotFoundError(
        f"{label} has no finished evaluation; {others}.", f"Evaluate it: lossy evaluate {label}"
    )


def _evaluated_labels(client: MlflowClient, quick: bool) -> list[str]:
    from lossy_mlflow.tracking.runs import search_all_runs

    runs = search_all_runs(client, "tags.kind = 'evaluate' and attributes.status = 'FINISHED'")
    return sorted({run.data.tags.get("label", "") for run in runs if quick or not _is_quick(run)} - {""})


def _is_quick(run: Run) -> bool:
    return bool(run.data.tags.get("quick") == "true")

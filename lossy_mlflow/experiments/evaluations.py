"""Finished evaluations by the label that they are of, from the server."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lossy_mlflow.errors import ConflictError, NotFoundError, nearest
from lossy_mlflow.experiments.curve_record import CurveRecord, read_record

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

    from lossy_mlflow.tracking.connection import Connection

# Of labels that have one, those that an error names.
_SHOWN = 6


@dataclass(frozen=True, slots=True)
class Evaluated:
    """A finished evaluation: its run, and the curve that it holds.

    `feature_map`: the version whose features its distortion is of, or ''. `simulated`: its images are drawn from its own decoder;
    their digest is of what they are drawn by, which another's may share.
    """

    run_id: str
    curve: CurveRecord
    feature_map: str
    simulated: bool

    @property
    def measure(self) -> str:
        """What its distortion is, in words."""
        features = f" of {self.feature_map}" if self.feature_map else ""
        return f"{self.curve.target}{features} over {self.curve.n_dimensions} dimensions"

    def has_images_of(self, other: Evaluated) -> bool:
        """Whether both are of the same images, in the same order."""
        same = self.curve.data_digest == other.curve.data_digest and not self.simulated
        return same or self.run_id == other.run_id


def latest_evaluations(connection: Connection, labels: Sequence[str], quick: bool) -> list[Evaluated]:
    """The latest finished evaluation of each label by a distortion that all of them have; one that was made with --quick only
    where `quick` allows it.

    Raises NotFoundError where a label has none, ConflictError where their distortions are not of one kind, LossyError for a file
    that is gone or damaged.
    """
    finished = [_finished(connection, label, quick) for label in labels]
    of_all = set.intersection(*({_kind(run) for run in runs} for runs in finished))
    # Where they have none in common, the latest ones tell what is at odds.
    kind = next((_kind(run) for run in finished[0] if _kind(run) in of_all), None)
    latest = [next(run for run in runs if kind in (None, _kind(run))) for runs in finished]
    found = [_evaluated(connection.client, run) for run in latest]
    first = found[0]
    for label, other in zip(labels, found, strict=True):
        if other.measure != first.measure:
            raise ConflictError(
                f"The latest evaluation of {labels[0]} has the distortion {first.measure}, that of {label} {other.measure}: "
                "they can't be laid side by side.",
                _cure(first, other, label),
            )
    return found


def _kind(run: Run) -> tuple[str, str]:
    return run.data.tags.get("target", ""), run.data.tags.get("feature_map", "")


def _evaluated(client: MlflowClient, run: Run) -> Evaluated:
    return Evaluated(
        run.info.run_id,
        read_record(client, run.info.run_id),
        run.data.tags.get("feature_map", ""),
        run.data.params.get("rd.data") == "simulate",
    )


def _cure(first: Evaluated, other: Evaluated, label: str) -> str:
    if (other.curve.target, other.feature_map) == (first.curve.target, first.feature_map):
        return "Their images differ in size: take decoders of one data set."
    features = f" --set rd.feature_map={first.feature_map}" if first.feature_map else ""
    quick = " --quick" if other.curve.quick else ""
    return (
        f"Evaluate one by the other's: lossy evaluate {label}{quick} --set rd.target={first.curve.target}{features}"
        f" --set rd.max_beta={first.curve.beta[-1]:g}"
    )


def finished_evaluations(client: MlflowClient, label: str, quick: bool) -> list[Run]:
    """The runs that have evaluated it, the latest first; those that were made with --quick only where `quick` allows it."""
    from lossy_mlflow.tracking.runs import runs_of_label

    finished = [run for run in runs_of_label(client, label, "evaluate") if run.info.status == "FINISHED"]
    return [run for run in finished if quick or not _is_quick(run)]


def _finished(connection: Connection, label: str, quick: bool) -> list[Run]:
    if allowed := finished_evaluations(connection.client, label, quick):
        return allowed
    error = none_finished(connection, label, quick)
    if finished_evaluations(connection.client, label, quick=True):
        error = NotFoundError(error.what, f"{error.hint}    or take the one made with --quick: --quick")
    raise error


def none_finished(connection: Connection, label: str, quick: bool) -> NotFoundError:
    """That the label has no finished evaluation (but, unless `quick`, one made with --quick): what it has, and what leads on."""
    from lossy_mlflow.tracking.runs import runs_of_label

    client = connection.client
    runs = runs_of_label(client, label, "evaluate")
    if under_way := [run for run in runs if run.info.status != "FINISHED" and (quick or not _is_quick(run))]:
        return _unfinished(connection, label, under_way[0])
    anew = f"Evaluate it: lossy evaluate {label}"
    if any(run.info.status == "FINISHED" for run in runs):
        return NotFoundError(f"{label} has been evaluated with --quick alone.", anew)
    if runs:
        return _unfinished(connection, label, runs[0])
    there = _evaluated_labels(client, quick)
    first = nearest(label, there)
    if first:
        anew += f"    or did you mean {first[0]}?"
    near = [*first, *(other for other in there if other not in first)]
    more = f", and {len(near) - _SHOWN} more" if len(near) > _SHOWN else ""
    if near:
        others = f"evaluated are {', '.join(near[:_SHOWN])}{more}"
    else:
        with_quick = not quick and _evaluated_labels(client, quick=True)
        others = f"nothing is evaluated there {'but with --quick' if with_quick else 'yet'}"
    return NotFoundError(f"{label} has no finished evaluation; {others}.", anew)


def _unfinished(connection: Connection, label: str, run: Run) -> NotFoundError:
    from lossy_mlflow.experiments.evaluation_subject import command_of
    from lossy_mlflow.tracking.identity import OPEN_STATES
    from lossy_mlflow.tracking.runs import known_run

    known = known_run(run)
    begun = datetime.datetime.fromtimestamp(run.info.start_time / 1000, datetime.UTC)
    state = f"one is {known.status}, begun {begun:%Y-%m-%d %H:%M} UTC on {known.host or 'an unknown host'}"
    if reason := run.data.tags.get("state_reason", "").rstrip("."):
        state += f": {reason}"
    command = command_of(connection.client, run)
    if known.lives(connection.now()):
        hint = f"Wait for it; if it dies, go on with it: {command}"
    else:
        state += ", and gives no sign of life" if known.status in OPEN_STATES else ""
        hint = f"Go on with it: {command}"
    return NotFoundError(f"{label} has no finished evaluation; {state}.", hint)


def _evaluated_labels(client: MlflowClient, quick: bool) -> list[str]:
    from lossy_mlflow.tracking.runs import search_all_runs

    runs = search_all_runs(client, "tags.kind = 'evaluate' and attributes.status = 'FINISHED'")
    return sorted({run.data.tags.get("label", "") for run in runs if quick or not _is_quick(run)} - {""})


def _is_quick(run: Run) -> bool:
    return bool(run.data.tags.get("quick") == "true")

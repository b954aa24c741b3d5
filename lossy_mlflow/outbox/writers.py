"""Who writes a run: whether one of its writers lives, and the end of a run whose writer has died."""

from __future__ import annotations

from lossy_mlflow.outbox.fences import destination
from lossy_mlflow.outbox.folder import RunFolder
from lossy_mlflow.outbox.journal import now_ms
from lossy_mlflow.outbox.owner import DIED, Owner, read_owner, this_process
from lossy_mlflow.outbox.records import Record, fold


def is_being_written(run: RunFolder) -> bool:
    """Whether another process of this machine has the run open, or is creating it at this moment."""
    owners = [segment.owner for segment in run.segments()] or [_creator(run)]
    return any(_lives_elsewhere(owner) for owner in owners)


def _creator(run: RunFolder) -> Owner | None:
    return read_owner(str(run.definition().get("owner", "")))


def _lives_elsewhere(owner: Owner | None) -> bool:
    """In another process, that is, than this one: a sender writes a record itself where it closes a dead program's run."""
    return owner is not None and owner != this_process() and owner.lives() is True


def owner_that_died(run: RunFolder, uri: str) -> str:
    """The process in whose hands the run says RUNNING still though it is dead, and didn't end in order; '' where none is."""
    definition, verdicts = run.definition(), run.delivered(uri).verdicts
    view = fold(run.own_records(verdicts))
    name = view.state_owner or str(definition.get("owner", ""))
    running = view.status == "RUNNING" or (not view.status and bool(definition.get("owner")))
    owner = read_owner(name)
    if not running or name in view.closed or owner is None or owner.lives() is not False:
        return ""
    # One that had lost the run to another machine has not left it in any state.
    return "" if destination(run.fences(), verdicts, name, now_ms()) else name


def close_as_failed(run: RunFolder, owner: str) -> None:
    """In the dead one's name: where another machine has taken the run up meanwhile, it goes where all goes that he logged."""
    now = now_ms()
    for record in (
        Record(now, "tags", [["state_reason", DIED]]),
        Record(now, "state", {"status": "FAILED", "end_time": now}),
    ):
        run.append(f"{owner}.closed.log", record)

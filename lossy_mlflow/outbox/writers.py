"""Who writes a run: whether one of its writers lives, and the end of a run whose writer has died."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping

from lossy_mlflow.outbox.fences import destination
from lossy_mlflow.outbox.folder import RunFolder, Segment
from lossy_mlflow.outbox.journal import BEAT_EVERY_S, now_ms
from lossy_mlflow.outbox.owner import DIED, Owner, read_owner, this_place, this_process
from lossy_mlflow.outbox.records import Record, fold

# A process that computes for minutes without letting its other threads run is not dead.
SILENT_FOR_S = 20 * BEAT_EVERY_S
_CLOSED = "closed"


def is_being_written(run: RunFolder) -> bool:
    """Whether another process has the run open, or is creating it at this moment; here, or elsewhere by all that is known."""
    owners = {segment.owner for segment in run.segments()} or {_creator(run)}
    return any(_is_at_work(run, owner) for owner in owners if owner)


def _creator(run: RunFolder) -> Owner | None:
    return read_owner(str(run.definition().get("owner", "")))


def _is_at_work(run: RunFolder, owner: Owner) -> bool:
    # Another process, that is, than this one: a sender writes a record itself where it closes a dead program's run.
    return owner != this_process() and lives(run, owner) and not _has_left(run, owner)


def _has_left(run: RunFolder, owner: Owner) -> bool:
    """Whether a process of another place has ended in order: of one of this place its pid tells."""
    if owner.place == this_place():
        return False
    return any(last.kind == "closed" for segment in _written_by(run, owner) if (last := segment.last()))


def lives(run: RunFolder, owner: Owner) -> bool:
    """Whether a writer of the run lives: of another machine, another boot or another container its heartbeat tells.

    That is the time of its newest segment, against the clock of the disk: the machines' own clocks don't count.
    """
    known = owner.lives()
    if known is not None:
        return known
    files = [segment.path for segment in _written_by(run, owner)] or [run.path / "run.json"]
    beats = [file.stat().st_mtime for file in files if file.exists()]
    return bool(beats) and _now_by_the_disk(run) - max(beats) < SILENT_FOR_S


def _written_by(run: RunFolder, owner: Owner) -> list[Segment]:
    """Its segments, without what was written in its name when it was dead."""
    return [segment for segment in run.segments() if segment.owner == owner and _CLOSED not in segment.name]


def _now_by_the_disk(run: RunFolder) -> float:
    try:
        with tempfile.TemporaryFile(dir=run.path) as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError:  # full, or only to be read
        return time.time()


def owner_that_died(run: RunFolder, uri: str, alive: Mapping[Owner, bool]) -> str:
    """The process in whose hands the run says RUNNING still though it is dead, and didn't end in order; '' where none is.

    `alive`: of the writers, as the caller has found them, who may remember the answer for what he has found.
    """
    definition, verdicts = run.definition(), run.delivered(uri).verdicts
    view = fold(run.own_records(verdicts))
    name = view.state_owner or str(definition.get("owner", ""))
    running = view.status == "RUNNING" or (not view.status and bool(definition.get("owner")))
    owner = read_owner(name)
    if not running or name in view.closed or owner is None:
        return ""
    if alive[owner] if owner in alive else lives(run, owner):
        return ""
    # One that had lost the run to another machine has not left it in any state.
    return "" if destination(run.fences(), verdicts, name, now_ms(after=run.newest_time())) else name


def close_as_failed(run: RunFolder, owner: str) -> None:
    """In the dead one's name: where another machine has taken the run up meanwhile, it goes where all goes that he logged."""
    # Behind all that he has said, whatever his clock was; and each sender in a file of its own, since two may find him dead.
    now, segment = now_ms(after=run.newest_time()), f"{owner}.{_CLOSED}-{this_place().replace('.', '-')}.log"
    for record in (
        Record(now, "tags", [["state_reason", DIED]]),
        Record(now, "state", {"status": "FAILED", "end_time": int(time.time() * 1000)}),
    ):
        run.append(segment, record)

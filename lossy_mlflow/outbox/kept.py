"""Whether a server still has what it has acknowledged of a run: one that was restored from a backup has forgotten the newest.

Metrics and params tell: only the run's own programs write them, and nothing takes one away. Tags and states are others' too. Of
files, deferred calls and the run's end one tag tells, which delivery writes after them.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from lossy_mlflow.outbox.api import Api, MissingError
from lossy_mlflow.outbox.fences import destination
from lossy_mlflow.outbox.folder import Delivered, RunFolder
from lossy_mlflow.outbox.records import Record
from lossy_mlflow.outbox.target import PROGRESS_TAG, data_of_run

_READ_BYTES = 4_000_000


@dataclass(slots=True)
class Acknowledged:
    """What a server must have: its params' keys, and of each metric's key the step and time of the newest point."""

    params: set[str] = field(default_factory=set)
    metrics: dict[str, tuple[int, int]] = field(default_factory=dict)

    def add(self, record: Record) -> None:
        if record.kind == "params":
            self.params |= {str(key) for key, _ in record.content}
        elif record.kind == "metrics":
            for key, _, timestamp, step, *_ in record.content:
                self.metrics[key] = max(self.metrics.get(key, (step, timestamp)), (step, timestamp))

    def drop(self, what: str, key: object) -> None:
        """Without a key of which something was refused: nothing is known of it then."""
        if what == "params":
            self.params.discard(str(key))
        elif what == "metrics":
            self.metrics.pop(str(key), None)

    def is_in(self, data: Mapping[str, Any]) -> bool:
        """Whether a run with `data`, as the server gives it, has it all."""
        params = {str(param["key"]) for param in data.get("params", [])}
        metrics = {
            str(metric["key"]): (int(metric.get("step", 0)), int(metric.get("timestamp", 0)))
            for metric in data.get("metrics", [])
        }
        return self.params <= params and all(
            key in metrics and metrics[key] >= newest for key, newest in self.metrics.items()
        )


def has_lost(api: Api, folder: RunFolder, delivered: Delivered) -> bool:
    """Whether the server lacks the run that it had, or values of it. Raises WaitingError."""
    if not delivered.server_run_id or not any(delivered.offsets.values()):
        return False
    try:
        data = data_of_run(api, delivered.server_run_id)
    except MissingError:
        return True
    tags = {str(tag["key"]): str(tag["value"]) for tag in data.get("tags", [])}
    return progress_in(tags) < delivered.told or not acknowledged(folder, delivered).is_in(data)


def progress_in(tags: Mapping[str, str]) -> int:
    """How far delivery has come, as the tags of a run on the server tell; 0 where they don't."""
    told = tags.get(PROGRESS_TAG, "")
    return int(told) if told.isdecimal() else 0


def acknowledged(folder: RunFolder, delivered: Delivered) -> Acknowledged:
    found = Acknowledged()
    fences = folder.fences()
    for segment in folder.segments():
        offset, end = 0, delivered.offsets.get(segment.name, 0)
        while offset < end:
            records, behind, _ = segment.read(offset, min(_READ_BYTES, end - offset))
            for _, record in records:
                if not destination(fences, delivered.verdicts, str(segment.owner), record.time):
                    found.add(record)
            if behind == offset:
                break  # it was cut: what lies behind is gone
            offset = behind
    for what, key in _refused(folder):
        found.drop(what, key)
    return found


def _refused(folder: RunFolder) -> Iterator[tuple[str, object]]:
    """What was refused, and its key; lines that can't be read are left out."""
    try:
        lines = (folder.path / "refused.jsonl").read_text(errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):
            entry = json.loads(line)
            yield str(entry["what"]), entry["content"].get("key")

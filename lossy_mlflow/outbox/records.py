"""What a journal holds: one record a line, each with a checksum of its own. Pure: values and bytes, no files."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal[
    "params", "metrics", "tags", "delete_tag", "state", "inputs", "outputs", "artifact", "call", "closed"
]

_CHECKSUM_LENGTH = 8


@dataclass(frozen=True, slots=True)
class Record:
    """One call of the program. `time`: milliseconds since 1970 by the writer's clock; a writer's times never go backwards."""

    time: int
    kind: Kind
    content: Any


@dataclass(frozen=True, slots=True)
class Read:
    """What a piece of a journal held. `end`: the offset behind its last whole line. `damaged`: lines that were no record."""

    records: list[tuple[int, Record]]
    end: int
    damaged: int


def encode(record: Record) -> bytes:
    """The line of `record`: a CRC-32 in hexadecimal, a blank, JSON, a newline."""
    # What JSON has no form for is kept as its text: the server will say that it is malformed, and the program goes on.
    try:
        text = _json([record.time, record.kind, record.content])
    except Exception:  # whatever an object of the program's does when it is asked for its text
        text = _json([record.time, record.kind, _plain(record.content)])
    body = text.encode()
    return b"%08x %b\n" % (zlib.crc32(body), body)


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), default=str)


def _plain(value: Any, levels: int = 3) -> Any:
    """`value` with text in the place of what `_json` refuses: the other values of the same call stay what they are."""
    if levels and isinstance(value, list | tuple):
        return [_plain(item, levels - 1) for item in value]
    if levels and isinstance(value, dict):
        return {_text(key): _plain(item, levels - 1) for key, item in value.items()}
    try:
        _json(value)
    except Exception:  # an int of 5000 digits, a list that holds itself, an object that fails
        return _text(value)
    return value


def _text(value: Any) -> str:
    try:
        return str(value)
    except Exception:
        return f"<{type(value).__name__}>"


def decode(data: bytes, offset: int = 0) -> Read:
    """The records of `data`, which begins at `offset` of its file, each with the offset behind it.

    A last line without its newline is still being written, or was torn by a crash: it is left for the next reading. A whole
    line that fails its checksum is counted and passed over.
    """
    records: list[tuple[int, Record]] = []
    damaged = 0
    end = data.rfind(b"\n") + 1
    position = 0
    while position < end:
        newline = data.index(b"\n", position)
        record = _decode_line(data[position:newline])
        position = newline + 1
        if record is None:
            damaged += 1
        else:
            records.append((offset + position, record))
    return Read(records, offset + end, damaged)


def _decode_line(line: bytes) -> Record | None:
    checksum, blank, body = line[:_CHECKSUM_LENGTH], line[_CHECKSUM_LENGTH : _CHECKSUM_LENGTH + 1], line[9:]
    if blank != b" " or checksum != b"%08x" % zlib.crc32(body):
        return None
    try:
        time, kind, content = json.loads(body)
    except (ValueError, TypeError, RecursionError):  # whole, but another program's
        return None
    return Record(time, kind, content)


@dataclass(slots=True)
class RunView:
    """What a run's records add up to: the newest value of each param, tag and metric, and its state.

    `metrics`: key -> (step, timestamp, value), the one at the largest step, then the newest, as MLflow has it.
    `state_owner`: the writer that last said RUNNING, '' where none did; `closed`: the writers that ended in order.
    `deleted_tags`: those whose newest word is that they go. `inputs`, `outputs`: what the server's own messages for them hold.
    """

    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    deleted_tags: set[str] = field(default_factory=set)
    metrics: dict[str, tuple[int, int, float]] = field(default_factory=dict)
    artifacts: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    inputs: list[Mapping[str, Any]] = field(default_factory=list)
    outputs: list[Mapping[str, Any]] = field(default_factory=list)
    status: str = ""
    end_time: int | None = None
    run_name: str = ""
    state_owner: str = ""
    closed: frozenset[str] = frozenset()


def fold(records: list[tuple[str, Record]]) -> RunView:
    """The view of `records`, each with its writer, in whatever order; of two words about one thing the later one holds."""
    view = RunView()
    for owner, record in sorted(records, key=lambda item: item[1].time):
        _apply(view, owner, record)
    return view


def _apply(view: RunView, owner: str, record: Record) -> None:
    content = record.content
    match record.kind:
        case "params":
            # The first value is the one that the server keeps.
            for key, value in content:
                view.params.setdefault(key, value)
        case "tags":
            view.tags.update(content)
            view.deleted_tags -= {key for key, _ in content}
        case "delete_tag":
            view.tags.pop(content, None)
            view.deleted_tags.add(content)
        case "metrics":
            for key, value, timestamp, step, *_ in content:
                found = (step, timestamp, value)
                if key not in view.metrics or found[:2] >= view.metrics[key][:2]:
                    view.metrics[key] = found
        case "artifact":
            view.artifacts[content["path"]] = content
        case "inputs":
            view.inputs.append(content)
        case "outputs":
            view.outputs.append(content)
        case "closed":
            view.closed |= {owner}
        case "state":
            view.status = content.get("status") or view.status
            view.run_name = content.get("run_name") or view.run_name
            if content.get("status"):
                view.end_time = content.get("end_time")
            if content.get("status") == "RUNNING":
                view.state_owner = owner

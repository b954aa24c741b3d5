"""What lies where in an outbox.

    OUTBOX/SERVER/server.json             the server's address
    OUTBOX/SERVER/experiments/ID.json     an experiment that the program knows by ID: its name
    OUTBOX/SERVER/ids/SERVER_RUN_ID       the key of the run that the server knows by this id
    OUTBOX/SERVER/runs/KEY/run.json       what the run was created with
    OUTBOX/SERVER/runs/KEY/OWNER.N.log    journal segments: each has one writer, and is only ever appended to
    OUTBOX/SERVER/runs/KEY/calls/TIME-NAME.json     a deferred call
    OUTBOX/SERVER/runs/KEY/fences/TIME-NAME-OWNER.json    who took the run up, and when
    OUTBOX/SERVER/runs/KEY/files/NAME     artifacts, and the files of deferred calls, copied
    OUTBOX/SERVER/runs/KEY/delivered-SERVER.json    how far that server has it all; replaced as a whole
    OUTBOX/SERVER/runs/KEY/refused.jsonl  what the server refused for good, with its words
    OUTBOX/SERVER/runs/KEY/calls-PLACE    the process that carries out its deferred calls on this machine
    OUTBOX/SERVER/sender-PLACE            the process that sends from here on this machine

A file of this kind works on a network file system as well, where neither locks nor SQLite's journal are to be trusted.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import uuid
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lossy_mlflow.errors import ConflictError
from lossy_mlflow.outbox.address import outbox_root, server_uri, short_name
from lossy_mlflow.outbox.disk import (
    PRIVATE_FOLDER,
    make_private_folder,
    open_private,
    read_json,
    sync,
    write_whole,
)
from lossy_mlflow.outbox.fences import Fence, destination, in_order
from lossy_mlflow.outbox.owner import Owner, read_owner
from lossy_mlflow.outbox.records import Record, RunView, decode, encode, fold

FORMAT = 1
# A program's first minutes: params, tags, some files.
_ROOM_BYTES = 100_000
_TAIL_BYTES = 65_536
# A run's key becomes a folder's name: what a program calls its run must not lead anywhere else.
_SAFE_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")


@dataclass(slots=True)
class Delivered:
    """How far a server has a run. `offsets` and `file_offsets`: by segment, the bytes whose values, or files, it has or refused.

    `calls`: the names of the deferred calls that were carried out. `told`: the `progress` that a tag of the run tells of.
    `verdicts`: whose the run is, see `fences`. `error`: why the rest waits, '' where nothing is in the way.
    """

    uri: str
    server_run_id: str = ""
    offsets: dict[str, int] = field(default_factory=dict)
    file_offsets: dict[str, int] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    told: int = 0
    verdicts: dict[str, str] = field(default_factory=dict)
    refused: int = 0
    error: str = ""

    @property
    def progress(self) -> int:
        """A number that grows with whatever is delivered, and is the same for all who deliver the same."""
        return sum(self.offsets.values()) + sum(self.file_offsets.values()) + len(self.calls)

    def reached(self, segment: str) -> int:
        """The offset up to which the server has both the values and the files of a segment."""
        return min(self.offsets.get(segment, 0), self.file_offsets.get(segment, 0))

    def forget(self) -> None:
        """The server has nothing of it: all is to be sent again."""
        self.server_run_id, self.offsets, self.file_offsets = "", {}, {}
        self.calls, self.told, self.verdicts = [], 0, {}

    def send_again(self) -> None:
        """The server has the run, and not all of it: all is to be sent again, to the same one."""
        self.offsets, self.file_offsets, self.calls, self.told = {}, {}, [], 0


@dataclass(frozen=True, slots=True)
class Segment:
    """One journal file. `owner` is None where its name was changed: then nothing is known of its writer."""

    path: Path
    owner: Owner | None

    @property
    def name(self) -> str:
        return self.path.name

    def size(self) -> int:
        return self.path.stat().st_size

    def read(self, offset: int, limit: int | None = None) -> tuple[list[tuple[int, Record]], int, int]:
        """The records behind `offset`, the offset behind the last, and how many lines were damaged. `limit`: bytes, about."""
        with self.path.open("rb") as file:
            file.seek(offset)
            data = file.read() if limit is None else file.read(limit)
            # A record that is longer than the limit is read whole.
            while limit is not None and b"\n" not in data and (more := file.read(limit)):
                data += more
        found = decode(data, offset)
        return found.records, found.end, found.damaged

    def last(self) -> Record | None:
        """Its last record, without reading all of it if that can be."""
        records = self.read(max(0, self.size() - _TAIL_BYTES))[0] or self.read(0)[0]
        return records[-1][1] if records else None


@dataclass(frozen=True, slots=True)
class Call:
    """A deferred call (see `calls`). `time`: milliseconds since 1970; `file`: the copy of its file, of `size` bytes."""

    name: str
    owner: str
    time: int
    function: str
    arguments: dict[str, Any]
    file: str
    size: int


@dataclass(frozen=True, slots=True)
class RunFolder:
    path: Path

    @property
    def key(self) -> str:
        return self.path.name

    @property
    def files(self) -> Path:
        return self.path / "files"

    def definition(self) -> dict[str, Any]:
        """What the run was created with; raises ConflictError for a folder that a newer version has written."""
        found = read_json(self.path / "run.json") or {}
        if found.get("format", FORMAT) > FORMAT:
            raise ConflictError(
                f"{self.path} was written by a newer version of lossy_mlflow (format {found['format']}, here {FORMAT}).",
                "Send it with that version: pip install -U lossy-mlflow",
            )
        return found

    def made_here(self) -> bool:
        """Whether it was created by way of this outbox: then all of it is known here."""
        definition = self.definition()
        return bool(definition) and "server_run_id" not in definition

    def define(self, content: Mapping[str, Any]) -> None:
        make_private_folder(self.path)
        write_whole(self.path / "run.json", {"format": FORMAT, **content}, durable=True)
        sync(self.path.parent)

    def append(self, segment: str, record: Record) -> None:
        """Add a record of another run's journal under the name of its segment, and so of its writer."""
        with os.fdopen(open_private(self.path / segment, os.O_RDWR | os.O_APPEND), "r+b") as file:
            end = file.seek(0, os.SEEK_END)
            # A full disk may have torn what was written last: it must not spoil this line.
            torn = end > 0 and os.pread(file.fileno(), 1, end - 1) != b"\n"
            file.write(b"\n" * torn + encode(record))
            file.flush()
            os.fsync(file.fileno())

    def take_file(self, name: str, other: RunFolder) -> None:
        """Have the file of another run as well; one that isn't there, superseded by a later one, isn't needed here either."""
        make_private_folder(self.files)
        with contextlib.suppress(FileExistsError, FileNotFoundError):
            (self.files / name).hardlink_to(other.files / name)

    def take_call(self, call: Call, other: RunFolder) -> None:
        self.take_file(call.file, other)
        self.add_call(call)

    def segments(self) -> list[Segment]:
        found = []
        for path in sorted(self.path.glob("*.log")):
            name, _, _ = path.name.removesuffix(".log").rpartition(".")
            found.append(Segment(path, read_owner(name)))
        return found

    def newest_time(self) -> int:
        """The time of its newest record, in milliseconds since 1970; 0 where it has none."""
        return max((last.time for segment in self.segments() if (last := segment.last())), default=0)

    def add_call(self, call: Call) -> None:
        make_private_folder(self.path / "calls")
        content = asdict(call)
        write_whole(self.path / "calls" / f"{content.pop('name')}.json", content, durable=True)

    def calls(self, done: Collection[str] = ()) -> list[Call]:
        """Its deferred calls, the oldest first. Those that are `done` aren't read: it is looked at twice a second."""
        paths = [path for path in (self.path / "calls").glob("[!.]*.json") if path.stem not in done]
        found = [(path.stem, read_json(path)) for path in paths]
        calls = [Call(name=name, **content) for name, content in found if content]
        return sorted(calls, key=lambda call: call.time)

    def add_fence(self, fence: Fence) -> None:
        make_private_folder(self.path / "fences")
        write_whole(
            self.path / "fences" / f"{fence.time}-{fence.name}-{fence.owner}.json",
            asdict(fence),
            durable=True,
        )

    def fences(self) -> list[Fence]:
        """In the order in which they took the run."""
        found = [read_json(path) for path in (self.path / "fences").glob("[!.]*.json")]
        return in_order([Fence(**content) for content in found if content])

    def waiting_calls(self, uri: str) -> list[Call]:
        """Those that were not carried out with this server."""
        return self.calls(self.delivered(uri).calls)

    def delivered(self, uri: str) -> Delivered:
        path = self._delivered_path(uri)
        found = read_json(path)
        try:
            return Delivered(**found) if found else Delivered(server_uri(uri))
        except TypeError:  # written by another version: sending it all again is safe
            return Delivered(server_uri(uri))

    def save_delivered(self, state: Delivered) -> None:
        write_whole(self._delivered_path(state.uri), asdict(state))

    def delivered_time(self, uri: str) -> float:
        return self._delivered_path(uri).stat().st_mtime

    def _delivered_path(self, uri: str) -> Path:
        return self.path / f"delivered-{short_name(uri)}.json"

    def refuse(self, entry: Mapping[str, Any]) -> None:
        """Set aside what the server refused for good."""
        line = json.dumps(entry) + "\n"
        with os.fdopen(open_private(self.path / "refused.jsonl", os.O_WRONLY | os.O_APPEND), "a") as file:
            file.write(line)

    def records(self, offsets: Mapping[str, int] | None = None) -> list[tuple[str, Record]]:
        """The records of every segment, behind `offsets`, each with its writer."""
        found: list[tuple[str, Record]] = []
        for segment in self.segments():
            records, _, _ = segment.read((offsets or {}).get(segment.name, 0))
            found += [(str(segment.owner or segment.name), record) for _, record in records]
        return found

    def own_records(
        self, verdicts: Mapping[str, str], offsets: Mapping[str, int] | None = None
    ) -> list[tuple[str, Record]]:
        """The same without what belongs to other runs, since its writer had lost this one."""
        fences = self.fences()
        return [
            (owner, record)
            for owner, record in self.records(offsets)
            if not destination(fences, verdicts, owner, record.time)
        ]

    def waiting(self, uri: str) -> list[Record]:
        """What the server has neither taken nor refused, deferred calls among it."""
        state = self.delivered(uri)
        found = []
        for segment in self.segments():
            values, files = state.offsets.get(segment.name, 0), state.file_offsets.get(segment.name, 0)
            for end, record in segment.read(state.reached(segment.name))[0]:
                if record.kind != "closed" and end > (files if record.kind == "artifact" else values):
                    found.append(record)
        return found + [Record(call.time, "call", call.function) for call in self.calls(state.calls)]

    def is_superseded(self, artifact: Mapping[str, Any], verdicts: Mapping[str, str]) -> bool:
        """Whether the path of this artifact's record was logged again since: its writer may have removed the copy then."""
        newest = fold(self.own_records(verdicts)).artifacts.get(artifact["path"])
        return newest is not None and newest["file"] != artifact["file"]

    def view(self, offsets: Mapping[str, int] | None = None) -> RunView:
        """What its records, behind `offsets`, add up to."""
        return fold(self.records(offsets))


@dataclass(frozen=True, slots=True)
class ServerFolder:
    """All that waits, or waited, for one server."""

    path: Path

    @classmethod
    def of(cls, uri: str) -> ServerFolder:
        return cls(outbox_root() / short_name(uri))

    def prepare(self, uri: str) -> None:
        """Make the folder, private to the user; raises OSError where that can't be, or the disk is full."""
        for path in (
            self.path.parent,
            self.path,
            self.path / "runs",
            self.path / "ids",
            self.path / "experiments",
        ):
            make_private_folder(path)
        self.path.parent.chmod(PRIVATE_FOLDER)
        if read_json(self.path / "server.json") is None:
            write_whole(self.path / "server.json", {"format": FORMAT, "uri": server_uri(uri)}, durable=True)
            sync(self.path.parent)
        room = self.path / f".room.{uuid.uuid4().hex}"
        try:
            room.write_bytes(bytes(_ROOM_BYTES))
        finally:
            room.unlink(missing_ok=True)

    def ask(self) -> None:
        """Somebody waits for what stands here: the sender shouldn't, see `asked`."""
        with contextlib.suppress(OSError):
            (self.path / "asked").touch(mode=0o600)

    def asked(self) -> int:
        """A number that grows whenever somebody asks; 0 where nobody has."""
        try:
            return (self.path / "asked").stat().st_mtime_ns
        except OSError:
            return 0

    def uri(self) -> str | None:
        found = read_json(self.path / "server.json")
        return found["uri"] if found and isinstance(found.get("uri"), str) else None

    def run(self, run_id: str) -> RunFolder:
        """The folder of the run that the program, or the server, knows by this id; it need not exist."""
        if not _SAFE_KEY.fullmatch(run_id):
            raise ValueError(f"not a run id: {run_id!r}")
        own = self.path / "runs" / run_id
        if not own.exists():
            found = read_json(self.path / "ids" / run_id)
            if found and _SAFE_KEY.fullmatch(str(found.get("key", ""))):
                own = self.path / "runs" / str(found["key"])
        return RunFolder(own)

    def remember_id(self, server_run_id: str, key: str) -> None:
        # A run's folder may have been copied here alone.
        known = (self.path / "ids").is_dir()
        if known and server_run_id != key and _SAFE_KEY.fullmatch(server_run_id):
            write_whole(self.path / "ids" / server_run_id, {"key": key})

    def runs(self) -> Iterator[RunFolder]:
        for path in sorted((self.path / "runs").glob("*")):
            if path.is_dir():
                yield RunFolder(path)

    def experiment(self, experiment_id: str) -> dict[str, Any] | None:
        return read_json(self._experiment_path(experiment_id))

    def remember_experiment(self, experiment_id: str, content: Mapping[str, Any]) -> None:
        path = self._experiment_path(experiment_id)
        if read_json(path) != content:
            write_whole(path, content, durable=True)

    def experiments(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for path in sorted((self.path / "experiments").glob("*.json")):
            if content := read_json(path):
                yield path.stem, content

    def _experiment_path(self, experiment_id: str) -> Path:
        if not _SAFE_KEY.fullmatch(experiment_id):
            raise ValueError(f"not an experiment id: {experiment_id!r}")
        return self.path / "experiments" / f"{experiment_id}.json"


def server_folders(root: Path) -> list[ServerFolder]:
    """Those of an outbox; or the one that `root` is itself."""
    if (root / "server.json").exists():
        return [ServerFolder(root)]
    return [ServerFolder(path.parent) for path in sorted(root.glob("*/server.json"))]

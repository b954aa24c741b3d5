"""The writing end: this process's own segments, one per run, and the thread that brings them to the disk.

A record is in the kernel's hands when `append` returns, so that it survives the death of the process; within a second it is on
the disk. A disk that can't take it doesn't stop the program: records wait in memory until it can again, and what can't
be kept is counted and told (see `unsaved`).
"""

from __future__ import annotations

import collections
import contextlib
import errno
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from lossy_mlflow.outbox.disk import make_private_folder, open_private, sync
from lossy_mlflow.outbox.fences import Fence
from lossy_mlflow.outbox.folder import Call, RunFolder
from lossy_mlflow.outbox.owner import this_process
from lossy_mlflow.outbox.records import Kind, Record, encode
from lossy_mlflow.outbox.unsaved import UNSAVED_TAG, Unsaved, in_words

# Half of the promise's second: one turn to notice, one to write.
KEEP_EVERY_S = 0.5
BEAT_EVERY_S = 30.0
_SEGMENT_BYTES = 4_000_000
_BACKLOG_BYTES = 64_000_000
_TRY_AGAIN_AFTER_S = 1.0
_COPY_BYTES = 1_000_000
_ATTEMPT_VARIABLE = "LOSSY_ATTEMPT"

_clock_lock = threading.Lock()
_newest_time = 0


def _renew_clock_lock() -> None:
    global _clock_lock
    _clock_lock = threading.Lock()


# Another thread may hold it at that moment: in the child nobody would ever let it go.
os.register_at_fork(after_in_child=_renew_clock_lock)


def now_ms(after: int = 0) -> int:
    """The time in milliseconds since 1970, later than `after`. It never goes backwards, though the machine's clock may."""
    global _newest_time
    with _clock_lock:
        _newest_time = max(_newest_time, after + 1, int(time.time() * 1000))
        return _newest_time


class Journal:
    """What this process has logged of one run. Threads may share it; a forked child makes its own."""

    def __init__(self, folder: RunFolder, definition: Mapping[str, Any] | None) -> None:
        self.folder = folder
        self.unsaved = Unsaved(folder.path)
        self._definition = definition
        self._lock = threading.Lock()
        self._descriptor: int | None = None
        self._path = Path()
        self._size = 0
        self._number = 0
        self._unsynced = False
        self._unsynced_files: list[Path] = []
        self._newest_copies: dict[str, Path] = {}
        self._superseded: list[Path] = []
        self._backlog: collections.deque[bytes] = collections.deque()
        self._backlog_bytes = 0
        self._tried = 0.0
        self._told = ""
        # What is said from here on comes after all that was said, though the clock was set back since.
        with contextlib.suppress(OSError):
            now_ms(after=folder.newest_time())
            self._join_attempt()
        with self._lock:
            self._write_backlog()

    def append(self, kind: Kind, content: Any) -> None:
        """Keep one record. Never raises for what a disk does: see `waiting_in_memory` and `unsaved`."""
        with self._lock:
            self._append(kind, content)

    def _append(self, kind: Kind, content: Any) -> None:
        line = encode(Record(now_ms(), kind, content))
        if self._backlog or self._definition is not None:
            self._keep_in_memory(line)
            if time.monotonic() - self._tried > _TRY_AGAIN_AFTER_S:
                self._write_backlog()
            return
        try:
            self._write(line)
        except OSError as error:
            self._keep_in_memory(line)
            self.unsaved.complain(error)

    def add_file(self, source: Path, path: str) -> None:
        """Keep a copy of the file `source` as the run's artifact `path`. Raises OSError where `source` can't be opened."""
        with source.open("rb") as content, self.unsaved.keeping(path):
            self.keep_file(content, path)

    def keep_file(self, content: BinaryIO, path: str) -> None:
        """The same for whoever tries again: raises OSError where the disk doesn't take it, and then nothing is kept.

        The record comes after the copy is whole.
        """
        copy, size = self._copy(content)
        with self._lock:
            self._unsynced_files.append(copy)
            self._append("artifact", {"file": copy.name, "path": path, "size": size})
            # Not before this one is on the disk: see `keep`.
            if before := self._newest_copies.get(path):
                self._superseded.append(before)
            self._newest_copies[path] = copy

    def defer(self, function: str, arguments: dict[str, Any], content: BinaryIO) -> None:
        """Keep a deferred call (see `calls`), with `content` as its file; both are on the disk when this returns.

        Raises OSError: nothing is kept.
        """
        copy, size = self._copy(content)
        time_ms = now_ms()
        try:
            sync(copy)
            owner = str(this_process())
            self.folder.add_call(
                Call(f"{time_ms}-{copy.name}", owner, time_ms, function, arguments, copy.name, size)
            )
        except OSError as error:
            raise self._without(copy, error) from error

    def take(self, tag: str, before: str, name: str) -> None:
        """From here on this process, and each that it starts, writes as the attempt `name` (see `fences`)."""
        with self._lock:
            # What it wrote before may belong to another run than what comes now: neither takes the other's place.
            self._newest_copies.clear()
        try:
            self.folder.add_fence(Fence(name, before, tag, str(this_process()), now_ms()))
            os.environ[_ATTEMPT_VARIABLE] = name
        except OSError as error:
            with self._lock:
                self.unsaved.complain(error)

    def _join_attempt(self) -> None:
        """What took the run may have started this process to log into it as well: then both have it, or have lost it."""
        if name := os.environ.get(_ATTEMPT_VARIABLE):
            for fence in [fence for fence in self.folder.fences() if fence.name == name][:1]:
                self.folder.add_fence(replace(fence, owner=str(this_process()), time=now_ms()))

    def _copy(self, content: BinaryIO) -> tuple[Path, int]:
        """A copy of `content` in the outbox, and its size in bytes."""
        copy = self.folder.files / uuid.uuid4().hex
        try:
            make_private_folder(self.folder.files)
            with os.fdopen(open_private(copy, os.O_WRONLY | os.O_EXCL), "wb") as written:
                shutil.copyfileobj(content, written, _COPY_BYTES)
            return copy, copy.stat().st_size
        except OSError as error:
            raise self._without(copy, error) from error

    def _without(self, copy: Path, error: OSError) -> OSError:
        """`error` with the name of the file, which a full disk's doesn't have; what there is of the copy is removed."""
        with contextlib.suppress(OSError):
            copy.unlink()
        return OSError(error.errno, error.strerror, str(copy))

    def keep(self) -> None:
        """Bring what was appended to the disk; called by the keeper's thread."""
        with self._lock:
            self._tell()
            if self._backlog or self._definition is not None:
                self._write_backlog()
            try:
                # One of its own: other threads may go on to the next segment meanwhile, which closes this one.
                descriptor = (
                    os.dup(self._descriptor) if self._descriptor is not None and self._unsynced else None
                )
            except OSError as error:
                self.unsaved.complain(error)
                return
            self._unsynced = False
            files, self._unsynced_files = self._unsynced_files, []
            superseded: list[Path] = []
            if not self._backlog:
                superseded, self._superseded = self._superseded, []
        try:
            for path in [*files, self.folder.files] if files else []:
                _sync_if_there(path)
            if descriptor is not None:
                os.fsync(descriptor)
            # A copy whose path was logged again has no use any more, delivered or not: the newer one is on the disk by now.
            for path in superseded:
                path.unlink(missing_ok=True)
        except OSError as error:
            with self._lock:
                self._unsynced = True
                self._unsynced_files += files
                self._superseded += superseded
                self.unsaved.complain(error)
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def remember_unsaved(self, told: str) -> None:
        """`told`: what the run's tag says that an earlier process could not keep."""
        with self._lock:
            self.unsaved.remember(told)
            self._told = told

    def _tell(self) -> None:
        """Say in the run what is not saved, when that has changed: not while this would be one more that waits in memory."""
        text = in_words(self.unsaved.names())
        if text == self._told or self._backlog or self._definition is not None:
            return
        if text:
            self._append("tags", [[UNSAVED_TAG, text]])
        else:
            self._append("delete_tag", UNSAVED_TAG)
        self._told = text

    def beat(self) -> None:
        """Renew the newest segment's time: by that other machines and containers know that its writer lives."""
        with self._lock, contextlib.suppress(OSError):
            if self._descriptor is not None:
                os.utime(self._descriptor)

    @property
    def waiting_in_memory(self) -> int:
        return len(self._backlog)

    def end(self) -> tuple[str, int]:
        """The name of the newest segment, and its size."""
        with self._lock:
            return self._path.name, self._size

    def _write(self, line: bytes) -> None:
        if self._descriptor is None or self._size > _SEGMENT_BYTES:
            self._open_segment()
        assert self._descriptor is not None
        written = os.write(self._descriptor, line)
        if written < len(line):
            # A full disk took a part of it: a torn line in the middle would spoil the next one.
            os.ftruncate(self._descriptor, self._size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
        self._size += written
        self._unsynced = True

    def _open_segment(self) -> None:
        if self._descriptor is not None:
            os.fsync(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None
        while True:
            path = self.folder.path / f"{this_process()}.{self._number:06d}.log"
            self._number += 1
            try:
                self._descriptor = open_private(path, os.O_WRONLY | os.O_EXCL | os.O_APPEND)
            except FileExistsError:  # this process has logged into the run before, through another journal
                continue
            break
        self._path, self._size = path, 0
        sync(self.folder.path)

    def _keep_in_memory(self, line: bytes) -> None:
        if self._backlog_bytes + len(line) > _BACKLOG_BYTES:
            self.unsaved.add_value()
            return
        self._backlog.append(line)
        self._backlog_bytes += len(line)

    def _write_backlog(self) -> None:
        self._tried = time.monotonic()
        try:
            if self._definition is not None:
                self.folder.define(self._definition)
                self._definition = None
            while self._backlog:
                self._write(self._backlog[0])
                self._backlog_bytes -= len(self._backlog.popleft())
        except OSError as error:
            self.unsaved.complain(error)

    def close(self) -> None:
        """The process ends in order: whoever finds its segments needs not take it for dead."""
        with self._lock:
            self._tell()
            self._append("closed", None)
        self.keep()


def _sync_if_there(path: Path) -> None:
    """A file or a folder; one that somebody has removed must not keep the rest from the disk."""
    with contextlib.suppress(FileNotFoundError):
        sync(path)


class Journals:
    """Every journal of this process, and the thread that keeps them."""

    def __init__(self, on_turn: Callable[[], None]) -> None:
        """`on_turn` is called about twice a second, from a thread, while there is a journal."""
        self._lock = threading.Lock()
        self._journals: dict[str, Journal] = {}
        self._on_turn = on_turn
        self._thread: threading.Thread | None = None
        os.register_at_fork(after_in_child=self._forget)

    def get(self, run_id: str) -> Journal | None:
        return self._journals.get(run_id)

    def open(self, run_id: str, folder: RunFolder, definition: Mapping[str, Any] | None = None) -> Journal:
        """The journal of the run that the program knows by `run_id`. `definition`: what a new one was created with."""
        with self._lock:
            if run_id not in self._journals:
                self._journals[run_id] = Journal(folder, definition)
            if self._thread is None:
                self._thread = threading.Thread(target=self._keep_all, name="lossy-outbox", daemon=True)
                self._thread.start()
            return self._journals[run_id]

    def all(self) -> list[Journal]:
        with self._lock:
            return list(self._journals.values())

    def _keep_all(self) -> None:
        beaten = 0.0
        while True:
            time.sleep(KEEP_EVERY_S)
            for journal in self.all():
                journal.keep()
            if time.monotonic() - beaten > BEAT_EVERY_S:
                beaten = time.monotonic()
                for journal in self.all():
                    journal.beat()
            self._on_turn()

    def _forget(self) -> None:
        """In a forked child: its parent's segments are its parent's, and so is the thread."""
        self._lock = threading.Lock()
        self._journals = {}
        self._thread = None

"""A place of backups: what lies where in it, which backups there are, and what is known of the files that they hold.

lossy-backups.json                  the place's format, and the server whose backups these are
objects/ab/SHA256                   a file's content, once for all backups
backups/TIME/source.json            what is backed up: written first
backups/TIME/tracking.dump          the database; users.dump, if those have one of their own
backups/TIME/files-00001.jsonl.gz   what files there are; the next part when this is full
backups/TIME/complete.json          written last: without it the backup was cut short
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import io
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO, cast

from lossy_mlflow.errors import ConflictError, LossyError, NotFoundError
from lossy_mlflow.service.files import FilePlace, file_place
from lossy_mlflow.service.manifest import (
    Digest,
    Entry,
    Manifest,
    Source,
    decode_manifest,
    decode_part,
    decode_source,
    encode_manifest,
    encode_source,
)

_FORMAT_FILE = "lossy-backups.json"
_BACKUPS = "backups"
_OBJECTS = "objects"
_SOURCE = "source.json"
_COMPLETE = "complete.json"
_PARTS = "files-"
_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Backup:
    """A backup in a place. `manifest` is None for one that was cut short, or of which it can't be read: `fault` says why.

    `parts`: the names of its parts of the list of files.
    """

    name: str
    source: Source | None
    manifest: Manifest | None
    parts: list[str]
    fault: str = ""


class UnreadableError(Exception):
    """A file is there, and can't be read."""


class Counted:
    """A stream that is counted, and digested, as it is read. Raises UnreadableError."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._sha256 = hashlib.sha256()
        self.size = 0

    @property
    def sha256(self) -> str:
        """That of what was read so far."""
        return self._sha256.hexdigest()

    def read(self, size: int = -1) -> bytes:
        try:
            data = self._stream.read(size)
        except OSError as error:
            raise UnreadableError(error.strerror) from error
        self.size += len(data)
        self._sha256.update(data)
        return data


def digest_of(stream: BinaryIO) -> str:
    """The SHA-256 of what it has left."""
    counted = Counted(stream)
    while counted.read(_READ_BYTES):
        pass
    return counted.sha256


class DamagedError(LossyError):
    """What a backup holds isn't what was put there."""


class Verified(Counted):
    """The same of known size and digest: its last piece is given only if it is what it has to be. Raises DamagedError."""

    def __init__(self, stream: BinaryIO, size: int, sha256: str, what: str) -> None:
        super().__init__(stream)
        self._wanted = (size, sha256)
        self._what = what

    def read(self, size: int = -1) -> bytes:
        data = super().read(size)
        at_end = not data or size < 0 or self.size >= self._wanted[0]
        if size != 0 and at_end and (self.size, self.sha256) != self._wanted:
            raise DamagedError(
                f"{self._what} is damaged: its digest is not the one that was noted.",
                "Restore another backup: --at TIME    Or all but what is damaged: --skip-damaged",
            )
        return data


class Archive:
    """The backups at one address."""

    def __init__(self, uri: str) -> None:
        self.place: FilePlace = file_place(uri)

    def check(self, *, may_be_new: bool = False) -> None:
        """Raises NotFoundError where no backups are, ConflictError where others' files are, or a newer version's backups."""
        if self._owner() is not None:
            return
        if not may_be_new:
            raise NotFoundError(
                f"No backups in {self.place.uri}: there is no {_FORMAT_FILE} in it.",
                "Name the place that lossy backup was given.",
            )
        if (other := next(self.place.files(), None)) is not None:
            raise ConflictError(
                f"{self.place.uri} has other files in it ({other.path}), and no backups.",
                "Name an empty place for the backups.",
            )

    def prepare(self, source: Source) -> None:
        """Make it a place of this server's backups, if it isn't one. Raises ConflictError where it is another server's."""
        if self._owner() is None:
            self.place.write(_FORMAT_FILE, io.BytesIO(encode_source(source)))
        self.check_owner(source)

    def check_owner(self, source: Source) -> None:
        """Raises ConflictError where the place holds another server's backups."""
        owner = self._owner()
        if owner is not None and owner.identity != source.identity:
            raise ConflictError(
                f"{self.place.uri} has the backups of {owner}, and these are {source}.",
                "Name a place of its own for each server: lossy backup ANOTHER_PLACE",
            )

    def _owner(self) -> Source | None:
        found = self._read(_FORMAT_FILE)
        return None if found is None else decode_source(found, f"{self.place.uri}/{_FORMAT_FILE}")

    # Backups

    def backups(self) -> list[Backup]:
        """The newest last."""
        found: dict[str, set[str]] = {}
        for file in self.place.files(_BACKUPS):
            _, name, *rest = file.path.split("/")
            found.setdefault(name, set()).add("/".join(rest))
        return [self._backup(name, files) for name, files in sorted(found.items())]

    def _backup(self, name: str, files: set[str]) -> Backup:
        parts = sorted(file for file in files if file.startswith(_PARTS))
        try:
            if _COMPLETE in files:
                manifest = decode_manifest(self._read_file(name, _COMPLETE), self.path(name, _COMPLETE))
                return Backup(name, manifest.source, manifest, parts)
            source = decode_source(self._read_file(name, _SOURCE), self.path(name, _SOURCE))
        except (LossyError, FileNotFoundError) as error:
            return Backup(name, None, None, parts, str(error))
        return Backup(name, source, None, parts)

    def new_name(self) -> str:
        """A name that no backup has: the time, UTC, to the microsecond, so that two that begin together have two."""
        while True:
            name = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S%fZ")
            if next(self.place.files(f"{_BACKUPS}/{name}"), None) is None:
                return name

    def write(self, name: str, file: str, source: BinaryIO) -> Digest:
        """Write a file of the backup `name`."""
        counted = Counted(source)
        self.place.write(f"{_BACKUPS}/{name}/{file}", cast(BinaryIO, counted))
        return Digest(file, counted.size, counted.sha256)

    def write_part(self, name: str, number: int, data: bytes) -> Digest:
        return self.write(name, f"{_PARTS}{number:05}.jsonl.gz", io.BytesIO(data))

    def begin(self, name: str, source: Source) -> None:
        self.write(name, _SOURCE, io.BytesIO(encode_source(source)))

    def complete(self, manifest: Manifest) -> None:
        """Make it a whole backup. Raises ConflictError where what was written is no more what it was, or the place another's."""
        self.check_owner(manifest.source)
        for digest in (*manifest.dumps.values(), *manifest.parts):
            if (size := self.size_of(manifest.name, digest.file)) != digest.size:
                raise ConflictError(
                    f"{self.path(manifest.name, digest.file)} has {size} bytes, and {digest.size} were written: something"
                    " else is at work there. This backup stays one that was cut short.",
                    "See to it that nothing else writes there, then start it again.",
                )
        self.write(manifest.name, _COMPLETE, io.BytesIO(encode_manifest(manifest)))

    def remove(self, backup: Backup) -> None:
        """Remove a backup that was cut short, its source last: it is known by that until it is gone. Contents stay."""
        files = [file.path for file in self.place.files(f"{_BACKUPS}/{backup.name}")]
        for path in sorted(files, key=lambda path: path.endswith(f"/{_SOURCE}")):
            self.place.delete(path)

    def entries(self, manifest: Manifest) -> Iterator[Entry]:
        """The files that a whole backup holds. Raises DamagedError."""
        for part in manifest.parts:
            with self.open_file(manifest.name, part) as stream:
                data = stream.read()
            yield from decode_part(data, self.path(manifest.name, part.file))

    def entries_so_far(self, backup: Backup) -> Iterator[Entry]:
        """The files that any backup holds, cut short or whole, as far as its parts can be read."""
        for part in backup.parts:
            with contextlib.suppress(LossyError, FileNotFoundError):
                yield from decode_part(self._read_file(backup.name, part), self.path(backup.name, part))

    @contextmanager
    def open_file(self, name: str, digest: Digest) -> Iterator[BinaryIO]:
        """A file of the backup `name`. Its last piece is given only if it is what was written; else raises DamagedError."""
        where = self.path(name, digest.file)
        try:
            with self.place.open(f"{_BACKUPS}/{name}/{digest.file}") as stream:
                yield cast(BinaryIO, Verified(stream, digest.size, digest.sha256, where))
        except FileNotFoundError as error:
            raise DamagedError(
                f"{where} is not there any more.", "Restore another backup: --at TIME"
            ) from error

    def size_of(self, name: str, file: str) -> int | None:
        found = self.place.find(f"{_BACKUPS}/{name}/{file}")
        return found.size if found else None

    def path(self, name: str, file: str) -> str:
        return f"{self.place.uri}/{_BACKUPS}/{name}/{file}"

    # Contents

    def objects(self) -> Iterator[tuple[str, int]]:
        """The digest and size of every content."""
        for file in self.place.files(_OBJECTS):
            yield file.path.rpartition("/")[2], file.size

    @contextmanager
    def open_object(self, entry: Entry) -> Iterator[BinaryIO]:
        """The content of a file. Its last piece is given only if it is what was backed up; else raises DamagedError."""
        path = object_path(entry.sha256)
        try:
            with self.place.open(path) as stream:
                what = f"{self.place.uri}/{path}, the content of {entry.path},"
                yield cast(BinaryIO, Verified(stream, entry.size, entry.sha256, what))
        except FileNotFoundError as error:
            raise DamagedError(f"{self.place.uri}/{path} is not there any more.") from error

    def _read(self, path: str) -> bytes | None:
        try:
            with self.place.open(path) as stream:
                return stream.read()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _read_file(self, name: str, file: str) -> bytes:
        with self.place.open(f"{_BACKUPS}/{name}/{file}") as stream:
            return stream.read()


def object_path(sha256: str) -> str:
    return f"{_OBJECTS}/{sha256[:2]}/{sha256}"


class Known:
    """What is known of millions of files and contents: in a database on the disk, which goes with it. For all threads."""

    def __init__(self) -> None:
        # The empty name: SQLite's own temporary file, held in memory while it is small.
        self._connection = sqlite3.connect("", check_same_thread=False, isolation_level=None)
        self._lock = threading.Lock()
        self._connection.execute("pragma journal_mode = off")
        self._connection.execute("create table contents (sha256 text primary key, size int) without rowid")
        self._connection.execute(
            "create table files (root blob, path blob, size int, sha256 text, mark text, primary key (root, path))"
            " without rowid"
        )

    def close(self) -> None:
        self._connection.close()

    def add_contents(self, contents: Iterable[tuple[str, int]]) -> None:
        with self._lock:
            self._connection.execute("begin")
            self._connection.executemany("insert or replace into contents values (?, ?)", contents)
            self._connection.execute("commit")

    def add_content(self, sha256: str, size: int) -> bool:
        """Whether it wasn't known yet."""
        with self._lock:
            added = self._connection.execute(
                "insert into contents values (?, ?)"
                " on conflict do update set size = excluded.size where size != excluded.size",
                [sha256, size],
            )
        return added.rowcount == 1

    def has_content(self, sha256: str, size: int) -> bool:
        with self._lock:
            found = self._connection.execute(
                "select size from contents where sha256 = ?", [sha256]
            ).fetchone()
        return found is not None and bool(found[0] == size)

    def add_files(self, entries: Iterable[Entry]) -> None:
        """Of two about one file the later holds."""
        rows = ((*_key(item.root, item.path), item.size, item.sha256, item.mark) for item in entries)
        with self._lock:
            self._connection.execute("begin")
            self._connection.executemany("insert or replace into files values (?, ?, ?, ?, ?)", rows)
            self._connection.execute("commit")

    def file(self, root: str, path: str) -> Entry | None:
        with self._lock:
            found = self._connection.execute(
                "select size, sha256, mark from files where root = ? and path = ?", _key(root, path)
            ).fetchone()
        return Entry(root, path, *found) if found else None


def _key(root: str, path: str) -> tuple[bytes, bytes]:
    # A name on a disk need not be text.
    return root.encode(errors="surrogateescape"), path.encode(errors="surrogateescape")

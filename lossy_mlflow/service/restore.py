"""A backup put into empty stores: what `lossy restore` does."""

from __future__ import annotations

import io
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import Literal

from lossy_mlflow.errors import ConflictError, LossyError, NotFoundError, UsageError
from lossy_mlflow.service.alone import alone
from lossy_mlflow.service.archive import Archive, DamagedError, Known, digest_of
from lossy_mlflow.service.dumps import (
    check_put_back,
    forget_restore,
    kind_of,
    put_back,
    restored_from,
    rows_in,
)
from lossy_mlflow.service.files import file_place, for_each_file, threads_between
from lossy_mlflow.service.manifest import Entry, Manifest
from lossy_mlflow.service.postgres import check_client
from lossy_mlflow.service.private import make_folder
from lossy_mlflow.service.stores import Stores
from lossy_mlflow.tracking.connection import sqlite_file, without_password

# In the place of artifacts, until the databases are there as well: which backup is being restored.
MARKER = ".lossy-restore.json"
_PORTION = 2000
_NAMED = 100

Progress = Callable[[int, int], None]
_Outcome = Literal["done", "there", "kept", "damaged"]


@dataclass(frozen=True, slots=True)
class Listed:
    """A backup in a place. `state`: whole, cut short or damaged; `name`: when it began, UTC; `bytes` of its files, `new_bytes` of
    those that no earlier one had.
    """

    name: str
    state: str
    database: str
    artifacts: str
    files: int
    bytes: int
    new_bytes: int
    unreadable: int
    elsewhere: int


@dataclass(frozen=True, slots=True)
class Restored:
    """What was restored, or by a dry run verified. `name`: the backup's.

    `files`, `bytes`: what has been written now; `there`: files that were there already, from a restore that was cut short or, of
    folders outside the server's artifacts, since they were never gone. `kept`: files of such folders that are others now, and
    stay. `damaged`: what was left out. `elsewhere`: addresses that the backup has no files of; `fixed`: how many addresses name
    the old place of artifacts, where the files are no more.
    """

    name: str
    target: str
    mlflow: str
    databases: list[str]
    files: int
    bytes: int
    there: int
    kept: list[str]
    damaged: list[str]
    elsewhere: list[str]
    fixed: int
    seconds: float

    @property
    def is_whole(self) -> bool:
        return not (self.kept or self.damaged or self.elsewhere or self.fixed)


def list_backups(source: str) -> list[Listed]:
    """The backups in a place, the newest first. Raises NotFoundError where none are."""
    archive = Archive(source)
    archive.check()
    found = []
    for backup in reversed(archive.backups()):
        manifest, where = backup.manifest, backup.source
        found.append(
            Listed(
                name=backup.name,
                state="whole" if manifest else "damaged" if backup.fault else "cut short",
                database=where.database if where else "",
                artifacts=where.artifacts if where else "",
                files=manifest.files if manifest else 0,
                bytes=manifest.bytes if manifest else 0,
                new_bytes=manifest.new_bytes if manifest else 0,
                unreadable=len(manifest.unreadable) if manifest else 0,
                elsewhere=len(manifest.elsewhere) if manifest else 0,
            )
        )
    return found


def restore(
    stores: Stores,
    source: str,
    *,
    at: str | None = None,
    dry_run: bool = False,
    skip_damaged: bool = False,
    progress: Progress | None = None,
) -> Restored:
    """Restore a backup (`at`: its name; else the newest whole one) into `stores`, which must be empty.

    First the files, each verified while it is copied, then the users, then the runs: until then a server finds nothing. One that
    was cut short is finished by the same call. `dry_run` reads and verifies all of it, and writes nothing.
    `skip_damaged`: restore the rest. `progress` is told the bytes so far, and of all.
    Raises NotFoundError, ConflictError for stores that aren't empty, DamagedError, which says what is damaged or missing: known
    before anything is written, except that a content of the right size is read only as it is copied.
    """
    begun = time.time()
    archive = Archive(source)
    archive.check()
    manifest = _chosen(archive, at)
    _check_kinds(stores, manifest)
    for uri in stores.databases.values():
        if not sqlite_file(uri):
            check_client(uri, puts_back=True)
    if (file := sqlite_file(stores.database)) and not dry_run:
        make_folder(file.parent)  # for the lock beside it
    known = Known()
    try:
        with nullcontext() if dry_run else alone(stores, "restore"):
            return _Work(stores, archive, manifest, known, progress, skip_damaged).run(begun, dry_run=dry_run)
    finally:
        known.close()


def _chosen(archive: Archive, at: str | None) -> Manifest:
    backups = archive.backups()
    whole = {backup.name: backup.manifest for backup in backups if backup.manifest}
    look = f"lossy restore {archive.place.uri} --list"
    if at is None:
        if not whole:
            raise NotFoundError(
                f"No whole backup in {archive.place.uri}: {len(backups)} were cut short or are damaged.", look
            )
        return whole[max(whole)]
    if at in whole:
        return whole[at]
    if at in {backup.name for backup in backups}:
        raise NotFoundError(f"The backup {at} was cut short, or is damaged.", f"Name another: {look}")
    raise NotFoundError(f"No backup {at!r} in {archive.place.uri}.", f"Those that are there: {look}")


def _check_kinds(stores: Stores, manifest: Manifest) -> None:
    kinds = {name: kind_of(uri) for name, uri in stores.databases.items()}
    if kinds.keys() != manifest.source.kinds.keys():
        apart = "apart from the runs" if "users" in manifest.source.kinds else "in the database of the runs"
        raise UsageError(
            f"In the backup {manifest.name} the users are {apart}: they can be restored so only.",
            "Name the database of the users as the old server had it: export MLFLOW_AUTH_CONFIG_PATH=...",
        )
    for name, kind in kinds.items():
        if kind != manifest.source.kinds[name]:
            raise UsageError(
                f"The backup {manifest.name} is of {manifest.source.kinds[name]}, which can't be restored into {kind}.",
                "Name an empty database of the same kind: --backend-store-uri ...",
            )


@dataclass(slots=True)
class _Counts:
    files: int = 0
    bytes: int = 0
    there: int = 0
    kept: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)


class _Work:
    """One restore."""

    def __init__(
        self,
        stores: Stores,
        archive: Archive,
        manifest: Manifest,
        known: Known,
        progress: Progress | None,
        skip_damaged: bool,
    ) -> None:
        self._stores = stores
        self._archive = archive
        self._manifest = manifest
        self._known = known
        self._progress = progress
        self._skip_damaged = skip_damaged
        self._artifacts = file_place(stores.artifacts)
        self._counts = _Counts()
        self._passed = 0

    def run(self, begun: float, *, dry_run: bool) -> Restored:
        goes_on = self._check_empty()
        self._known.add_contents(self._archive.objects())
        self._check_objects()
        with tempfile.TemporaryDirectory() as folder, self._explained(folder):
            dumps = {holds: self._fetched(holds, Path(folder)) for holds in self._manifest.dumps}
            for holds, dump in dumps.items():
                check_put_back(self._stores.databases[holds], dump)
            if dry_run:
                self._each(self._verify)
            elif not self._is_restored("tracking"):
                if goes_on:
                    self._artifacts.clear()
                self._artifacts.write(
                    MARKER, io.BytesIO(json.dumps({"backup": self._manifest.name}).encode())
                )
                self._each(self._restore_again if goes_on else self._restore)
                self._artifacts.sync()
                for holds in sorted(dumps, reverse=True):  # the users before the tracking database
                    if not self._is_restored(holds):
                        put_back(self._stores.databases[holds], dumps[holds], self._manifest.name)
        if not dry_run:
            self._artifacts.delete(MARKER)
            for uri in reversed(self._stores.databases.values()):
                forget_restore(uri)
        return self._result(begun)

    # Before anything is written

    def _check_empty(self) -> bool:
        """Whether a restore of this backup was cut short here. Raises ConflictError where something else is there."""
        marker = self._marker()
        if self._is_restored("tracking"):
            return True
        if marker not in (None, self._manifest.name):
            raise ConflictError(
                f"A restore of the backup {marker} into {self._stores.artifacts} was cut short.",
                f"Finish that one: --at {marker}    Or remove what it has left: {self._stores.artifacts}",
            )
        for holds, uri in self._stores.databases.items():
            if (rows := rows_in(uri)) and not (marker and self._is_restored(holds)):
                table, count = max(rows.items(), key=lambda item: item[1])
                raise ConflictError(
                    f"The database {without_password(uri)} isn't empty: {len(rows)} tables have rows, {table} has {count}.",
                    "Name an empty one: --backend-store-uri ...",
                )
        if marker is None and (file := next(self._artifacts.files(), None)):
            raise ConflictError(
                f"{self._stores.artifacts} isn't empty: {file.path} is there.",
                "Name an empty place: --artifacts-destination ...",
            )
        return marker is not None

    def _is_restored(self, holds: str) -> bool:
        return restored_from(self._stores.databases[holds]) == self._manifest.name

    def _marker(self) -> str | None:
        try:
            with self._artifacts.open(MARKER) as stream:
                return str(json.loads(stream.read())["backup"])
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, KeyError, TypeError):
            return "?"

    def _check_objects(self) -> None:
        """Raises DamagedError if a dump or a content isn't there, or has another size."""
        for dump in self._manifest.dumps.values():
            if self._archive.size_of(self._manifest.name, dump.file) != dump.size:
                path = self._archive.path(self._manifest.name, dump.file)
                raise DamagedError(f"{path} is damaged or missing.", "Restore another backup: --at TIME")
        lost, first = 0, ""
        for entry in self._archive.entries(self._manifest):
            if not self._known.has_content(entry.sha256, entry.size):
                lost, first = lost + 1, first or entry.path
        if lost and not self._skip_damaged:
            raise DamagedError(
                f"The contents of {lost} of {self._manifest.files} files are damaged or missing in {self._archive.place.uri},"
                f" that of {first} first. Nothing was written.",
                "Restore another backup: --at TIME    Or all but these: --skip-damaged",
            )

    def _fetched(self, holds: str, folder: Path) -> Path:
        """The dump, verified, in a file."""
        dump = self._manifest.dumps[holds]
        with (
            self._archive.open_file(self._manifest.name, dump) as source,
            (folder / dump.file).open("wb") as copy,
        ):
            shutil.copyfileobj(source, copy, 1 << 20)
        return folder / dump.file

    @contextmanager
    def _explained(self, folder: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise LossyError(
                f"{error.filename or folder} can't be read or written: {error.strerror}.",
                "Free some space, or name another folder for files of the moment: export TMPDIR=...",
            ) from error

    # Files

    def _each(self, do: Callable[[Entry], _Outcome]) -> None:
        entries = self._archive.entries(self._manifest)
        with threads_between(self._archive.place, self._artifacts) as pool:
            while portion := list(islice(entries, _PORTION)):
                outcomes = for_each_file(pool, self._skipping(do), portion, attrgetter("size"))
                for entry, outcome in zip(portion, outcomes, strict=True):
                    self._count(entry, outcome)

    def _count(self, entry: Entry, outcome: _Outcome) -> None:
        shown = f"{entry.root}/{entry.path}" if entry.root else entry.path
        match outcome:
            case "done":
                self._counts.files += 1
                self._counts.bytes += entry.size
            case "there":
                self._counts.there += 1
            case "kept":
                self._counts.kept.append(shown)
            case "damaged":
                self._counts.damaged.append(shown)
        self._passed += entry.size
        if self._progress:
            self._progress(self._passed, self._manifest.bytes)

    def _skipping(self, do: Callable[[Entry], _Outcome]) -> Callable[[Entry], _Outcome]:
        def run(entry: Entry) -> _Outcome:
            try:
                return do(entry)
            except DamagedError:
                if not self._skip_damaged:
                    raise
                return "damaged"

        return run

    def _verify(self, entry: Entry) -> _Outcome:
        with self._archive.open_object(entry) as stream:
            digest_of(stream)
        return "done"

    def _restore(self, entry: Entry) -> _Outcome:
        place = file_place(entry.root) if entry.root else self._artifacts
        if entry.root and (there := place.find(entry.path)):
            # A folder of this machine that was never gone: nothing in it is touched.
            if there.size != entry.size:
                return "kept"
            with place.open(entry.path) as stream:
                return "there" if digest_of(stream) == entry.sha256 else "kept"
        with self._archive.open_object(entry) as stream:
            place.write(entry.path, stream)
        return "done"

    def _restore_again(self, entry: Entry) -> _Outcome:
        """What the restore that was cut short has written is whole: it was verified before it had its name."""
        if not entry.root and (there := self._artifacts.find(entry.path)) and there.size == entry.size:
            return "there"
        return self._restore(entry)

    def _result(self, begun: float) -> Restored:
        moved = self._stores.artifacts != self._manifest.source.artifacts
        return Restored(
            name=self._manifest.name,
            target=str(self._stores),
            mlflow=self._manifest.versions.get("mlflow", ""),
            databases=sorted(self._manifest.dumps),
            files=self._counts.files,
            bytes=self._counts.bytes,
            there=self._counts.there,
            kept=self._counts.kept[:_NAMED],
            damaged=self._counts.damaged[:_NAMED],
            elsewhere=self._manifest.elsewhere,
            fixed=self._manifest.fixed if moved else 0,
            seconds=round(time.time() - begun, 1),
        )

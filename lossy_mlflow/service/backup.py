"""A server's stores, copied while others write into them: what `lossy backup` does."""

from __future__ import annotations

import importlib.metadata
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, cast

from lossy_mlflow.errors import ConflictError, NotFoundError
from lossy_mlflow.service.alone import alone
from lossy_mlflow.service.archive import Archive, Backup, Counted, Known, UnreadableError, object_path
from lossy_mlflow.service.database import TRACKING_VERSIONS, USERS_VERSIONS, revision_of
from lossy_mlflow.service.dumps import dumped, kind_of
from lossy_mlflow.service.files import (
    ChangedError,
    FilePlace,
    StoredFile,
    file_place,
    for_each_file,
    portions,
    threads_between,
)
from lossy_mlflow.service.manifest import (
    Digest,
    Entry,
    Manifest,
    Source,
    encode_part,
)
from lossy_mlflow.service.outside import Outside, outside
from lossy_mlflow.service.postgres import check_client, postgres_client
from lossy_mlflow.service.stores import Stores
from lossy_mlflow.tracking.connection import sqlite_file

# What a backup that is cut short has to do again at most.
PART_FILES = 2000
_PART_BYTES = 1 << 30
_NAMED = 100
# A file that changes each time it is read, as one that is being uploaded to a folder does.
_TRIES = 3

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class BackedUp:
    """A backup that was made; of a dry run, what one would find: its `name` is '' then, and what is new may be less.

    `dumps`: bytes by database; `files`, `bytes`: what the backup holds; `new_files`, `new_bytes`: of these what no earlier one
    had. `vanished`: files that were deleted meanwhile; `unreadable`: files that can't be read; `elsewhere`: addresses of which it
    has no files; `finished`: earlier ones that were cut short, and are no longer needed.
    """

    target: str
    name: str
    dumps: dict[str, int]
    files: int
    bytes: int
    new_files: int
    new_bytes: int
    vanished: int
    unreadable: list[str]
    elsewhere: list[str]
    finished: list[str]
    seconds: float

    @property
    def is_whole(self) -> bool:
        """Whether it holds all that the databases refer to."""
        return not self.unreadable and not self.elsewhere


def back_up(
    stores: Stores, target: str, *, dry_run: bool = False, progress: Progress | None = None
) -> BackedUp:
    """Back up `stores` to `target`, an absolute folder or s3://BUCKET/PATH, while others go on writing.

    First the databases, then every file: what a database refers to is then in the copy. What an earlier backup there has isn't
    copied again, and an unchanged file not even read; this goes for one that was cut short too. `progress` is told the bytes so
    far, and those of the last backup (0: there is none).
    Raises ConflictError while another program works on these stores as a whole, LossyError, UnreachableError.
    """
    begun = time.time()
    archive = Archive(target)
    archive.check(may_be_new=True)
    _check_apart(stores, target)
    for uri in stores.databases.values():
        if not sqlite_file(uri):
            check_client(uri, puts_back=False)
    known = Known()
    try:
        with nullcontext() if dry_run else alone(stores, "backup"):
            return _Work(stores, archive, known, begun, progress).run(dry_run=dry_run)
    finally:
        known.close()


def source_of(stores: Stores) -> Source:
    kinds = {name: kind_of(uri) for name, uri in stores.databases.items()}
    return Source(_shown(stores.database), _shown(stores.users), stores.artifacts, kinds)


def _shown(uri: str) -> str:
    return uri if sqlite_file(uri) else postgres_client(uri)[0]


def _check_apart(stores: Stores, target: str) -> None:
    for one, other in ((target, stores.artifacts), (stores.artifacts, target)):
        if f"{one}/".startswith(f"{other.rstrip('/')}/"):
            raise ConflictError(
                f"{target} is not apart from the artifacts, {stores.artifacts}.",
                "Name a place on another disk or machine.",
            )


@dataclass(slots=True)
class _Counts:
    files: int = 0
    bytes: int = 0
    new_files: int = 0
    new_bytes: int = 0
    vanished: int = 0
    unreadable: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Job:
    """A file on its way. `known`: what an earlier backup says of it, if that holds still."""

    root: str
    place: FilePlace
    file: StoredFile
    known: Entry | None

    @property
    def shown(self) -> str:
        return f"{self.place.uri}/{self.file.path}"


def _bytes_to_copy(job: _Job) -> int:
    return 0 if job.known else job.file.size


class _Work:
    """One backup."""

    def __init__(
        self, stores: Stores, archive: Archive, known: Known, begun: float, progress: Progress | None
    ) -> None:
        self._stores = stores
        self._artifacts = file_place(stores.artifacts)
        self._archive = archive
        self._known = known
        self._begun = begun
        self._progress = progress
        self._counts = _Counts()
        self._expected = 0

    def run(self, *, dry_run: bool) -> BackedUp:
        source = source_of(self._stores)
        revisions = {
            TRACKING_VERSIONS: revision_of(self._stores.database),
            USERS_VERSIONS: revision_of(self._stores.users, USERS_VERSIONS),
        }
        self._archive.check_owner(source)
        self._check_artifacts()
        cut_short = self._recall()
        if dry_run:
            found = outside(self._stores)
            for job in self._jobs(found):
                self._count(job.file.size, is_new=job.known is None)
            return self._result("", {}, found, [])
        self._archive.prepare(source)
        if cut_short:
            self._archive.place.clear()
        name = self._archive.new_name()
        self._archive.begin(name, source)
        dumps = {holds: self._dump(name, holds, uri) for holds, uri in self._stores.databases.items()}
        found = outside(self._stores)
        parts = self._copy(name, found)
        manifest = Manifest(
            name=name,
            begun=self._begun,
            ended=time.time(),
            source=source,
            dumps=dumps,
            revisions=revisions,
            parts=parts,
            files=self._counts.files,
            bytes=self._counts.bytes,
            new_files=self._counts.new_files,
            new_bytes=self._counts.new_bytes,
            vanished=self._counts.vanished,
            unreadable=self._counts.unreadable[:_NAMED],
            elsewhere=sorted(found.elsewhere)[:_NAMED],
            fixed=found.fixed,
            versions={package: importlib.metadata.version(package) for package in ("mlflow", "lossy-mlflow")},
        )
        self._archive.complete(manifest)
        for backup in cut_short:
            self._archive.remove(backup)
        return self._result(name, {holds: dump.size for holds, dump in dumps.items()}, found, cut_short)

    def _recall(self) -> list[Backup]:
        """Know what earlier backups have; those that were cut short, which this one will have taken up."""
        backups = self._archive.backups()
        cut_short = [backup for backup in backups if not backup.manifest and backup.source]
        last = next((backup for backup in reversed(backups) if backup.manifest), None)
        if last and last.manifest:
            self._expected = last.manifest.bytes
        for backup in [*([last] if last else []), *cut_short]:
            self._known.add_files(self._archive.entries_so_far(backup))
        self._known.add_contents(self._archive.objects())
        return cut_short

    def _check_artifacts(self) -> None:
        """A mistyped place, or a disk that isn't mounted, would be backed up as an empty one."""
        if next(self._artifacts.files(links=True), None) is not None:
            return
        artifacts = self._stores.artifacts
        found = outside(self._stores)
        if found.proxied + found.fixed:
            is_there = artifacts.startswith("s3://") or Path(artifacts).is_dir()
            put = f"put a file there: aws s3 cp NOTE {artifacts}/NOTE"
            if not artifacts.startswith("s3://"):
                put = f"put a file there: mkdir -p {artifacts} && touch {artifacts}/NOTE"
            raise NotFoundError(
                f"{f'No file is in {artifacts}' if is_there else f'There is no folder {artifacts}'}, and"
                f" {found.proxied + found.fixed} runs and models have their files in the server's artifacts.",
                f"Name the place: --artifacts-destination ...    If they have no files yet, {put}",
            )

    def _dump(self, name: str, holds: str, uri: str) -> Digest:
        with dumped(uri) as stream:
            return self._archive.write(name, f"{holds}.dump", stream)

    # Files

    def _jobs(self, found: Outside) -> Iterator[_Job]:
        places = itertools.chain(
            [("", self._artifacts)],
            ((str(folder), file_place(str(folder))) for folder in sorted(found.folders)),
        )
        for root, place in places:
            for file in place.files(links=True):
                known = self._known.file(root, file.path)
                if known and ((known.size, known.mark) != (file.size, file.mark) or not self._has(known)):
                    known = None
                yield _Job(root, place, file, known)

    def _has(self, entry: Entry) -> bool:
        return self._known.has_content(entry.sha256, entry.size)

    def _copy(self, name: str, found: Outside) -> list[Digest]:
        """Copy what is new; the parts of the list of files."""
        parts: list[Digest] = []
        with threads_between(self._artifacts, self._archive.place) as pool:
            for jobs in portions(self._jobs(found), _bytes_to_copy, PART_FILES, _PART_BYTES):
                results = for_each_file(pool, self._copy_one, jobs, _bytes_to_copy)
                copies = list(self._counted(jobs, results))
                if any(not job.known for job in jobs):
                    # What a part says is there is there, whatever happens to this machine.
                    self._archive.place.sync()
                entries = [entry for entry in copies if entry]
                parts.append(self._archive.write_part(name, len(parts) + 1, encode_part(entries)))
        return parts

    def _counted(self, jobs: list[_Job], results: Iterable[Entry | str | None]) -> Iterator[Entry | None]:
        for job, result in zip(jobs, results, strict=True):
            if isinstance(result, Entry):
                is_new = self._known.add_content(result.sha256, result.size)
                self._count(result.size, is_new=is_new)
                yield result
            elif result is None:
                self._counts.vanished += 1
            else:
                self._counts.unreadable.append(f"{job.shown} ({result})")

    def _count(self, size: int, *, is_new: bool) -> None:
        self._counts.files += 1
        self._counts.bytes += size
        self._counts.new_files += is_new
        self._counts.new_bytes += size * is_new
        if self._progress:
            self._progress(self._counts.bytes, self._expected)

    def _copy_one(self, job: _Job) -> Entry | str | None:
        """The file as it is in the backup now; None where it has been deleted, else why it can't be read."""
        if job.known:
            return job.known
        file: StoredFile | None = job.file
        for _ in range(_TRIES):
            if file is None:
                return None
            try:
                return self._store(job, file)
            except FileNotFoundError:
                return None
            except OSError as error:
                return error.strerror or str(error)
            except UnreadableError as error:
                return str(error)
            except ChangedError:
                file = job.place.find(file.path)
        return "it changes while it is read"

    def _store(self, job: _Job, file: StoredFile) -> Entry:
        with job.place.open(file.path) as stream:
            counted = Counted(stream)

            def name() -> str | None:
                return (
                    None
                    if self._known.has_content(counted.sha256, counted.size)
                    else object_path(counted.sha256)
                )

            self._archive.place.write_as(name, cast(BinaryIO, counted))
        return Entry(job.root, file.path, counted.size, counted.sha256, file.mark)

    def _result(self, name: str, dumps: dict[str, int], found: Outside, finished: list[Backup]) -> BackedUp:
        counts = self._counts
        return BackedUp(
            target=self._archive.place.uri,
            name=name,
            dumps=dumps,
            files=counts.files,
            bytes=counts.bytes,
            new_files=counts.new_files,
            new_bytes=counts.new_bytes,
            vanished=counts.vanished,
            unreadable=counts.unreadable,
            elsewhere=sorted(found.elsewhere),
            finished=[backup.name for backup in finished],
            seconds=round(time.time() - self._begun, 1),
        )

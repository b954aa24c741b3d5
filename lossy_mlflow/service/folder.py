"""A folder of this machine as a place of files."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import posixpath
import re
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import psutil

from lossy_mlflow.errors import LossyError
from lossy_mlflow.service.files import COPY_BYTES, ChangedError, StoredFile, Survey, read_up_to
from lossy_mlflow.service.private import make_folder, opener

_PART = ".lossy-part-"
_DAY_S = 86400.0
_HOST = socket.gethostname()


def nearest_there(path: Path) -> Path:
    """The path, or the nearest above it that exists."""
    return next((place for place in (path, *path.parents) if place.exists()), path)


class Folder:
    """A folder of this machine. Links are no files of it, and aren't followed."""

    # More of them would wait for each other more than for the disk.
    threads = 2

    def __init__(self, folder: Path) -> None:
        self.uri = str(folder)
        self._folder = folder

    def files(self, under: str = "", *, links: bool = False) -> Iterator[StoredFile]:
        walk = self._walk(self._path(under) if under else self._folder, under, links=links)
        return (file for file in walk if not _is_part(file))

    def survey(self) -> Survey:
        found: tuple[list[StoredFile], list[StoredFile]] = ([], [])
        for file in self._walk(self._folder, ""):
            found[_is_part(file)].append(file)
        return Survey(*found)

    def now(self) -> float:
        try:
            # It has no name, where the file system can do that.
            with tempfile.TemporaryFile(dir=self._folder, prefix=_PART) as probe:
                return os.fstat(probe.fileno()).st_mtime
        except (
            OSError
        ):  # there is no such folder, or it can't be written: then nothing will be deleted either
            return time.time()

    def _walk(self, folder: Path, prefix: str, *, links: bool = False) -> Iterator[StoredFile]:
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise LossyError(
                f"The folder {folder} can't be listed: {error.strerror}.",
                "Start this as the user that the server runs as.",
            ) from error
        for entry in entries:
            path = f"{prefix}/{entry.name}" if prefix else entry.name
            if entry.is_dir(follow_symlinks=False):
                yield from self._walk(folder / entry.name, path, links=links)
            elif entry.is_file(follow_symlinks=False) or (links and entry.is_symlink()):
                with contextlib.suppress(FileNotFoundError):
                    yield _stored(path, entry.stat(follow_symlinks=False))

    def find(self, path: str) -> StoredFile | None:
        file = self._path(path)
        return _stored(path, file.lstat()) if file.is_file() and not file.is_symlink() else None

    @contextmanager
    def open(self, path: str) -> Iterator[BinaryIO]:
        with open(self._path(path), "rb", opener=_no_link) as stream:
            before = _stored(path, os.fstat(stream.fileno()))
            yield stream
            if _stored(path, os.fstat(stream.fileno())) != before:
                raise ChangedError(path)

    def write(self, path: str, source: BinaryIO) -> None:
        target = self._path(path)
        with self._part_of(target.parent, str(target)) as part:
            with _made(part) as stream:
                shutil.copyfileobj(source, stream, COPY_BYTES)
                stream.flush()
                os.fsync(stream.fileno())
            part.replace(target)

    def write_as(self, name: Callable[[], str | None], source: BinaryIO) -> None:
        begin = read_up_to(source, COPY_BYTES)
        # The name of a small file is known before it is written: it is made where it will be, or not at all.
        known = name() if len(begin) < COPY_BYTES else ""
        if known is None:
            return
        folder = self._path(known).parent if known else self._folder
        with self._part_of(folder, f"A file of {self.uri}") as part:
            with _made(part) as stream:
                stream.write(begin)
                shutil.copyfileobj(source, stream, COPY_BYTES)
            if path := known or name():
                target = self._path(path)
                make_folder(target.parent)
                part.replace(target)

    def sync(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            folder = os.open(self._folder, os.O_RDONLY)
            try:
                # One call for thousands of files: each by itself would cost more than copying it.
                if getattr(ctypes.CDLL(None), "syncfs", os.fsync)(folder) != 0:
                    os.sync()
            finally:
                os.close(folder)

    def clear(self) -> None:
        for folder, _, names in os.walk(self._folder):
            for name in names:
                if name.startswith(_PART) and _is_abandoned(part := Path(folder, name)):
                    part.unlink(missing_ok=True)

    @contextmanager
    def _part_of(self, folder: Path, what: str) -> Iterator[Path]:
        """The path of a file to be written and renamed in the block; else it is gone after it. Raises LossyError."""
        part = folder / f"{_PART}{os.getpid()}-{uuid.uuid4().hex}-{_HOST}"
        try:
            yield part
        except OSError as error:
            raise LossyError(
                f"{what} can't be written: {error.strerror}.", "Free some space, or name another place."
            ) from error
        finally:
            with contextlib.suppress(OSError):
                part.unlink()

    def delete(self, path: str) -> None:
        file = self._path(path)
        file.unlink(missing_ok=True)
        for folder in file.parents:
            if folder == self._folder or not folder.is_relative_to(self._folder):
                return
            try:
                folder.rmdir()
            except OSError:
                return  # others are in it

    def abandon(self, unfinished: StoredFile) -> None:
        self.delete(unfinished.path)

    def _path(self, path: str) -> Path:
        parts = path.split("/")
        if path.startswith("/") or ".." in parts or not set(parts) - {"", "."}:
            raise ValueError(f"{path!r} is no path below {self.uri}")
        return self._folder / path


def _made(file: Path) -> BinaryIO:
    """The file, new and open for writing; its folder is made where it isn't there."""
    try:
        return open(file, "wb", opener=opener)
    except FileNotFoundError:
        make_folder(file.parent)
        return open(file, "wb", opener=opener)


def _no_link(path: str, flags: int) -> int:
    """For `open`: a link isn't followed."""
    try:
        return os.open(path, flags | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "it is a link, which isn't followed", path) from None
        raise


def _is_abandoned(part: Path) -> bool:
    """Whether its writer has died; of another machine's nothing is known, but that a day is enough for any file."""
    named = re.fullmatch(rf"{re.escape(_PART)}(\d+)-[0-9a-f]+-(.+)", part.name)
    if named and named[2] == _HOST:
        return not psutil.pid_exists(int(named[1]))
    with contextlib.suppress(OSError):
        return time.time() - part.stat().st_mtime > _DAY_S
    return False


def _is_part(file: StoredFile) -> bool:
    return posixpath.basename(file.path).startswith(_PART)


def _stored(path: str, stat: os.stat_result) -> StoredFile:
    mark = f"{stat.st_mtime_ns}-{stat.st_ctime_ns}-{stat.st_ino}"
    return StoredFile(path, stat.st_size, stat.st_mtime, mark)

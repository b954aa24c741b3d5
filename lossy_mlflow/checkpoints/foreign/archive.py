"""The archive of the published code, a zip or its unpacked folder: which of its files are checkpoints, by where they lie."""

from __future__ import annotations

import os
import re
import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NoReturn, Protocol

from lossy_mlflow.checkpoints.foreign.contents import UnreadableError, refuse_beyond_memory
from lossy_mlflow.checkpoints.foreign.gan_settings import GanSettings, parse_gan_settings
from lossy_mlflow.checkpoints.foreign.published import UnrecognisedError
from lossy_mlflow.checkpoints.foreign.published_names import aae_name, gan_name
from lossy_mlflow.checkpoints.foreign.zip_file import open_zip, read_member

_VAE = re.compile(r"(?:^|/)checkpoints/(?P<name>[^/]+)/(?:best|checkpoint_epoch\d+)\.pth$")
_GAN = re.compile(r"^(?P<before>(?:.*/)?)results/(?P<folder>[^/]+)/[^/]*?(?P<hash>LT_[^/]*_LT)[^/]*\.pth$")
_AAE = re.compile(r"(?:^|/)(?P<file>[^/]+)\.npz$")
_SETTINGS = re.compile(r"(?:^|/)lt_records/(?P<hash>[^/]+)/settings_(?P=hash)\.txt$")
# They are one line.
_LONGEST_SETTINGS = 1_000_000


class Files(Protocol):
    """The files of an archive by their paths in it, "a/b.pth"."""

    def paths(self) -> list[str]: ...

    def read(self, path: str) -> bytes:
        """Raises UnreadableError where it can't be read, or is larger than this machine's memory."""
        ...

    def size(self, path: str) -> int: ...


@dataclass(frozen=True, slots=True)
class Found:
    """A file that lies where checkpoints do: the model that it belongs to, and a GAN's settings."""

    path: str
    name: str
    settings: GanSettings | None = None


@contextmanager
def open_archive(path: Path) -> Iterator[Files]:
    """The files of a folder or a zip. Raises UnreadableError for what can't be read, and a zip not to be trusted."""
    if path.is_dir():
        yield _Folder(path)
        return
    with path.open("rb") as file, open_zip(file, path.name) as opened:
        yield _Zip(opened, path.name)


def find_checkpoint(files: Files, path: str) -> Found | None:
    """What `path` is, by its place; None for settings, which belong to another file. Raises UnrecognisedError with the reason."""
    if match := _GAN.search(path):
        if "netD" in PurePosixPath(path).name:
            raise UnrecognisedError("a discriminator: only the generator is a decoder")
        return Found(path, gan_name(match["folder"], match["hash"]), _settings(files, match))
    if match := _VAE.search(path):
        return Found(path, match["name"])
    if match := _AAE.search(path):
        return Found(path, aae_name(match["file"]))
    if _SETTINGS.search(path):
        return None
    raise UnrecognisedError("no checkpoint of the published code lies there or is called so")


def _settings(files: Files, match: re.Match[str]) -> GanSettings:
    wanted = f"{match['before']}lt_records/{match['hash']}/settings_{match['hash']}.txt"
    if wanted not in files.paths():
        raise UnrecognisedError(f"its settings aren't there, which say what it is: {wanted}")
    if files.size(wanted) > _LONGEST_SETTINGS:
        raise UnrecognisedError(f"its settings are no settings: {wanted} has {files.size(wanted):,} bytes")
    return parse_gan_settings(files.read(wanted).decode(errors="replace"))


class _Zip:
    def __init__(self, opened: zipfile.ZipFile, what: str) -> None:
        self._opened = opened
        self._what = what
        self._members = {member.filename: member for member in opened.infolist() if not member.is_dir()}

    def paths(self) -> list[str]:
        return sorted(self._members)

    def read(self, path: str) -> bytes:
        return read_member(self._opened, self._members[path], self._what)

    def size(self, path: str) -> int:
        return self._members[path].file_size


class _Folder:
    """Links are not followed: what they lead to is no part of the folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sizes: dict[str, int] = {}
        self._links: set[str] = set()
        try:
            self._walk()
        except OSError as error:
            raise _no_access(error.filename, error) from error

    def _walk(self) -> None:
        def refuse(error: OSError) -> NoReturn:
            raise error

        for below, folders, names in os.walk(self._folder, onerror=refuse):
            for file in (Path(below, name) for name in [*folders, *names]):
                path, status = file.relative_to(self._folder).as_posix(), file.lstat()
                if stat.S_ISLNK(status.st_mode):
                    self._links.add(path)
                elif stat.S_ISREG(status.st_mode):
                    self._sizes[path] = status.st_size

    def paths(self) -> list[str]:
        return sorted(self._sizes.keys() | self._links)

    def read(self, path: str) -> bytes:
        if path in self._links:
            raise UnreadableError(f"{path} is a symbolic link.", "Put the file itself there.")
        return read_file(self._folder / path, path)

    def size(self, path: str) -> int:
        return self._sizes.get(path, 0)


def read_file(path: Path, what: str) -> bytes:
    """The file's bytes. Raises UnreadableError where it can't be read, or is larger than this machine's memory."""
    try:
        refuse_beyond_memory(what, path.stat().st_size)
        return path.read_bytes()
    except OSError as error:
        raise _no_access(what, error) from error


def _no_access(what: str, error: OSError) -> UnreadableError:
    return UnreadableError(f"{what} can't be read: {error.strerror}.", "Look at who may read it.")

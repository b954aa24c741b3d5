"""A data set's files on disk: verified at each reading, downloaded where they are missing or damaged.

Whole files are read without a lock, so a folder that can't be written serves as well. A download runs under a
lock that the kernel frees when its holder dies; everybody else waits, and then finds the files there.
"""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock

from lossy_mlflow.data.catalogue import Archive, Dataset, find_dataset
from lossy_mlflow.data.download import DownloadError, download, unpack
from lossy_mlflow.data.files import fault_of, note_sha256, read_files
from lossy_mlflow.errors import LossyError, NotFoundError, UnreachableError

Progress = Callable[[str], None]
"""Called with a line for people to read: what is downloaded from where, what is waited for."""


def fetch(name: str, folder: Path, progress: Progress | None = None) -> None:
    """See to it that the files of the data set `name`, those of its labels too, lie whole in `folder`.

    Raises what `verified_files` does, and NotFoundError for an unknown name.
    """
    verified_files(find_dataset(name).with_labels(), folder, progress)


def verified_files(dataset: Dataset, folder: Path, progress: Progress | None = None) -> dict[str, bytes]:
    """The content of each file of the data set by its name, downloaded first where that is needed.

    UnreachableError: something is missing or damaged, and no server gave it. NotFoundError: the same, and the
    folder can't be written. LossyError: its disk is full.
    """
    home = folder / dataset.home
    contents, faults = read_files(dataset, home)
    if not faults:
        return contents
    try:
        _mend(dataset, home, progress or _silent)
    except DownloadError as error:
        what = f"{_complaint(dataset, folder, faults)}; and it can't be downloaded: {error}"
        raise UnreachableError(what, _way_on(dataset)) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _full(dataset, folder) from error
        what = f"{_complaint(dataset, folder, faults)}; and can't write there: {error.strerror or error}"
        raise NotFoundError(what, _way_on(dataset)) from error
    contents, faults = read_files(dataset, home)
    if faults:
        what = f"{_complaint(dataset, folder, faults)}, although it has just been written"
        raise NotFoundError(what, "check that disk, or name another folder by --data-dir or LOSSY_DATA_DIR")
    return contents


def _silent(_: str) -> None:
    pass


def _mend(dataset: Dataset, home: Path, say: Progress) -> None:
    """Download what is missing or damaged, unless another process has done so while this one waited."""
    home.mkdir(parents=True, exist_ok=True)
    with _alone(home, dataset.name, say):
        _, faults = read_files(dataset, home)
        for archive in dataset.archives:
            if any(file.name in faults for file in archive.files):
                _replace(archive, home, say)


@contextlib.contextmanager
def _alone(home: Path, name: str, say: Progress) -> Iterator[None]:
    """Hold the lock of `home`. Its file stays: unlinking it would let two processes hold a lock each."""
    lock = filelock.FileLock(home / ".lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        say(f"waiting for another process that downloads {name} into {home}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _replace(archive: Archive, home: Path, say: Progress) -> None:
    """Download the archive and move its files into place. To be called under the lock of `home`."""
    partial = home / ".partial"
    shutil.rmtree(partial, ignore_errors=True)  # of a holder that was killed
    partial.mkdir()
    try:
        download(archive, partial / "archive", say)
        unpacked = dict(unpack(archive, partial / "archive"))
        for file in archive.files:
            fault = fault_of(file, unpacked.get(file.name, b""), file.sha256)
            if fault:
                raise DownloadError(f"{archive.urls[0]}: {file.name} in it {fault}")
            (partial / file.name).write_bytes(unpacked[file.name])
        for file in archive.files:
            if file.sha256 is None:
                note_sha256(home / file.name, unpacked[file.name], partial)
            (partial / file.name).replace(home / file.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _complaint(dataset: Dataset, folder: Path, faults: dict[str, str]) -> str:
    found = "; ".join(f"{dataset.home}/{name} {fault}" for name, fault in faults.items())
    return f"no {dataset.name} in {folder}: {found}"


def _full(dataset: Dataset, folder: Path) -> LossyError:
    n_bytes = sum(file.size for file in dataset.files)
    return LossyError(
        f"no space left in {folder} for {dataset.name}: {n_bytes:,} bytes, and its archive for a while",
        "make room there, or name another folder by --data-dir or LOSSY_DATA_DIR",
    )


def _way_on(dataset: Dataset) -> str:
    files = ", ".join(f"{dataset.home}/{file.name} ({file.size:,} bytes)" for file in dataset.files)
    return (
        f"put {files} there, or run `lossy data fetch {dataset.name}` where there is a network "
        "and name that folder by --data-dir or LOSSY_DATA_DIR"
    )

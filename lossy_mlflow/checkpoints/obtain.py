"""A version's files on this disk: fetched through the tracking server, verified by their digest, moved into place by one rename.

What arrives lies beside the place where it goes, file by file, each under its name only once it is whole: taken up again after
a cut, those are not fetched again. Whoever comes second waits at a lock that the kernel frees when its holder dies, and then
finds the folder there. Nothing here needs torch, or the keys of the server's store.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lossy_mlflow.checkpoints.flavor import FILES, files_sha256
from lossy_mlflow.checkpoints.listing import DamagedError, files_of, store_explained, where_they_lie
from lossy_mlflow.checkpoints.lookup import Checkpoint
from lossy_mlflow.errors import ConflictError, LossyError, NotFoundError, UnreachableError
from lossy_mlflow.tracking.connection import explained

Say = Callable[[str], None]
"""Called with a line for people to read."""
Progress = Callable[[int, int], None]
"""Called with the bytes that are here, and those that there are."""

_REPORT_S = 0.2


class NotOursError(LossyError):
    """The version has no digest of its files: lossy_mlflow didn't publish it."""


class GoneError(NotFoundError):
    """Files of the version are missing where they were stored."""


def obtain(
    checkpoint: Checkpoint,
    target: Path,
    *,
    replace: bool = False,
    say: Say = lambda _: None,
    progress: Progress | None = None,
) -> bool:
    """See to it that the folder `target` holds the version's files, and nothing else. Whether they had to be fetched.

    Raises NotOursError; GoneError and DamagedError, where the server has other files than were published; ConflictError, where
    `target` holds something else, unless it is to `replace` that; UnreachableError, where the server goes away: what has arrived
    stays for the next time; LossyError, where the disk is full: then nothing stays.
    """
    refuse_not_ours(checkpoint)
    # Beside the target, since only within a file system a rename moves a folder.
    aside = target.parent / f".lossy-{checkpoint.files_sha256[:16]}"
    with _place_explained(target), explained():
        if _is_there(checkpoint, target, replace):
            return False
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone(aside.with_suffix(".lock"), f"{checkpoint.name}/{checkpoint.version}", say):
            if _is_there(checkpoint, target, replace):
                return False
            _fetch_whole(checkpoint, aside, progress)
            if replace:
                shutil.rmtree(target, ignore_errors=True)
            try:
                (aside / "files").rename(target)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
    return True


def refuse_not_ours(checkpoint: Checkpoint) -> None:
    """Raises NotOursError where the version's tag is no digest, with which its files could be compared."""
    if not re.fullmatch(r"[0-9a-f]{64}", checkpoint.files_sha256):
        uri = shlex.quote(checkpoint.uri)
        raise NotOursError(
            f"{checkpoint.uri} was not published by lossy_mlflow: its tag files_sha256 is no digest.",
            "Take it with MLflow's own API, unverified: "
            f"mlflow artifacts download --artifact-uri {uri} --dst-path .    or mlflow.pyfunc.load_model({checkpoint.uri!r})",
        )


def _is_there(checkpoint: Checkpoint, target: Path, replace: bool) -> bool:
    """Whether `target` holds exactly the version. Raises ConflictError where it holds something else that is to stay."""
    # Without that file it is none, and may hold all that somebody owns.
    if (target / "MLmodel").is_file() and files_sha256(target) == checkpoint.files_sha256:
        return True
    if not replace and target.exists() and not (target.is_dir() and not any(target.iterdir())):
        kind = f"holds other files than {checkpoint.uri}" if target.is_dir() else "is a file"
        raise ConflictError(f"{target} {kind}; it stays as it is.", "Name another folder: -o DIR")
    return False


@contextmanager
def _place_explained(target: Path) -> Iterator[None]:
    """A name that is too long, a file where a folder should be, a folder that is a mount of its own."""
    try:
        yield
    except OSError as error:
        raise LossyError(
            f"{target} can't be put into place: {error.strerror}.", "Name another folder."
        ) from error


@contextmanager
def _alone(lock_file: Path, what: str, say: Say) -> Iterator[None]:
    """Hold the lock. Its file goes with its holder: who has waited for it meanwhile sees that, and makes another."""
    import filelock

    # Where no file can be made, filelock would wait for ever, as if another one held it.
    lock_file.touch()
    lock = filelock.FileLock(lock_file)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        say(f"waiting for another process that downloads {what} into {lock_file.parent}")
        lock.acquire()
    try:
        yield
    finally:
        lock_file.unlink(missing_ok=True)
        lock.release()


def _fetch_whole(checkpoint: Checkpoint, aside: Path, progress: Progress | None) -> None:
    """The version's files in `aside`/files, verified; what an earlier attempt has left there is made use of."""
    from mlflow.exceptions import MlflowException
    from requests import RequestException

    taken_up = aside.exists()
    try:
        _fetch(checkpoint, aside, progress)
        if taken_up and files_sha256(aside / "files") != checkpoint.files_sha256:
            # A crash of the machine, say, has left a file that looks whole.
            shutil.rmtree(aside)
            _fetch(checkpoint, aside, progress)
        _verify(checkpoint, aside / "files")
    except (MlflowException, RequestException, UnreachableError):
        raise  # the server's fault: what has arrived is good for the next time
    except Exception:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def _fetch(checkpoint: Checkpoint, aside: Path, progress: Progress | None) -> None:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    with store_explained(checkpoint):
        repository = get_artifact_repository(checkpoint.uri)
        sizes = files_of(repository, checkpoint)
    files, part = aside / "files", aside / "part"
    files.mkdir(parents=True, exist_ok=True)
    n_here, n_all = 0, sum(size or 0 for size in sizes.values())
    for path, size in sizes.items():
        file = files / path
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            part.unlink(missing_ok=True)
            with store_explained(checkpoint), _reported(part, n_here, n_all, progress):
                repository._download_file(path, str(part))
            if size is not None and (arrived := part.stat().st_size) != size:
                raise UnreachableError(
                    f"The tracking server sent {arrived:,} of the {size:,} bytes of {path}.",
                    "Start the same command again: it goes on where it stopped.",
                )
            _to_disk(part)
            part.replace(file)
        n_here += size or 0
    if progress:
        progress(n_all, n_all)


@contextmanager
def _reported(part: Path, before: int, n_all: int, progress: Progress | None) -> Iterator[None]:
    """While the block writes `part`, `progress` hears how far it is: MLflow says nothing until a file is there."""
    if not progress:
        yield
        return
    done = threading.Event()

    def report() -> None:
        while not done.wait(_REPORT_S):
            with contextlib.suppress(FileNotFoundError):
                progress(before + part.stat().st_size, n_all)

    thread = threading.Thread(target=report, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _to_disk(file: Path) -> None:
    with file.open("rb") as stream:
        os.fsync(stream.fileno())


def _verify(checkpoint: Checkpoint, folder: Path) -> None:
    """Raises GoneError where files are missing from what was fetched to `folder`, DamagedError where one is altered."""
    found = files_sha256(folder)
    if found == checkpoint.files_sha256:
        return
    others = f"take another version: lossy checkpoints {shlex.quote(checkpoint.name)}"
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    if missing := sorted(FILES - there):
        which = ", ".join(missing) if there else "all of them"
        raise GoneError(
            f"Files of {checkpoint.uri} are gone, {which}: they are not in {where_they_lie(checkpoint)}",
            f"Put them back there from a backup, or {others}",
        )
    raise DamagedError(
        f"The files of {checkpoint.uri} are not what was published: their digest is {found[:12]}..., "
        f"its tag says {checkpoint.files_sha256[:12]}...",
        f"Put them back from a backup, or {others}",
    )

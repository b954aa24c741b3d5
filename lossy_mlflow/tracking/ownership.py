"""Who works on a label: a lock where processes share a machine, a heartbeat where they don't."""

from __future__ import annotations

import hashlib
import logging
import platform
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock
import platformdirs

from lossy_mlflow.errors import ConflictError, LossyError
from lossy_mlflow.tracking.connection import sqlite_file, without_password
from lossy_mlflow.tracking.identity import HEARTBEAT_EVERY_S

log = logging.getLogger(__name__)

_WAIT = "Wait for it, and start the same command again."


@contextmanager
def _state_folder() -> Iterator[Path]:
    """The folder of locks and of this place's name. Raises LossyError where the block can't make or write what it wants in it."""
    folder = Path(platformdirs.user_state_path("lossy_mlflow"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
    except OSError as error:
        raise LossyError(
            f"Can't write {error.filename or folder}: {error.strerror}. Locks are kept below {folder}.",
            "Name a folder for them that you can write to: export XDG_STATE_HOME=...",
        ) from error


def lock_domain() -> str:
    """The name of the place within which the locks below are seen by all: 'HOST:ID'. ID is drawn once a state folder."""
    with _state_folder() as folder:
        file = folder / "domain"
        if not file.exists():
            # Two processes may get here at once: the first link wins, both read the same.
            mine = file.with_name(f"domain.{uuid.uuid4().hex}")
            mine.write_text(uuid.uuid4().hex[:12])
            try:
                file.hardlink_to(mine)
            except FileExistsError:
                pass
            finally:
                mine.unlink()
        return f"{platform.node()}:{file.read_text()}"


@contextmanager
def label_lock(uri: str, label: str, *, evaluation: str = "", hint: str = _WAIT) -> Iterator[None]:
    """Held while this process trains or imports `label` on the server `uri`, or carries out that `evaluation` of it.

    The kernel frees it when the process dies, however. Raises ConflictError, with `hint`, where another process of this machine
    holds it.
    """
    name = f"{label} evaluation {evaluation}" if evaluation else label
    doing = "evaluated" if evaluation else "trained or imported"
    taken = ConflictError(f"{label} is being {doing} by another process on this machine.", hint)
    with _lock(f"{_without_spelling(uri)}\n{name}", taken):
        yield


@contextmanager
def run_lock(run_id: str, wait_s: float = 0) -> Iterator[None]:
    """Held while this process writes into the run: no spelling of a server's address can split it, as it can a label's lock.

    Raises ConflictError where another process of this machine holds it, and still does after `wait_s` seconds.
    """
    taken = ConflictError(f"The run {run_id} is being written by another process on this machine.", _WAIT)
    with _lock(run_id, taken, wait_s):
        yield


@contextmanager
def _lock(name: str, taken: ConflictError, wait_s: float = 0) -> Iterator[None]:
    with _state_folder() as folder:
        locks = folder / "locks"
        locks.mkdir(exist_ok=True)
        lock = filelock.FileLock(locks / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.lock")
        try:
            lock.acquire(timeout=wait_s)
        except filelock.Timeout:
            raise taken from None
    try:
        yield
    finally:
        lock.release()


def _without_spelling(uri: str) -> str:
    """One text for one server: a database by its real path, an address without its user and its last slash."""
    if file := sqlite_file(uri):
        return str(file.resolve())
    return without_password(uri).rstrip("/")


@contextmanager
def heartbeat(beat: Callable[[], object]) -> Iterator[None]:
    """Calls `beat` every HEARTBEAT_EVERY_S seconds, from a thread of its own, until the end of the block; never after it."""
    over = threading.Event()

    def run() -> None:
        while not over.wait(HEARTBEAT_EVERY_S):
            try:
                beat()
            except Exception:  # a beat that can't be delivered must not end a training
                log.debug("a heartbeat was not delivered", exc_info=True)

    thread = threading.Thread(target=run, name="lossy-heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()

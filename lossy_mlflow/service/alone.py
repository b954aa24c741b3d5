"""One at a time: what reads or changes a server's stores as a whole (backup, restore, upgrade, repair) keeps the others out."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lossy_mlflow.errors import ConflictError, LossyError
from lossy_mlflow.service.database import engine_of
from lossy_mlflow.service.stores import Stores
from lossy_mlflow.tracking.connection import sqlite_file

# Any number that no other program is likely to lock.
_KEY = 0x6C6F737379


@contextmanager
def alone(stores: Stores, doing: str) -> Iterator[None]:
    """Hold the lock of these stores' database. The system, or the database, frees it when its holder dies.

    Raises ConflictError, which says who holds it. A database that isn't there yet needs no lock if it is a file's.
    """
    who = f"lossy {doing} on {socket.gethostname()}, process {os.getpid()}"
    file = sqlite_file(stores.database)
    with _file_locked(file, who) if file else _database_locked(stores.database, who):
        yield


@contextmanager
def _file_locked(database: Path, who: str) -> Iterator[None]:
    import filelock

    # Beside the database, for every program that sees that. It stays: who waits at a file that goes would wait for nothing.
    database = database.resolve()
    lock = filelock.FileLock(database.with_name(f"{database.name}.lossy-lock"))
    holder = database.with_name(f"{database.name}.lossy-lock-holder")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        name = "another program"
        with contextlib.suppress(OSError):
            name = holder.read_text()
        raise _at_work(name) from None
    except OSError as error:
        raise _no_lock(database, error) from error
    try:
        try:
            holder.write_text(who)
        except OSError as error:
            raise _no_lock(database, error) from error
        yield
    finally:
        with contextlib.suppress(OSError):
            holder.unlink(missing_ok=True)
        lock.release()


@contextmanager
def _database_locked(uri: str, who: str) -> Iterator[None]:
    import sqlalchemy

    # 63 characters are what PostgreSQL keeps of a connection's name.
    with engine_of(uri).connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(
            sqlalchemy.text("select set_config('application_name', :who, false)"), {"who": who[:63]}
        )
        if not connection.execute(
            sqlalchemy.text("select pg_try_advisory_lock(:key)"), {"key": _KEY}
        ).scalar():
            holder = connection.execute(
                sqlalchemy.text(
                    "select application_name from pg_locks join pg_stat_activity using (pid)"
                    " where locktype = 'advisory' and granted and (classid::bigint << 32) | objid::bigint = :key"
                ),
                {"key": _KEY},
            ).scalar()
            raise _at_work(holder or "another program")
        yield


def _no_lock(database: Path, error: OSError) -> LossyError:
    return LossyError(
        f"{error.filename or database} can't be written: {error.strerror}. It keeps others from {database} meanwhile.",
        "Start this as the user that the server runs as.",
    )


def _at_work(who: str) -> ConflictError:
    return ConflictError(f"{who} is at work on the same stores.", "Start this again when that has ended.")

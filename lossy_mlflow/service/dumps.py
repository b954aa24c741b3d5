"""A database as one file: taken while others write into it, and put back whole or not at all."""

from __future__ import annotations

import os
import shlex
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import BinaryIO

from lossy_mlflow.errors import LossyError
from lossy_mlflow.service.database import TRACKING_VERSIONS, USERS_VERSIONS, engine_of
from lossy_mlflow.service.postgres import (
    by_hand_postgres,
    check_put_back_postgres,
    dumped_postgres,
    put_back_postgres,
)
from lossy_mlflow.service.private import give_as, make_folder, opener
from lossy_mlflow.tracking.connection import sqlite_file

# In a restored database until all else is restored: which backup it is of.
_TABLE = "lossy_restored"
_LOCKED_FOR_S = 60


def kind_of(uri: str) -> str:
    return "sqlite" if sqlite_file(uri) else "postgresql"


@contextmanager
def dumped(uri: str) -> Iterator[BinaryIO]:
    """The database as a stream: PostgreSQL's tables as pg_dump's custom format, or SQLite's file.

    Raises LossyError, also at the block's end.
    """
    file = sqlite_file(uri)
    with _sqlite_dumped(uri, file) if file else dumped_postgres(uri) as stream:
        yield stream


def rows_in(uri: str) -> dict[str, int]:
    """Which tables have rows, and how many, the schema's own revision left out; nothing where there is no file."""
    import sqlalchemy

    if (file := sqlite_file(uri)) and not (file.exists() and file.stat().st_size):
        return {}
    engine = engine_of(uri)
    found = {}
    with engine.connect() as connection:
        for name in sqlalchemy.inspect(engine).get_table_names():
            if name not in (TRACKING_VERSIONS, USERS_VERSIONS):
                rows = sqlalchemy.select(sqlalchemy.func.count()).select_from(sqlalchemy.table(name))
                found[name] = int(connection.execute(rows).scalar_one())
    return {name: count for name, count in found.items() if count}


def restored_from(uri: str) -> str | None:
    """The backup that the database was restored from, until that restore is through with everything; else None."""
    import sqlalchemy

    if (file := sqlite_file(uri)) and not (file.exists() and file.stat().st_size):
        return None
    engine = engine_of(uri)
    if not sqlalchemy.inspect(engine).has_table(_TABLE):
        return None
    with engine.connect() as connection:
        found = connection.execute(sqlalchemy.text(f"select backup from {_TABLE}")).scalar()  # noqa: S608
        return str(found)


def forget_restore(uri: str) -> None:
    """After this nothing in the database tells of a restore."""
    import sqlalchemy

    with engine_of(uri).begin() as connection:
        connection.execute(sqlalchemy.text(f"drop table if exists {_TABLE}"))


def put_back(uri: str, dump: Path, backup: str | None = None) -> None:
    """The database becomes what `dump` holds, whole or not at all, whatever was in it. `backup`: what `restored_from` then gives.

    With `backup` it may be another server's: owners and rights on its tables are this user's then. Raises LossyError.
    """
    if file := sqlite_file(uri):
        _put_back_sqlite(file, dump, backup)
        return
    # A backup's name is letters and digits.
    note = f"create table {_TABLE} as select '{backup}' as backup;" if backup is not None else ""
    put_back_postgres(uri, dump, note, anyones=backup is not None)


def check_put_back(uri: str, dump: Path) -> None:
    """Raises ConflictError where `dump` couldn't be put back, before anything is changed."""
    if not sqlite_file(uri):
        check_put_back_postgres(uri, dump)


def by_hand(uri: str, dump: Path) -> str:
    """The commands that put it back without `put_back`."""
    if file := sqlite_file(uri):
        return f"cp {shlex.quote(str(dump))} {shlex.quote(str(file))}"
    return by_hand_postgres(uri, dump)


# SQLite


@contextmanager
def _sqlite_dumped(uri: str, file: Path) -> Iterator[BinaryIO]:
    engine_of(uri)  # says so where there is none
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "copy.db")
        try:
            with (
                closing(sqlite3.connect(file, timeout=_LOCKED_FOR_S)) as source,
                closing(sqlite3.connect(copy)) as target,
            ):
                # In one step: in several, each write of another program in between would start it anew, for ever.
                source.backup(target, pages=-1)
        except sqlite3.Error as error:
            raise LossyError(
                f"The database {file} can't be copied to {folder}: {error}.",
                "Free some space there, or name another folder for such files: export TMPDIR=...",
            ) from error
        with copy.open("rb") as stream:
            yield stream


def _put_back_sqlite(file: Path, dump: Path, backup: str | None) -> None:
    # A link stays one, to the new file.
    file = file.resolve()
    part = file.with_name(f"{file.name}.lossy-part")
    try:
        make_folder(file.parent)
        with dump.open("rb") as source, open(part, "wb", opener=opener) as copy:
            shutil.copyfileobj(source, copy, 1 << 20)
        if file.exists():
            give_as(file, part)
        if backup is not None:
            with closing(sqlite3.connect(part)) as connection, connection:
                connection.execute(f"drop table if exists {_TABLE}")
                connection.execute(f"create table {_TABLE} (backup text)")
                connection.execute(f"insert into {_TABLE} values (?)", [backup])  # noqa: S608
        with part.open("rb+") as stream:
            os.fsync(stream.fileno())
        # They would be taken for the new file's.
        for ending in ("-journal", "-wal", "-shm"):
            file.with_name(file.name + ending).unlink(missing_ok=True)
        part.replace(file)
    except sqlite3.Error as error:
        raise LossyError(f"The database {file} can't be written: {error}.") from error
    except OSError as error:
        raise LossyError(
            f"The database {file} can't be written: {error.strerror}.",
            "Free some space, start this as the user that the server runs as, or name another file.",
        ) from error
    finally:
        part.unlink(missing_ok=True)

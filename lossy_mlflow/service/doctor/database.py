"""A database that is used without a server: whether it is there, of this MLflow's schema, writable. It isn't made by looking."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shlex
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from lossy_mlflow.errors import ConflictError, LossyError, UnreachableError, UsageError
from lossy_mlflow.service.database import Schema, revision_of, standing
from lossy_mlflow.service.doctor.machine import room_of
from lossy_mlflow.service.doctor.report import Book, Seen, State
from lossy_mlflow.service.folder import nearest_there

_BEHIND = ("schema", "writable")
_BUSY_S = 3
_ELSEWHERE = (
    "Work in a folder you can write to, or set MLFLOW_TRACKING_URI=sqlite:////ABSOLUTE/PATH/mlflow.db"
)


def look_at_database(book: Book, uri: str) -> None:
    from lossy_mlflow.tracking.connection import sqlite_file

    if not book.look("server", lambda: _address(uri)):
        book.skip(("database", *_BEHIND), "the address can't be read")
        return
    # Whatever driver is named: others than Python's own would make the file by looking.
    if file := sqlite_file(re.sub(r"^sqlite\+\w+:", "sqlite:", uri)):
        file = file.absolute()
        if not book.look("database", lambda: _file(file)):
            book.skip(_BEHIND, "there is no database that can be read")
            return
        if not file.exists():
            book.skip(("schema",), "there is no database yet")
            book.look("writable", lambda: _folder(file.parent))
            return
        book.look("schema", lambda: _schema(_revision_of_file(file), uri))
        book.look("writable", lambda: _writable(file))
        return
    # A driver's own limit is longer than that of the other checks.
    if not book.look("database", lambda: _reached(uri), within_s=15, silence=UnreachableError):
        book.skip(("schema",), "the database can't be reached")
        return
    book.look("schema", lambda: _schema(revision_of(uri), uri), silence=UnreachableError)


def _address(uri: str) -> Seen:
    from lossy_mlflow.tracking.connection import ADDRESSES, DATABASES, without_password

    scheme = uri.partition(":")[0].partition("+")[0]
    if scheme not in DATABASES:
        raise UsageError(
            f"{without_password(uri)} is neither a server's address nor a database's: MLflow keeps runs in folders no more"
            if scheme == "file" or uri.startswith((".", "/"))
            else f"{without_password(uri)} is of no kind that is known here",
            ADDRESSES,
        )
    named = bool(os.environ.get("MLFLOW_TRACKING_URI"))
    said = "MLFLOW_TRACKING_URI" if named else "MLFLOW_TRACKING_URI isn't set"
    return Seen(State.OK, f"none: runs go to the database {without_password(uri)} ({said})")


def _file(file: Path) -> Seen:
    if not file.exists():
        return Seen(State.OK, f"{file} isn't there yet; the first run makes it")
    if not file.is_file():
        raise LossyError(f"{file} is no file", _ELSEWHERE)
    _tables(file)
    return Seen(State.OK, f"{file}, {file.stat().st_size / 1e6:.1f} MB")


def _tables(file: Path) -> set[str]:
    return {str(name) for (name,) in _read(file, "select name from sqlite_master where type = 'table'")}


def _revision_of_file(file: Path) -> str | None:
    if "alembic_version" not in _tables(file):
        return None
    return next((str(name) for (name,) in _read(file, "select version_num from alembic_version")), None)


def _read(file: Path, query: str) -> list[tuple[object, ...]]:
    try:
        with closing(sqlite3.connect(_uri(file, "ro"), uri=True, timeout=_BUSY_S)) as connection:
            return connection.execute(query).fetchall()
    except sqlite3.DatabaseError as error:
        raise _explained(file, error) from None


def _writable(file: Path) -> Seen:
    # A journal is made beside the file.
    folder = _folder(file.parent)
    try:
        with closing(
            sqlite3.connect(_uri(file, "rw"), uri=True, timeout=_BUSY_S, isolation_level=None)
        ) as connection:
            # The right to write, given back without writing.
            connection.execute("begin immediate")
            connection.execute("rollback")
    except sqlite3.DatabaseError as error:
        raise _explained(file, error) from None
    return folder


def _explained(file: Path, error: sqlite3.DatabaseError) -> LossyError:
    if "locked" in str(error):
        return UnreachableError(f"{file} is locked by another program ({_BUSY_S} s)", "Try again.")
    if "not a database" in str(error):
        return ConflictError(f"{file} is not an SQLite database", f"Move it away. {_ELSEWHERE}")
    return LossyError(f"{file} can't be opened or written: {error}", _ELSEWHERE)


def _folder(folder: Path) -> Seen:
    there = nearest_there(folder)
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise LossyError(f"{there} can't be written", _ELSEWHERE)
    return room_of(folder)


def _uri(file: Path, mode: str) -> str:
    return f"file:{quote(str(file))}?mode={mode}"


def _reached(uri: str) -> Seen:
    from lossy_mlflow.tracking.connection import check_database

    check_database(uri)
    return Seen(State.OK, "there, and it lets this user in")


def _schema(revision: str | None, uri: str) -> Seen:
    schema, version = standing(revision), importlib.metadata.version("mlflow")
    if schema is Schema.EMPTY:
        return Seen(State.OK, "no tables of MLflow's yet; the first run makes them")
    if schema is Schema.CURRENT:
        return Seen(State.OK, f"as MLflow {version} has it")
    if schema is Schema.OLDER:
        raise ConflictError(
            f"older than MLflow {version} has it",
            f"Back the database up, then: mlflow db upgrade {shlex.quote(uri)}",
        )
    raise ConflictError(
        f"MLflow {version} doesn't know it: a newer MLflow has written it",
        "Upgrade MLflow here: pip install -U mlflow",
    )

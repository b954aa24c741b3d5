"""A database as one file: taken while others write into it, and put back whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, BinaryIO, cast

from lossy_mlflow.errors import ConflictError, LossyError, UnreachableError
from lossy_mlflow.service.database import TRACKING_VERSIONS, USERS_VERSIONS, engine_of
from lossy_mlflow.tracking.connection import sqlite_file, without_password

# In a restored database until all else is restored: which backup it is of.
_TABLE = "lossy_restored"
_LOCKED_FOR_S = 60


def kind_of(uri: str) -> str:
    return "sqlite" if sqlite_file(uri) else "postgresql"


@contextmanager
def dumped(uri: str) -> Iterator[BinaryIO]:
    """The database as a stream: pg_dump's custom format, or SQLite's file. Raises LossyError, also at the block's end."""
    file = sqlite_file(uri)
    with _sqlite_dumped(uri, file) if file else _postgres_dumped(uri) as stream:
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
    else:
        _put_back_postgres(uri, dump, backup)


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
    part = file.with_name(f"{file.name}.lossy-part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(dump, part)
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
            "Free some space, or name another file.",
        ) from error
    finally:
        part.unlink(missing_ok=True)


# PostgreSQL

_DROP_ALL = """
do $$ declare it record; begin
  for it in select n.nspname, c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where c.relkind in ('r', 'p') and n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
      and not exists (select from pg_depend d where d.objid = c.oid and d.deptype = 'e')
  loop execute format('drop table if exists %I.%I cascade', it.nspname, it.relname); end loop;
end $$;
"""


@contextmanager
def _postgres_dumped(uri: str) -> Iterator[BinaryIO]:
    address, environment = postgres_client(uri)
    with (
        tempfile.TemporaryFile() as errors,
        _started(
            ["pg_dump", "-Fc", "--no-password", "-d", address],
            environment,
            stdout=subprocess.PIPE,
            stderr=errors,
        ) as process,
    ):
        assert process.stdout
        yield cast(BinaryIO, process.stdout)
        if process.wait() != 0:
            raise _failed("pg_dump", uri, errors)


def _put_back_postgres(uri: str, dump: Path, backup: str | None) -> None:
    """One transaction, which is committed only after pg_restore has given all: who is killed in the middle changes nothing."""
    address, environment = postgres_client(uri)
    anyones = ["--no-owner", "--no-privileges"] if backup is not None else []
    with (
        tempfile.TemporaryFile() as errors,
        _started(
            ["psql", "-X", "-q", "--no-password", "-v", "ON_ERROR_STOP=1", "-d", address],
            environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=errors,
        ) as psql,
        _started(
            ["pg_restore", *anyones, "-f", "-", str(dump)], environment, stdout=subprocess.PIPE, stderr=errors
        ) as script,
    ):
        assert psql.stdin
        assert script.stdout
        # Where psql has ended, it says why.
        with contextlib.suppress(BrokenPipeError):
            psql.stdin.write(b"begin;\n" + _DROP_ALL.encode())
            shutil.copyfileobj(script.stdout, psql.stdin, 1 << 20)
            if script.wait() == 0:
                if backup is not None:
                    # A backup's name is letters and digits.
                    psql.stdin.write(
                        f"create table public.{_TABLE} as select '{backup}'::text as backup;\n".encode()
                    )
                psql.stdin.write(b"commit;\n")
        with contextlib.suppress(BrokenPipeError):
            psql.stdin.close()
        script.stdout.close()
        if script.wait() != 0 or psql.wait() != 0:
            raise _failed("pg_restore", uri, errors)


@contextmanager
def _started(
    command: list[str],
    environment: dict[str, str],
    stdin: int = subprocess.DEVNULL,
    stdout: int = subprocess.PIPE,
    stderr: IO[bytes] | int = subprocess.DEVNULL,
) -> Iterator[subprocess.Popen[bytes]]:
    """The process, which ends with the block."""
    try:
        process = subprocess.Popen(
            command, stdin=stdin, stdout=stdout, stderr=stderr, env=os.environ | environment
        )
    except FileNotFoundError:
        raise LossyError(
            f"{command[0]} is not installed here: it comes with PostgreSQL's client.",
            "apt-get install postgresql-client    (of the server's version, or newer)",
        ) from None
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream:
                with contextlib.suppress(OSError):
                    stream.close()


def postgres_client(uri: str) -> tuple[str, dict[str, str]]:
    """The address as PostgreSQL's own programs take it, without the password, and the variables that hold that.

    Other users of the machine can read a process's arguments.
    """
    import sqlalchemy

    url = sqlalchemy.make_url(uri)
    secrets = {"password": "PGPASSWORD", "sslpassword": "PGSSLPASSWORD"}
    query = {name: value for name, value in url.query.items() if name not in secrets}
    environment = {secrets[name]: str(value) for name, value in url.query.items() if name in secrets}
    if url.password is not None:
        environment["PGPASSWORD"] = str(url.password)
    plain = sqlalchemy.URL.create("postgresql", url.username, None, url.host, url.port, url.database, query)
    return plain.render_as_string(hide_password=False), environment


def _failed(program: str, uri: str, errors: IO[bytes]) -> LossyError:
    errors.seek(0)
    lines = [line for line in errors.read().decode(errors="replace").splitlines() if line.strip()]
    words = without_password(" ".join(lines[:2])) or "it was killed"
    shown = without_password(uri)
    if "version mismatch" in words:
        return ConflictError(
            f"{program} is older than the server of {shown}: {words}",
            "Install the client of the server's version.",
        )
    if "connection to server" in words or "could not connect" in words:
        return UnreachableError(
            f"{program} can't reach {shown}: {words}", "Start the server, check its address."
        )
    return LossyError(f"{program} failed for {shown}: {words}", "Look at the server's log.")

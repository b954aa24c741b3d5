"""A PostgreSQL database by the server's own programs, pg_dump, pg_restore and psql: its tables as a stream, and put back.

What is MLflow's are the tables of the schema that its connections look into first. All else (other schemas, functions,
extensions) is somebody else's: it isn't dumped, and stays as it is when the tables are put back.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO, cast

from lossy_mlflow.errors import ConflictError, LossyError, UnreachableError
from lossy_mlflow.service.database import engine_of
from lossy_mlflow.tracking.connection import without_password

# An extension's are that one's. Quoted, they are patterns for pg_dump that match themselves alone.
_TABLES = """
    select '"' || replace(n.nspname, '"', '""') || '"."' || replace(c.relname, '"', '""') || '"' as name
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where n.nspname = current_schema() and c.relkind in ('r', 'p') and not exists (
      select from pg_depend d where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'e'
    )
"""
# All in one statement: they refer to each other. What somebody else has built on them is not to go with them: then it fails.
_DROP_TABLES = f"""
do $$ declare names text := (select string_agg(name, ', ') from ({_TABLES}) as tables); begin
  if names is not null then execute 'drop table ' || names; end if;
end $$;
"""  # noqa: S608


@contextmanager
def postgres_dumped(uri: str) -> Iterator[BinaryIO]:
    """Its tables in pg_dump's custom format. Raises LossyError, also at the block's end."""
    import sqlalchemy

    with engine_of(uri).connect() as connection:
        names = [name for (name,) in connection.execute(sqlalchemy.text(_TABLES))]
    # Without a name it would be everything.
    which = [f"--table={name}" for name in names] or ["--section=data", "--no-blobs", "--exclude-table=*"]
    address, environment = postgres_client(uri)
    with (
        tempfile.TemporaryFile() as errors,
        _started(
            ["pg_dump", "-Fc", *which, "--no-password", "-d", address],
            environment,
            stdout=subprocess.PIPE,
            stderr=errors,
        ) as process,
    ):
        assert process.stdout
        yield cast(BinaryIO, process.stdout)
        if process.wait() != 0:
            raise _failed("pg_dump", uri, errors)


def put_back_postgres(uri: str, dump: Path, afterwards: str = "", *, anyones: bool = False) -> None:
    """Its tables become those of `dump`, with the statement `afterwards`. `anyones`: of another server perhaps, so that this user
    owns them, and what they were published by isn't looked for.

    One transaction, which is committed only after pg_restore has given all: who is killed in the middle changes nothing.
    Raises LossyError.
    """
    address, environment = postgres_client(uri)
    without = ["owner", "privileges", "tablespaces", "publications", "security-labels"] if anyones else []
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
            ["pg_restore", *(f"--no-{word}" for word in without), "-f", "-", str(dump)],
            environment,
            stdout=subprocess.PIPE,
            stderr=errors,
        ) as script,
    ):
        assert psql.stdin
        assert script.stdout
        # Where psql has ended, it says why.
        with contextlib.suppress(BrokenPipeError):
            psql.stdin.write(b"begin;\n" + _DROP_TABLES.encode())
            shutil.copyfileobj(script.stdout, psql.stdin, 1 << 20)
            if script.wait() == 0:
                psql.stdin.write(f"reset search_path;\n{afterwards}\ncommit;\n".encode())
        with contextlib.suppress(BrokenPipeError):
            psql.stdin.close()
        script.stdout.close()
        if script.wait() != 0 or psql.wait() != 0:
            raise _failed("pg_restore", uri, errors)


# Before anything is begun


def check_can_dump(uri: str) -> None:
    """Raises ConflictError where pg_dump is older than the server, which it refuses, LossyError where it isn't installed."""
    ours, theirs = _major_here("pg_dump"), _major_of(uri)
    if ours < theirs:
        raise _wrong_version("pg_dump", ours, uri, theirs)


def check_can_load(uri: str) -> None:
    """Raises ConflictError where pg_restore is newer than the server: it says what an older one doesn't understand."""
    theirs = _major_of(uri)
    for program in ("pg_restore", "psql"):
        if (ours := _major_here(program)) > theirs:
            raise _wrong_version(program, ours, uri, theirs)


def check_readable(dump: Path, uri: str) -> None:
    """Raises LossyError where the pg_restore that is installed here can't read the dump, which a newer pg_dump may have made."""
    with (
        tempfile.TemporaryFile() as errors,
        _started(
            ["pg_restore", "--list", str(dump)], {}, stdout=subprocess.DEVNULL, stderr=errors
        ) as process,
    ):
        if process.wait() != 0:
            raise _failed("pg_restore", uri, errors)


def check_nothing_is_built_on(uri: str) -> None:
    """Raises ConflictError where the tables can't be put back, since something that isn't MLflow's (a view) needs them."""
    import sqlalchemy
    from sqlalchemy.exc import DBAPIError

    with engine_of(uri).connect() as connection, connection.begin() as tried:
        try:
            connection.execute(sqlalchemy.text(_DROP_TABLES))
        except DBAPIError as error:
            found = re.findall(r"^(?:DETAIL: +)?(.+ depends on .+)$", str(error.orig), re.MULTILINE)
            words = "; ".join(found[:3]) or str(error.orig).splitlines()[0]
            raise ConflictError(
                f"The tables of {without_password(uri)} couldn't be put back if that were needed: {words}.",
                "Drop what isn't MLflow's, and make it again afterwards.",
            ) from error
        finally:
            tried.rollback()


def _major_here(program: str) -> int:
    with _started([program, "--version"], {}) as process:
        assert process.stdout
        said = process.stdout.read().decode(errors="replace")
    found = re.search(r"\) (\d+)", said)
    if not found:
        raise LossyError(f"{program} --version doesn't say which it is: {said.strip()!r}.", _INSTALL)
    return int(found[1])


def _major_of(uri: str) -> int:
    with engine_of(uri).connect() as connection:
        return int(connection.exec_driver_sql("show server_version_num").scalar_one()) // 10000


def _wrong_version(program: str, ours: int, uri: str, theirs: int) -> ConflictError:
    return ConflictError(
        f"{program} is of version {ours}, and the server of {without_password(uri)} is {theirs}.",
        f"Take the server's own: apt-get install postgresql-client-{theirs}"
        f" && export PATH=/usr/lib/postgresql/{theirs}/bin:$PATH",
    )


_INSTALL = "apt-get install postgresql-client    (of the server's own version)"


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
            f"{command[0]} is not installed here: it comes with PostgreSQL's client.", _INSTALL
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

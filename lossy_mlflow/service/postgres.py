"""A PostgreSQL database as a dump of MLflow's tables, by PostgreSQL's own programs, and put back from it.

A dump holds the schema that MLflow works in; put back are its tables, and what belongs to them. Whatever else somebody has made
in the database, schemas, functions, extensions, is not touched.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
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

# In one statement, and not by "cascade": what others have made of the tables would go, and not come back. Of functions those go
# that the tables' triggers call.
_DROP = """
do $$ declare tables text; sequences text; functions text; begin
  create temporary table its_own on commit drop as
    select c.oid, c.relkind as kind, quote_ident(n.nspname) || '.' || quote_ident(c.relname) as name
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where n.nspname = current_schema() and c.relkind in ('r', 'p', 'S') and not exists (
      select from pg_depend d where d.classid = cast('pg_class' as regclass) and d.objid = c.oid and d.deptype = 'e'
    );
  select string_agg(name, ', ') into tables from its_own where kind <> 'S';
  select string_agg(distinct quote_ident(n.nspname) || '.' || quote_ident(p.proname) || '()', ', ') into functions
    from pg_trigger t join pg_proc p on p.oid = t.tgfoid join pg_namespace n on n.oid = p.pronamespace
    where t.tgrelid in (select oid from its_own) and not t.tgisinternal and n.nspname = current_schema();
  if tables is not null then execute 'drop table ' || tables; end if;
  if functions is not null then execute 'drop function ' || functions; end if;
  select string_agg(name, ', ') into sequences from its_own join pg_class using (oid) where kind = 'S';
  if sequences is not null then execute 'drop sequence ' || sequences; end if;
end $$;
"""
# What of a dump's list is put back: all that belongs to tables, in the words of pg_restore --list.
_OF_TABLES = re.compile(
    r"\d+; \d+ \d+ (TABLE DATA|TABLE ATTACH|TABLE|SEQUENCE SET|SEQUENCE OWNED BY|SEQUENCE|DEFAULT|CONSTRAINT"
    r"|FK CONSTRAINT|CHECK CONSTRAINT|INDEX ATTACH|INDEX|TRIGGER|RULE|POLICY|ROW SECURITY|STATISTICS"
    r"|(?:ACL|COMMENT)(?= \S+ (?:TABLE|COLUMN|SEQUENCE|INDEX|CONSTRAINT|TRIGGER) )) (\S+) "
)
_LOCKED_FOR_S = 20


def check_client(uri: str, *, puts_back: bool) -> None:
    """Raises LossyError where PostgreSQL's programs aren't installed, ConflictError where they are of the wrong version.

    They read older servers than themselves. What they write may have settings that an older server doesn't know.
    """
    with engine_of(uri).connect() as connection:
        server = int(connection.exec_driver_sql("show server_version_num").scalar_one()) // 10000
    for program in ("pg_dump", "pg_restore", "psql") if puts_back else ("pg_dump",):
        client = _major(program)
        if client < server or (puts_back and client != server):
            raise ConflictError(
                f"{program} here is of PostgreSQL {client}, and the server of {without_password(uri)} of {server}.",
                f"apt-get install postgresql-client-{server}    and if both are there: export"
                f" PATH=/usr/lib/postgresql/{server}/bin:$PATH",
            )


def _major(program: str) -> int:
    with _started([program, "--version"], {}) as process:
        assert process.stdout
        said = process.stdout.read().decode(errors="replace")
    found = re.search(r"\) (\d+)", said)
    if found is None:
        raise LossyError(f"{program} --version says {said.strip()!r}, and no version.")
    return int(found[1])


@contextmanager
def dumped_postgres(uri: str) -> Iterator[BinaryIO]:
    """pg_dump's custom format, as a stream. Raises LossyError, also at the block's end."""
    address, environment = postgres_client(uri)
    schema = _schema_of(uri).replace('"', '""')
    with (
        tempfile.TemporaryFile() as errors,
        _started(
            [
                *("pg_dump", "-Fc", f'--schema="{schema}"', "--no-publications", "--no-security-labels"),
                *("--no-password", "-d", address),
            ],
            environment,
            stderr=errors,
        ) as process,
    ):
        assert process.stdout
        yield cast(BinaryIO, process.stdout)
        if process.wait() != 0:
            raise _failed("pg_dump", uri, errors)


def check_put_back_postgres(uri: str, dump: Path) -> None:
    """Raises ConflictError where the dump couldn't be put back, before anything is changed."""
    _listed(uri, dump)
    _check_droppable(uri)


def _listed(uri: str, dump: Path) -> list[str]:
    """The lines of the dump's list that are put back."""
    lines = _said(["pg_restore", "--list", str(dump)], uri).splitlines()
    schema = _schema_of(uri)
    others = {match[2] for line in lines if (match := _OF_TABLES.match(line))} - {schema}
    if others:
        raise ConflictError(
            f"The backup has its tables in the schema {min(others)}, and {without_password(uri)} works in {schema}.",
            "Name a database whose search_path begins with that schema.",
        )
    triggers = _said(["pg_restore", "--section=post-data", "-f", "-", str(dump)], uri)
    functions = re.findall(r"^CREATE .*TRIGGER .* EXECUTE FUNCTION (.+?)\(.*\);$", triggers, re.MULTILINE)
    called = [f" FUNCTION {name.replace('.', ' ', 1).replace(chr(34), '')}() " for name in functions]
    # In the list's own order, in which they are restored.
    return [line for line in lines if _OF_TABLES.match(line) or any(words in line for words in called)]


def _said(command: list[str], uri: str) -> str:
    with tempfile.TemporaryFile() as errors, _started(command, {}, stderr=errors) as process:
        assert process.stdout
        said = process.stdout.read()
        if process.wait() != 0:
            raise _failed(command[0], uri, errors)
    return said.decode(errors="surrogateescape")


def _schema_of(uri: str) -> str:
    with engine_of(uri).connect() as connection:
        return str(connection.exec_driver_sql("select current_schema()").scalar_one())


def _check_droppable(uri: str) -> None:
    """By doing it, and taking it back."""
    from sqlalchemy.exc import DBAPIError

    with engine_of(uri).connect() as connection:
        try:
            connection.exec_driver_sql(f"set local lock_timeout = '{_LOCKED_FOR_S}s'")
            connection.exec_driver_sql(_DROP)
        except DBAPIError as error:
            lines = [
                line for line in str(error.orig).splitlines() if not line.startswith(("HINT", "CONTEXT"))
            ]
            raise ConflictError(
                f"The tables of {without_password(uri)} can't be put back if something fails: {' '.join(lines[:4])}",
                "What others have made of MLflow's tables: drop it, and make it again afterwards.",
            ) from error
        finally:
            connection.rollback()


def put_back_postgres(uri: str, dump: Path, note: str, *, anyones: bool) -> None:
    """One transaction, which is committed only after pg_restore has given all: who is killed in the middle changes nothing.

    `note`: a statement that belongs to it. `anyones`: owners, rights and tablespaces are not those of the dump.
    """
    address, environment = postgres_client(uri)
    options = ["--no-owner", "--no-privileges", "--no-tablespaces"] if anyones else []
    lines = _listed(uri, dump)
    schema = _schema_of(uri).replace('"', '""')
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as errors:
        chosen = Path(folder, "list")
        chosen.write_text("".join(f"{line}\n" for line in lines), errors="surrogateescape")
        with (
            _started(
                ["psql", "-X", "-q", "--no-password", "-v", "ON_ERROR_STOP=1", "-d", address],
                environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            ) as psql,
            _started(
                ["pg_restore", *options, "-L", str(chosen), "-f", "-", str(dump)], environment, stderr=errors
            ) as script,
        ):
            assert psql.stdin
            assert script.stdout
            # Where psql has ended, it says why.
            with contextlib.suppress(BrokenPipeError):
                psql.stdin.write(b"begin;\n" + _DROP.encode())
                shutil.copyfileobj(script.stdout, psql.stdin, 1 << 20)
                if script.wait() == 0:
                    psql.stdin.write(f'set search_path to "{schema}";\n{note}\ncommit;\n'.encode())
            with contextlib.suppress(BrokenPipeError):
                psql.stdin.close()
            script.stdout.close()
            if script.wait() != 0 or psql.wait() != 0:
                raise _failed("pg_restore", uri, errors)


def by_hand_postgres(uri: str, dump: Path) -> str:
    """The commands that put the dump into a new database, whatever is in the way in this one."""
    import sqlalchemy

    address = postgres_client(uri)[0]
    url = sqlalchemy.make_url(address)
    other = url.set(database=f"{url.database}_before").render_as_string(hide_password=False)
    make = f'create database "{url.database}_before"'
    # A new database has that schema already.
    schema = (
        ["--schema=public"] if " TABLE public " in _said(["pg_restore", "--list", str(dump)], uri) else []
    )
    commands = (
        ["psql", "-d", address, "-c", make],
        ["pg_restore", "--no-owner", *schema, "-d", other, str(dump)],
    )
    return f"{' && '.join(map(shlex.join, commands))}    then name that one: --backend-store-uri {other}"


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
            "apt-get install postgresql-client    (of the server's version)",
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
    words = without_password(" ".join(lines[:3])) or "it was killed"
    shown = without_password(uri)
    if "connection to server" in words or "could not connect" in words:
        return UnreachableError(
            f"{program} can't reach {shown}: {words}", "Start the server, check its address."
        )
    return LossyError(f"{program} failed for {shown}: {words}", "Look at the server's log.")

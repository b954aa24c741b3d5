"""A real PostgreSQL server on a free port, in a folder of its own."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import free_port

PASSWORD = "postgres-secret-of-the-tests"  # noqa: S105


@dataclass(frozen=True)
class Postgres:
    """`run(program, *arguments)` runs one of the server's own programs as its user."""

    port: int
    folder: Path
    programs: Path

    def uri(self, database: str) -> str:
        return f"postgresql://mlflow:{PASSWORD}@127.0.0.1:{self.port}/{database}"

    def create(self, database: str, template: str = "template1") -> str:
        """A new database, a copy of `template`: its URI."""
        self.sql(f'create database "{database}" template "{template}"')
        return self.uri(database)

    def sql(self, statement: str, database: str = "postgres") -> str:
        """What the statement gives, a row a line."""
        address = ["-h", "127.0.0.1", "-p", str(self.port), "-U", "mlflow", "-d", database]
        return subprocess.run(
            [
                str(self.programs / "psql"),
                *address,
                "-X",
                "-q",
                "-A",
                "-t",
                "-v",
                "ON_ERROR_STOP=1",
                "-c",
                statement,
            ],
            env=os.environ | {"PGPASSWORD": PASSWORD},
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    def start(self, options: str = "") -> None:
        settings = (
            f"-c listen_addresses=127.0.0.1 -p {self.port} -c unix_socket_directories={self.folder}"
            f" -c fsync=off -c shared_buffers=32MB {options}"
        )
        self._run("pg_ctl", "-w", "-t", "30", "-l", str(self.folder / "log"), "-o", settings, "start")

    def stop(self, mode: str = "fast") -> None:
        self._run("pg_ctl", "-m", mode, "-w", "stop")

    def runs(self) -> bool:
        status = [*_as_postgres(), str(self.programs / "pg_ctl"), "-D", str(self.folder), "status"]
        return subprocess.run(status, stdout=subprocess.DEVNULL, cwd="/").returncode == 0

    @property
    def pid(self) -> int:
        """The server's first process."""
        return int((self.folder / "postmaster.pid").read_text().split()[0])

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self.programs / program), "-D", str(self.folder), *arguments]
        subprocess.run([*_as_postgres(), *command], check=True, stdout=subprocess.DEVNULL, cwd="/")


@contextmanager
def start_postgres(below: Path | None = None) -> Iterator[Postgres]:
    """`below`: the folder that its own is made in, which its user may enter; None: that of temporary files."""
    programs = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)
    if programs is None:
        pytest.skip("needs PostgreSQL: apt-get install postgresql")
    # Not in pytest's folder, which the server's user may not enter.
    folder = Path(tempfile.mkdtemp(prefix="lossy-postgres-", dir=below))
    password = folder.with_suffix(".password")
    try:
        password.write_text(PASSWORD)
        if os.geteuid() == 0:
            user = pwd.getpwnam("postgres")
            for path in (folder, password):
                os.chown(path, user.pw_uid, user.pw_gid)
        server = Postgres(free_port(), folder, programs)
        server._run(
            "initdb", "-U", "mlflow", f"--pwfile={password}", "-A", "scram-sha-256", "-E", "UTF8",
            "--locale=C.UTF-8", "--no-sync",
        )  # fmt: skip
        server.start()
        try:
            yield server
        finally:
            server.stop("immediate")
    finally:
        password.unlink()
        shutil.rmtree(folder)


def _as_postgres() -> list[str]:
    return ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []

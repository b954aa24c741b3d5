"""Real stores of a server: a folder, SQLite, PostgreSQL, S3."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import pytest
import requests

from lossy_mlflow.cli import main
from lossy_mlflow.cli.app import app
from lossy_mlflow.service.stores import Stores
from tests.conftest import Workplace
from tests.service.filled import Done, Filled, Places, fill
from tests.service.kept import Kept, at_home, keep_postgres, keep_sqlite, kept_in
from tests.service.people import Belongings, Guarded, furnish, own_stores, start_guarded
from tests.services.lossy_serve import Served, start_lossy_serve
from tests.services.nginx import start_nginx
from tests.services.postgres import PASSWORD, Postgres, start_postgres
from tests.services.seaweedfs import BUCKET, SeaweedFS, start_seaweedfs


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server for all tests of the process."""
    with start_postgres() as server:
        yield server


@pytest.fixture(scope="session")
def migrated_postgres(postgres: Postgres) -> str:
    """The name of a database with MLflow's tables and none of its rows, to be copied: migrating takes seconds."""
    uri = postgres.create("migrated")
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    store = SqlAlchemyStore(uri, "mlflow-artifacts:/")
    # A template must not be in use.
    store.engine.dispose()
    return "migrated"


@pytest.fixture
def postgres_uri(postgres: Postgres, migrated_postgres: str) -> str:
    """A migrated database of the test's own."""
    return postgres.create(f"t{uuid.uuid4().hex[:12]}", template=migrated_postgres)


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedFS]:
    """An S3 server for all tests of the process."""
    with start_seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as server:
        yield server


@pytest.fixture
def s3_uri(seaweedfs: SeaweedFS, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty place in it, of the test's own; the test's own process has the keys."""
    for name, value in seaweedfs.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{uuid.uuid4().hex[:12]}"


_ADMIN_PASSWORD = "admin-secret-of-the-tests"  # noqa: S105
_KEY = "key-secret-of-the-tests-0123456789abcdefg"


@dataclass(frozen=True)
class Team:
    """A team's server: PostgreSQL, S3, members with passwords, several workers at a socket, TLS in front.

    `database`, `artifacts`: its stores. `secrets`: what nobody may see. `served`: its processes and its log.
    """

    uri: str
    database: str
    artifacts: str
    certificate: Path
    socket: Path
    secrets: tuple[str, ...]
    served: Served

    def member(self, name: str = "admin", password: str = "") -> dict[str, str]:
        """The environment of a client who signs in; an admin, if nothing is said."""
        return {
            "MLFLOW_TRACKING_URI": self.uri,
            "MLFLOW_TRACKING_SERVER_CERT_PATH": str(self.certificate),
            "MLFLOW_TRACKING_USERNAME": name,
            "MLFLOW_TRACKING_PASSWORD": password or _ADMIN_PASSWORD,
        }

    def ask(
        self,
        method: str,
        path: str,
        auth: tuple[str, str] | None = ("admin", _ADMIN_PASSWORD),
        **options: Any,
    ) -> requests.Response:
        """The answer to a request of the admin, or of whom `auth` says."""
        address = f"{self.uri}{path}"
        return requests.request(
            method, address, verify=str(self.certificate), auth=auth, timeout=60, **options
        )


@pytest.fixture(scope="session")
def team_server(
    postgres: Postgres, seaweedfs: SeaweedFS, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Team]:
    """One for all tests of the process, begun in an empty database: make users, experiments and models of your own in it."""
    folder = tmp_path_factory.mktemp("team")
    database, artifacts, socket = postgres.create("team"), f"s3://{BUCKET}/team", folder / "server.sock"
    (folder / "key").write_text(f"{_KEY}\n")
    environment = seaweedfs.environment | {
        "MLFLOW_BACKEND_STORE_URI": database,
        "MLFLOW_FLASK_SERVER_SECRET_KEY_FILE": str(folder / "key"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": _ADMIN_PASSWORD,
    }
    options = ["--artifacts-destination", artifacts, "--socket", str(socket), "--auth"]
    options += ["--workers", "2", "--allowed-hosts", "localhost,ml.example.org"]
    secrets = (PASSWORD, seaweedfs.environment["AWS_SECRET_ACCESS_KEY"], _ADMIN_PASSWORD, _KEY)
    with (
        start_lossy_serve(folder, options, environment) as served,
        start_nginx(folder / "nginx", f"unix:{socket}") as proxy,
    ):
        yield Team(proxy.uri, database, artifacts, proxy.certificate, socket, secrets, served)


@pytest.fixture
def command(here: Workplace, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Runs `lossy` in this process, up to its exit code."""

    def run(*words: str) -> Done:
        capsys.readouterr()
        code = 0
        try:
            main(list(words))
        except SystemExit as exit_code:
            code = int(exit_code.code or 0)
        printed = capsys.readouterr()
        return Done(code, printed.out, printed.err)

    return run


@pytest.fixture(params=["sqlite", "postgres"])
def places(request: pytest.FixtureRequest, tmp_path: Path) -> Places:
    """SQLite and folders, or PostgreSQL and S3: a server's stores with some of everything."""
    if request.param == "sqlite":
        return request.getfixturevalue("sqlite_places")
    server, s3 = request.getfixturevalue("postgres"), request.getfixturevalue("s3_uri")
    full = Filled(request.getfixturevalue("postgres_uri"), f"{s3}/artifacts")
    fill(full)
    return Places(full, Filled(server.create(f"t{uuid.uuid4().hex[:12]}"), f"{s3}/restored"), f"{s3}/backups")


@pytest.fixture
def sqlite_places(tmp_path: Path, migrated_database: Path) -> Places:
    """SQLite and folders."""
    (tmp_path / "server").mkdir()
    shutil.copy(migrated_database, tmp_path / "server" / "mlflow.db")
    full = Filled(f"sqlite:///{tmp_path}/server/mlflow.db", f"{tmp_path}/server/mlartifacts")
    fill(full)
    empty = Filled(f"sqlite:///{tmp_path}/other/mlflow.db", f"{tmp_path}/other/mlartifacts")
    return Places(full, empty, f"{tmp_path}/backups")


@pytest.fixture(scope="session")
def kept_in_files(tmp_path_factory: pytest.TempPathFactory, migrated_database: Path) -> Kept:
    """SQLite and a folder, after a life, once for all workers of pytest. To be copied."""
    base = tmp_path_factory.getbasetemp()
    # Each worker has a folder of its own below the session's.
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "kept_in_files"
    with filelock.FileLock(shared.with_suffix(".lock")):
        if not (shared / "done").exists():
            shutil.rmtree(shared, ignore_errors=True)
            shared.mkdir()
            keep_sqlite(shared, migrated_database)
            (shared / "done").touch()
    return kept_in(shared)


@pytest.fixture(scope="session")
def kept_in_services(
    tmp_path_factory: pytest.TempPathFactory, postgres: Postgres, migrated_postgres: str, seaweedfs: SeaweedFS
) -> Kept:
    """PostgreSQL and S3, after a life. To be copied."""
    return keep_postgres(tmp_path_factory.mktemp("kept"), postgres, migrated_postgres, seaweedfs)


@pytest.fixture(params=["files", pytest.param("services", marks=pytest.mark.campaign)])
def kept(request: pytest.FixtureRequest) -> Kept:
    found: Kept = request.getfixturevalue(f"kept_in_{request.param}")
    return found


@pytest.fixture
def stores(kept: Kept, tmp_path: Path) -> Stores:
    """Both copied, for this test alone."""
    return kept.copy(tmp_path)


Check = Callable[..., tuple[int, Any]]


@pytest.fixture
def check(capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest) -> Iterator[Check]:
    """check(stores, *words) -> exit code of `lossy check`, and what it prints as JSON; on the machine that kept them."""
    name = next(
        (name for name in ("kept", "kept_in_files", "kept_in_services") if name in request.fixturenames), ""
    )
    kept: Kept = request.getfixturevalue(name)
    with at_home(kept.home, kept.variables) as patch:

        def run(stores: Stores, *words: str) -> tuple[int, Any]:
            patch.setenv("MLFLOW_BACKEND_STORE_URI", stores.database)
            patch.setenv("MLFLOW_ARTIFACTS_DESTINATION", stores.artifacts)
            capsys.readouterr()
            try:
                app.main(["check", "--json", *words], prog_name="lossy", standalone_mode=False)
                code = 0
            except SystemExit as end:
                code = int(str(end.code))
            return code, json.loads(capsys.readouterr().out)

        yield run


@pytest.fixture(scope="session")
def guarded(tmp_path_factory: pytest.TempPathFactory, migrated_database: Path) -> Iterator[Guarded]:
    """A team's server behind the fences, with Alice and Bob. It has 64 MB for temporary files, where a test may mount that."""
    folder = tmp_path_factory.mktemp("guarded")
    temporary = folder / "tmp"
    temporary.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(temporary)]
    mounted = subprocess.run(mount, capture_output=True).returncode == 0
    try:
        with start_guarded(
            folder, own_stores(folder, migrated_database), {"TMPDIR": str(temporary)}
        ) as server:
            yield server
    finally:
        if mounted:
            subprocess.run(["umount", str(temporary)], check=True)


@pytest.fixture(scope="session")
def alices(guarded: Guarded) -> Belongings:
    """What Alice has there."""
    return furnish(guarded)

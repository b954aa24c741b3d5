"""Real stores of a server: a folder, SQLite, PostgreSQL, S3."""

from __future__ import annotations

import io
import json
import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
import sqlalchemy

from lossy_mlflow.cli import main
from lossy_mlflow.service.files import file_place
from tests.conftest import Workplace
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


@dataclass(frozen=True)
class Done:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


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


def add_users(uri: str) -> None:
    """MLflow's own users, in the database of the runs. To load MLflow's part for them takes seconds."""
    from mlflow.server.auth.sqlalchemy_store import SqlAlchemyStore

    store = SqlAlchemyStore()
    store.init_db(uri)
    store.create_user("admin", "a-password-of-the-tests", is_admin=True)
    store.create_user("somebody", "another-password-of-the-tests")
    store.engine.dispose()


@dataclass(frozen=True)
class Kept:
    """Stores of a server, and the options that name them."""

    database: str
    artifacts: str

    @property
    def options(self) -> list[str]:
        # A password in an argument is refused: the variable has it.
        return ["--artifacts-destination", self.artifacts]

    def use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", self.database)
        monkeypatch.setenv("MLFLOW_ARTIFACTS_DESTINATION", self.artifacts)

    def rows(self) -> dict[str, list[tuple[Any, ...]]]:
        """Every row of every table."""
        engine = sqlalchemy.create_engine(self.database, poolclass=sqlalchemy.NullPool)
        tables = sqlalchemy.MetaData()
        tables.reflect(engine)
        with engine.connect() as connection:
            return {
                name: sorted((tuple(row) for row in connection.execute(table.select())), key=repr)
                for name, table in tables.tables.items()
            }

    def files(self) -> dict[str, bytes]:
        """Every file of the artifacts."""
        place = file_place(self.artifacts)
        found = {}
        for file in place.files():
            with place.open(file.path) as stream:
                found[file.path] = stream.read()
        return found

    def write(self, path: str, content: bytes) -> None:
        file_place(self.artifacts).write(path, io.BytesIO(content))

    def client(self) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(self.database)


@dataclass(frozen=True)
class Places:
    """Full stores, empty ones of the same kind, and a place for backups."""

    full: Kept
    empty: Kept
    target: str


@pytest.fixture(params=["sqlite", "postgres"])
def places(request: pytest.FixtureRequest, tmp_path: Path) -> Places:
    """SQLite and folders, or PostgreSQL and S3: a server's stores with some of everything."""
    if request.param == "sqlite":
        return request.getfixturevalue("sqlite_places")
    server, s3 = request.getfixturevalue("postgres"), request.getfixturevalue("s3_uri")
    full = Kept(request.getfixturevalue("postgres_uri"), f"{s3}/artifacts")
    fill(full)
    return Places(full, Kept(server.create(f"t{uuid.uuid4().hex[:12]}"), f"{s3}/restored"), f"{s3}/backups")


@pytest.fixture
def sqlite_places(tmp_path: Path, migrated_database: Path) -> Places:
    """SQLite and folders."""
    (tmp_path / "server").mkdir()
    shutil.copy(migrated_database, tmp_path / "server" / "mlflow.db")
    full = Kept(f"sqlite:///{tmp_path}/server/mlflow.db", f"{tmp_path}/server/mlartifacts")
    fill(full)
    empty = Kept(f"sqlite:///{tmp_path}/other/mlflow.db", f"{tmp_path}/other/mlartifacts")
    return Places(full, empty, f"{tmp_path}/backups")


def fill(kept: Kept) -> None:
    """Runs, a model with versions and an alias, and their files, as a server with an artifact proxy has them."""
    client = kept.client()
    experiment = client.create_experiment("group/one", artifact_location="mlflow-artifacts:/1")
    client.create_registered_model("vae")
    for number in range(3):
        run = client.create_run(experiment, run_name=f"run{number}", tags={"label": "vae"})
        client.log_param(run.info.run_id, "learning_rate", "0.001")
        for step in range(5):
            client.log_metric(run.info.run_id, "loss", 1 / (step + 1), step=step)
        kept.write(f"1/{run.info.run_id}/artifacts/notes ä {number}.txt", f"run {number}".encode())
        kept.write(f"1/{run.info.run_id}/artifacts/same.bin", b"the same in each" * 1000)
        client.create_model_version(
            "vae", f"mlflow-artifacts:/1/{run.info.run_id}/artifacts", run.info.run_id
        )
        client.set_terminated(run.info.run_id)
    client.set_registered_model_alias("vae", "best", "2")

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
import sqlalchemy

from lossy_mlflow.cli import main
from lossy_mlflow.service.files import file_place
from tests.conftest import Workplace
from tests.services.postgres import Postgres, start_postgres
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

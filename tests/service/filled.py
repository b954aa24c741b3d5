"""A server's stores with some of everything, and what a command says of them."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from typing import Any

import pytest
import sqlalchemy

from lossy_mlflow.service.files import file_place


@dataclass(frozen=True)
class Done:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass(frozen=True)
class Filled:
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

    full: Filled
    empty: Filled
    target: str


def fill(kept: Filled) -> None:
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


def add_users(uri: str) -> None:
    """MLflow's own users, in the database of the runs. To load MLflow's part for them takes seconds."""
    from mlflow.server.auth.sqlalchemy_store import SqlAlchemyStore

    store = SqlAlchemyStore()
    store.init_db(uri)
    store.create_user("admin", "a-password-of-the-tests", is_admin=True)
    store.create_user("somebody", "another-password-of-the-tests")
    store.engine.dispose()

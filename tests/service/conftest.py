"""Real stores of a server: a folder, SQLite, PostgreSQL, S3."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

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

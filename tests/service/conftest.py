"""Real stores of a server: a folder, SQLite, PostgreSQL, S3."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lossy_mlflow.cli.app import app
from lossy_mlflow.service.stores import Stores
from tests.service.kept import Kept, at_home, keep_postgres, keep_sqlite
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


@pytest.fixture(scope="session")
def kept_in_files(tmp_path_factory: pytest.TempPathFactory, migrated_database: Path) -> Kept:
    """SQLite and a folder, after a life. To be copied."""
    return keep_sqlite(tmp_path_factory.mktemp("kept"), migrated_database)


@pytest.fixture(scope="session")
def kept_in_services(
    tmp_path_factory: pytest.TempPathFactory, postgres: Postgres, migrated_postgres: str, seaweedfs: SeaweedFS
) -> Kept:
    """PostgreSQL and S3, after a life. To be copied."""
    return keep_postgres(tmp_path_factory.mktemp("kept"), postgres, migrated_postgres, seaweedfs)


@pytest.fixture(params=["files", "services"])
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

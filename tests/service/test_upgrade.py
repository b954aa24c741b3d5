"""A database of an older MLflow is brought to this one's, or stays exactly as it was."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy

from tests.service.filled import Done, Filled
from tests.services.postgres import Postgres

# Of MLflow 2.20, before logged models had their tables, and of its first users.
OLDER = "0584bdc529eb"
_FIRST_USERS = "8606fa83a998"
_ROWS = [
    "insert into experiments (experiment_id, name, artifact_location, lifecycle_stage)"
    " values (7, 'old', 'mlflow-artifacts:/7', 'active')",
    "insert into runs (run_uuid, name, source_type, status, start_time, experiment_id, lifecycle_stage, artifact_uri, user_id)"
    " values ('0123', 'old run', 'LOCAL', 'FINISHED', 1, 7, 'active', 'mlflow-artifacts:/7/0123/artifacts', 'me')",
    "insert into metrics (key, value, timestamp, run_uuid, step, is_nan) values ('loss', 0.5, 1, '0123', 3, false)",
    "insert into latest_metrics (key, value, timestamp, run_uuid, step, is_nan) values ('loss', 0.5, 1, '0123', 3, false)",
    "insert into users (username, password_hash, is_admin) values ('somebody', 'hash', false)",
]


def _old(uri: str) -> None:
    from alembic import command as alembic
    from mlflow.server.auth.db.utils import migrate
    from mlflow.store.db.utils import _get_alembic_config
    from mlflow.store.tracking.dbmodels.initial_models import Base

    engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool)
    Base.metadata.create_all(engine)
    alembic.upgrade(_get_alembic_config(uri), OLDER)
    migrate(engine, _FIRST_USERS)
    with engine.begin() as connection:
        for statement in _ROWS:
            connection.execute(sqlalchemy.text(statement))


@pytest.fixture(scope="session")
def _old_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("old") / "mlflow.db"
    _old(f"sqlite:///{file}")
    return file


@pytest.fixture(scope="session")
def _old_postgres(postgres: Postgres) -> str:
    _old(postgres.create("old"))
    return "old"


@pytest.fixture(params=["sqlite", "postgres"])
def old(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Filled:
    """Stores with a database of an older MLflow, with a run in it."""
    artifacts = tmp_path / "artifacts"
    (artifacts / "7" / "0123" / "artifacts").mkdir(parents=True)
    (artifacts / "7" / "0123" / "artifacts" / "a.txt").write_text("old")
    if request.param == "sqlite":
        file = tmp_path / "mlflow.db"
        file.write_bytes(request.getfixturevalue("_old_sqlite").read_bytes())
        uri = f"sqlite:///{file}"
    else:
        name = f"old_{abs(hash(str(tmp_path)))}"
        uri = request.getfixturevalue("postgres").create(
            name, template=request.getfixturevalue("_old_postgres")
        )
    kept = Filled(uri, str(artifacts))
    kept.use(monkeypatch)
    return kept


@pytest.mark.parametrize(
    "old", ["sqlite", pytest.param("postgres", marks=pytest.mark.campaign)], indirect=True
)
def test_an_older_database_is_upgraded_and_then_left_alone(
    old: Filled, command: Callable[..., Done], tmp_path: Path
) -> None:
    done = command("upgrade", "--yes", "--json", "--to-backup", str(tmp_path / "backups"))
    assert done.code == 0, done.err
    assert f"from {OLDER} to" in done.err
    assert done.json["upgraded"] == ["tracking", "users"]
    run = old.client().get_run("0123")
    assert (run.info.run_name, run.data.metrics) == ("old run", {"loss": 0.5})
    assert command("restore", str(tmp_path / "backups"), "--list", "--json").json[0]["files"] == 1
    assert Path(done.json["kept_at"]).stat().st_mode & 0o077 == 0
    assert [row[1] for row in old.rows()["users"]] == ["somebody"]
    rows = old.rows()
    again = command("upgrade")
    assert again.code == 0
    assert "nothing was changed" in again.out
    assert old.rows() == rows


@pytest.mark.parametrize(
    "old", ["postgres", pytest.param("sqlite", marks=pytest.mark.campaign)], indirect=True
)
def test_an_upgrade_that_fails_changes_nothing(old: Filled, command: Callable[..., Done]) -> None:
    """The runs' schema is upgraded when the users' fails: both go back."""
    engine = sqlalchemy.create_engine(old.database, poolclass=sqlalchemy.NullPool)
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("create table roles (in_the_way int)"))
        connection.execute(sqlalchemy.text("insert into roles values (1)"))
    rows, schema = old.rows(), _schema(old)
    done = command("upgrade", "--yes")
    assert done.code == 1
    assert "roles" in done.err
    assert "as it was" in done.err or "Putting" in done.err
    assert "secret" not in done.err
    assert old.rows() == rows
    assert _schema(old) == schema


def _schema(kept: Filled) -> dict[str, list[str]]:
    engine = sqlalchemy.create_engine(kept.database, poolclass=sqlalchemy.NullPool)
    look = sqlalchemy.inspect(engine)
    return {
        table: [
            *sorted(str(column) for column in look.get_columns(table)),
            *sorted(str(index) for index in look.get_indexes(table)),
        ]
        for table in look.get_table_names()
    }


def test_while_a_server_has_it_open_it_is_not_upgraded(old: Filled, command: Callable[..., Done]) -> None:
    code = "import sys, sqlalchemy; c = sqlalchemy.create_engine(sys.argv[1]).connect(); print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, old.database], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as server:
        assert server.stdout
        server.stdout.readline()
        done = command("upgrade", "--yes")
        server.kill()
    assert done.code == 4
    assert "is being used by" in done.err


def test_without_a_yes_nothing_happens(
    old: Filled, command: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", open("/dev/null"))  # noqa: SIM115, PTH123
    rows = old.rows()
    assert command("upgrade").code != 0
    assert old.rows() == rows


def test_a_newer_database_is_named(
    tmp_path: Path, migrated_database: Path, command: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mlflow.db"
    file.write_bytes(migrated_database.read_bytes())
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("update alembic_version set version_num = 'ffffffffffff'")
    Filled(f"sqlite:///{file}", str(tmp_path)).use(monkeypatch)
    done = command("upgrade", "--yes")
    assert done.code == 4
    assert "made by a newer MLflow" in done.err

"""A database of an older MLflow is brought to this one's, or stays exactly as it was."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy

from tests.conftest import Workplace
from tests.service.filled import Done, Filled
from tests.services.postgres import PASSWORD, Postgres

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
def old_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
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
        file.write_bytes(request.getfixturevalue("old_sqlite").read_bytes())
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


@pytest.mark.campaign
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


@pytest.fixture
def shared_database(
    _old_postgres: str, postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Filled:
    """An older MLflow's PostgreSQL database that isn't MLflow's alone: a schema, functions, a type and an extension of others."""
    name = f"shared_{abs(hash(str(tmp_path)))}"
    kept = Filled(postgres.create(name, template=_old_postgres), str(tmp_path / "artifacts"))
    Path(kept.artifacts).mkdir()
    Path(kept.artifacts, "a.txt").write_text("a")
    for statement in _OTHERS:
        postgres.sql(statement, name)
    kept.use(monkeypatch)
    return kept


_OTHERS = [
    "create schema reports",
    "create table reports.days (day int)",
    "insert into reports.days values (1), (2)",
    "create function public.twice(n int) returns int language sql as 'select 2 * n'",
    "create type public.mood as enum ('good')",
    "create extension pg_trgm",
    "comment on extension pg_trgm is 'the DBA''s'",
]


def test_what_others_have_in_the_database_is_left_alone(
    shared_database: Filled,
    postgres: Postgres,
    command: Callable[..., Done],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The way back of an upgrade whose second half fails, and a restore, are of MLflow's tables alone."""
    name = shared_database.database.rpartition("/")[2]
    postgres.sql("create table roles (in_the_way int)", name)
    rows, schema = shared_database.rows(), _schema(shared_database)
    done = command("upgrade", "--yes")
    assert done.code == 1
    assert "roles" in done.err
    assert "secret" not in done.err
    assert "Putting" in done.err
    assert "isn't as it was" not in done.err
    assert (shared_database.rows(), _schema(shared_database)) == (rows, schema)
    assert postgres.sql("select sum(day), twice(21) from reports.days", name) == "3|42\n"
    # The same into an empty database that has its own of all this.
    assert command("backup", str(tmp_path / "backups")).code == 0
    other = Filled(postgres.create(f"{name}_other"), str(tmp_path / "restored"))
    for statement in _OTHERS:
        postgres.sql(statement, f"{name}_other")
    other.use(monkeypatch)
    done = command("restore", str(tmp_path / "backups"))
    assert done.code == 0, done.err
    assert other.rows() == rows


def test_what_others_have_made_of_its_tables_is_named_before_anything_is_changed(
    shared_database: Filled, postgres: Postgres, command: Callable[..., Done]
) -> None:
    name = shared_database.database.rpartition("/")[2]
    postgres.sql("create view reports.names as select name from public.runs", name)
    rows = shared_database.rows()
    done = command("upgrade", "--yes")
    assert done.code == 4
    assert "view reports.names depends on table runs" in done.err
    assert "Upgrading" not in done.err
    assert shared_database.rows() == rows


@pytest.mark.campaign
def test_a_way_back_that_fails_says_where_the_database_lies(
    shared_database: Filled, postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody makes a view of the tables between the look and the way back: the command that is named goes on."""
    from lossy_mlflow.errors import LossyError
    from lossy_mlflow.service.stores import stores_of
    from lossy_mlflow.service.upgrade import upgrade

    name = shared_database.database.rpartition("/")[2]
    postgres.sql("create table roles (in_the_way int)", name)
    rows = shared_database.rows()
    monkeypatch.chdir(tmp_path)

    def say(line: str) -> None:
        if line.startswith("Putting"):
            postgres.sql("create view reports.names as select name from public.runs", name)

    with pytest.raises(LossyError, match=r"view reports\.names depends on table runs") as failed:
        upgrade(stores_of(), say)
    (dump,) = tmp_path.glob("before-upgrade-*/tracking.dump")
    assert str(dump) in failed.value.what
    commands = failed.value.hint.partition("    then")[0]
    subprocess.run(commands, shell=True, check=True, env=os.environ | {"PGPASSWORD": PASSWORD})  # noqa: S602
    assert Filled(f"{shared_database.database}_before", "").rows() == rows


@pytest.mark.parametrize(("version", "words"), [(9, ["backup"]), (9, ["upgrade"]), (99, ["upgrade"])])
def test_a_client_of_another_version_is_refused_first(
    shared_database: Filled,
    command: Callable[..., Done],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    version: int,
    words: list[str],
) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    for program in ("pg_dump", "pg_restore", "psql"):
        (programs / program).write_text(
            f"#!/bin/sh\necho '{program} (PostgreSQL) {version}.3 (Debian {version}.3-1)'\n"
        )
        (programs / program).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    done = command(*words, *([str(tmp_path / "backups")] if words == ["backup"] else ["--yes"]))
    assert done.code == 4
    assert f"pg_dump here is of PostgreSQL {version}" in done.err
    assert not list(tmp_path.glob("b*ups")) + list(tmp_path.glob("before-*"))


def test_a_linked_file_stays_a_link_and_keeps_its_owner_and_mode(
    old_sqlite: Path, command: Callable[..., Done], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "artifacts").mkdir()
    file, link = tmp_path / "disk" / "runs.db", tmp_path / "mlflow.db"
    file.write_bytes(old_sqlite.read_bytes())
    file.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(file, 4321, 1234)
    before = file.stat()
    link.symlink_to(file)
    Filled(f"sqlite:///{link}", str(tmp_path / "artifacts")).use(monkeypatch)
    # Its run has a file in the artifacts, which are empty here: that is no backup to rely on.
    refused = command("upgrade", "--yes", "--to-backup", str(tmp_path / "backups"))
    assert refused.code == 3
    (tmp_path / "artifacts" / "7").symlink_to("/nowhere")
    refused = command("upgrade", "--yes", "--to-backup", str(tmp_path / "backups"))
    assert refused.code == 1
    assert "isn't whole" in refused.err
    done = command("upgrade", "--yes", "--json")
    assert done.code == 0, done.err
    assert link.is_symlink()
    assert file.stat().st_ino != before.st_ino
    now = file.stat()
    assert (now.st_mode, now.st_uid, now.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert {path.stat().st_mode & 0o777 for path in Path(done.json["kept_at"]).iterdir()} == {0o600}


def test_a_lock_that_is_somebody_elses_is_said(old_sqlite: Path, here: Workplace, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to become another user")
    file = tmp_path / "mlflow.db"
    file.write_bytes(old_sqlite.read_bytes())
    lock = tmp_path / "mlflow.db.lossy-lock"
    lock.touch()
    lock.chmod(0o400)
    (tmp_path / "artifacts").mkdir()
    words = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"]
    stores = [
        "--backend-store-uri",
        f"sqlite:///{file}",
        "--artifacts-destination",
        str(tmp_path / "artifacts"),
    ]
    done = here.run(*words, *here.command("upgrade", "--yes", *stores))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "mlflow.db.lossy-lock can't be written: Permission denied" in done.stderr

"""What was backed up comes back: every row, every file, and nothing over what is there."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy

from lossy_mlflow.service.archive import object_path
from lossy_mlflow.service.files import file_place
from lossy_mlflow.service.restore import MARKER
from lossy_mlflow.tracking.connection import sqlite_file
from tests.conftest import Workplace, wait_for
from tests.service.filled import Done, Places, add_users
from tests.services.postgres import Postgres


def test_a_server_comes_back_row_by_row_and_file_by_file(
    places: Places, command: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    add_users(places.full.database)
    places.full.use(monkeypatch)
    done = command("backup", places.target)
    assert done.code == 0, done.err
    assert "New: 4 files of 6" in done.out  # two are the same as another
    rows, files = places.full.rows(), places.full.files()
    assert len(rows["users"]) == 2
    places.empty.use(monkeypatch)
    verified = command("restore", places.target, "--dry-run")
    assert verified.code == 0, verified.err
    assert "is good: 6 files" in verified.out
    assert places.empty.files() == {}
    done = command("restore", places.target, "--json")
    assert done.code == 0, done.err
    assert done.json["files"] == 6
    assert places.empty.rows() == rows
    assert places.empty.files() == files
    client = places.empty.client()
    assert int(client.get_model_version_by_alias("vae", "best").version) == 2
    again = command("restore", places.target)
    assert again.code == 4
    assert "isn't empty" in again.err
    assert places.empty.rows() == rows


def test_a_restore_that_was_killed_is_finished_by_the_same_command(
    sqlite_places: Places, workplace: Workplace, command: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    places = sqlite_places
    for number in range(3000):
        Path(places.full.artifacts, f"{number}.txt").write_text(f"the file {number}")
    places.full.use(monkeypatch)
    assert command("backup", places.target).code == 0
    places.empty.use(monkeypatch)
    environment = {
        name: os.environ[name] for name in ("MLFLOW_BACKEND_STORE_URI", "MLFLOW_ARTIFACTS_DESTINATION")
    }
    process = workplace.start("restore", places.target, env=environment)
    folder = Path(places.empty.artifacts)
    wait_for(lambda: folder.exists() and len(list(folder.iterdir())) > 100, 60, "the first files")
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not Path(places.empty.database.removeprefix("sqlite:///")).exists()
    assert (folder / MARKER).exists()
    # Into another backup's restore nothing is mixed.
    time.sleep(1)
    places.full.use(monkeypatch)
    newer = command("backup", places.target, "--json").json["name"]
    older = command("restore", places.target, "--list", "--json").json[1]["name"]
    places.empty.use(monkeypatch)
    refused = command("restore", places.target, "--at", newer)
    assert refused.code == 4
    assert f"--at {older}" in refused.err
    done = command("restore", places.target, "--at", older, "--json")
    assert done.code == 0, done.err
    assert done.json["there"] > 100
    assert done.json["files"] + done.json["there"] == 3006
    assert places.empty.files() == places.full.files()
    assert places.empty.rows() == places.full.rows()


def test_one_that_was_killed_just_before_its_end_is_finished_too(
    places: Places, command: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    places.full.use(monkeypatch)
    name = command("backup", places.target, "--json").json["name"]
    places.empty.use(monkeypatch)
    assert command("restore", places.target).code == 0
    # What stands there when it is killed behind its last database.
    place = file_place(places.empty.artifacts)
    place.write(MARKER, io.BytesIO(json.dumps({"backup": name}).encode()))
    engine = sqlalchemy.create_engine(places.empty.database, poolclass=sqlalchemy.NullPool)
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text(f"create table lossy_restored as select '{name}' as backup"))
    done = command("restore", places.target, "--json")
    assert (done.code, done.json["files"]) == (0, 0)
    assert places.empty.rows() == places.full.rows()
    assert place.find(MARKER) is None


def test_nothing_is_restored_over_rows_or_files(
    places: Places, command: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    places.full.use(monkeypatch)
    assert command("backup", places.target).code == 0
    rows = places.full.rows()
    monkeypatch.setenv("MLFLOW_ARTIFACTS_DESTINATION", places.empty.artifacts)
    refused = command("restore", places.target)
    assert refused.code == 4
    assert "isn't empty" in refused.err
    assert "tables have rows" in refused.err
    assert "secret" not in refused.err
    places.empty.use(monkeypatch)
    places.empty.write("a/b.txt", b"mine")
    refused = command("restore", places.target)
    assert refused.code == 4
    assert "a/b.txt is there" in refused.err
    assert places.empty.files() == {"a/b.txt": b"mine"}
    assert places.full.rows() == rows


def test_tables_without_rows_are_no_obstacle(
    places: Places, command: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    places.full.use(monkeypatch)
    assert command("backup", places.target).code == 0
    if file := sqlite_file(places.empty.database):
        file.parent.mkdir()
    engine = sqlalchemy.create_engine(places.empty.database, poolclass=sqlalchemy.NullPool)
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("create table runs (other text)"))
        connection.execute(sqlalchemy.text("create table no_longer (x int)"))
    places.empty.use(monkeypatch)
    done = command("restore", places.target)
    assert done.code == 0, done.err
    assert places.empty.rows() == places.full.rows()


def test_across_kinds_it_is_refused(
    sqlite_places: Places, postgres: Postgres, command: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    sqlite_places.full.use(monkeypatch)
    assert command("backup", sqlite_places.target).code == 0
    monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", postgres.create("across"))
    refused = command("restore", sqlite_places.target)
    assert refused.code == 2
    assert "is of sqlite, which can't be restored into postgresql" in refused.err


def test_what_is_damaged_is_said_and_the_rest_can_be_had(
    places: Places, command: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    places.full.write("1/one.txt", b"the first")
    places.full.write("1/two.txt", b"the second")
    places.full.use(monkeypatch)
    assert command("backup", places.target).code == 0
    backups, empty = file_place(places.target), file_place(places.empty.artifacts)
    backups.write(object_path(hashlib.sha256(b"the first").hexdigest()), io.BytesIO(b"the f"))
    places.empty.use(monkeypatch)
    refused = command("restore", places.target)
    assert refused.code == 1
    assert "The contents of 1 of 8 files are damaged or missing" in refused.err
    assert "1/one.txt" in refused.err
    assert list(empty.files()) == []
    # Of the right size: only reading it tells.
    backups.write(object_path(hashlib.sha256(b"the second").hexdigest()), io.BytesIO(b"the sec0nd"))
    refused = command("restore", places.target, "--dry-run", "--skip-damaged", "--json")
    assert (refused.code, sorted(refused.json["damaged"])) == (1, ["1/one.txt", "1/two.txt"])
    done = command("restore", places.target, "--skip-damaged", "--json")
    assert (done.code, sorted(done.json["damaged"])) == (1, ["1/one.txt", "1/two.txt"])
    assert places.empty.files() == {
        path: content for path, content in places.full.files().items() if path not in done.json["damaged"]
    }
    assert places.empty.rows() == places.full.rows()


def test_a_damaged_dump_or_list_changes_nothing(
    sqlite_places: Places, command: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    sqlite_places.full.use(monkeypatch)
    name = command("backup", sqlite_places.target, "--json").json["name"]
    sqlite_places.empty.use(monkeypatch)
    for file in ("tracking.dump", "files-00001.jsonl.gz"):
        path = Path(sqlite_places.target, "backups", name, file)
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        refused = command("restore", sqlite_places.target)
        assert refused.code == 1
        assert f"{file} is damaged" in refused.err
        path.write_bytes(whole)
    path = Path(sqlite_places.target, "backups", name, "complete.json")
    path.write_bytes(path.read_bytes()[:-30])
    (listed,) = command("restore", sqlite_places.target, "--list", "--json").json
    assert listed["state"] == "damaged"
    assert command("restore", sqlite_places.target).code == 3
    assert sqlite_places.empty.files() == {}

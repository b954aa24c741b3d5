"""What `lossy serve` finds before it starts: each for real, in a real PostgreSQL, S3, file system, process."""

from __future__ import annotations

import email.utils
import re
import socket
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import sqlalchemy

from lossy_mlflow.errors import ConflictError, LossyError
from lossy_mlflow.service.address import check_address
from lossy_mlflow.service.connections import Demand, pool_for
from lossy_mlflow.service.preflight import Checked, preflight
from lossy_mlflow.service.settings import Pool, Serving, server_settings
from lossy_mlflow.service.stores import Stores, stores_of
from tests.conftest import Workplace, free_port
from tests.services.postgres import PASSWORD, Postgres
from tests.services.seaweedfs import BUCKET, SeaweedFS

EVERYWHERE = "0.0.0.0"  # noqa: S104
KEY = {"MLFLOW_FLASK_SERVER_SECRET_KEY": "0123456789abcdefghijklmnopqrstuv"}
ADMIN = {"MLFLOW_AUTH_ADMIN_PASSWORD": "long enough for all"}


def _found(stores: Stores, given: dict[str, str] | None = None, **serving: Any) -> dict[str, Checked]:
    serving = {"port": free_port()} | serving
    return {finding.of: finding for finding in preflight(stores, Serving(**serving), given or {})}


def _amiss(*arguments: Any, **serving: Any) -> dict[str, str]:
    found = _found(*arguments, **serving)
    for finding in found.values():
        assert finding.ok == (finding.hint == "") == (finding.exit_code == 0)
        assert PASSWORD not in str(finding)
    return {of: f"{finding.what} {finding.hint}" for of, finding in found.items() if not finding.ok}


@pytest.fixture
def laptop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stores:
    monkeypatch.chdir(tmp_path)
    return stores_of()


def test_nothing_is_amiss_with_a_new_folder_and_nothing_is_made_in_it(laptop: Stores, tmp_path: Path) -> None:
    assert _amiss(laptop) == {}
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_amiss_with_a_team_s_stores(postgres_uri: str, s3_uri: str) -> None:
    found = _found(Stores(postgres_uri, postgres_uri, s3_uri), KEY | ADMIN, auth=True, workers=4)
    assert [finding for finding in found.values() if not finding.ok] == []
    assert found.keys() >= {"users' schema", "connections", "secret key", "admin", "bucket", "artifacts"}
    assert found["schema"].what == "is that of this MLflow"
    assert found["users' schema"].what == "will be made"


def test_all_is_said_at_once_and_nothing_starts(workplace: Workplace, postgres: Postgres) -> None:
    environment = {
        "MLFLOW_BACKEND_STORE_URI": postgres.uri("nowhere"),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "my-secret-key",
        "MLFLOW_REGISTRY_STORE_URI": "sqlite:///other.db",
    }
    options = ("serve", "--auth", "--host", EVERYWHERE, "--port", str(free_port()))
    done = workplace.lossy(*options, env=environment)
    assert done.returncode == 1
    for says in (
        "MLFLOW_REGISTRY_STORE_URI would make another server",
        "--allowed-hosts NAME",
        "MLFLOW_FLASK_SERVER_SECRET_KEY can be guessed",
        'database "nowhere" does not exist',
        "lossy: nothing was started.",
    ):
        assert says in done.stderr
    assert PASSWORD not in done.stderr
    assert workplace.lossy(*options, "--check-only", env=environment).returncode == 1


def test_what_is_found_is_printed(workplace: Workplace) -> None:
    found = workplace.json("serve", "--check-only", "--port", str(free_port()))
    assert {finding["of"]: finding["ok"] for finding in found}["database"] is True
    done = workplace.lossy("serve", "--host", EVERYWHERE)
    assert done.returncode == 2
    assert "Let in members alone: --auth" in done.stderr


def test_databases_that_do_not_answer(
    laptop: Stores, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    def amiss(uri: str) -> str:
        found = _amiss(Stores(uri, uri, laptop.artifacts))
        assert list(found) == ["database"]
        return found["database"]

    uri = postgres.uri("postgres")
    assert "can't be reached" in amiss(uri.replace(str(postgres.port), str(free_port())))
    assert "password authentication failed" in amiss(uri.replace(PASSWORD, "wrong"))
    assert "is not an SQLite database" in amiss(_text_file(Path(laptop.artifacts).with_name("x.db")))


def _text_file(path: Path) -> str:
    path.write_text("no database, but long enough to be taken for one" * 100)
    return f"sqlite:///{path}"


@pytest.mark.parametrize("table", ["alembic_version", "alembic_version_auth"])
def test_schemas_of_other_versions(laptop: Stores, migrated_database: Path, table: str) -> None:
    path = Path(laptop.artifacts).with_name("mlflow.db")
    path.write_bytes(migrated_database.read_bytes())

    def amiss(revision: str) -> dict[str, str]:
        with closing(sqlite3.connect(path)) as database, database:
            database.execute(f"create table if not exists {table} (version_num)")
            database.execute(f"delete from {table}")  # noqa: S608
            database.execute(f"insert into {table} values (?)", [revision])  # noqa: S608
        return _amiss(laptop, KEY | ADMIN, auth=True)

    of = "schema" if table == "alembic_version" else "users' schema"
    # The first of each.
    old = {"schema": "451aebb31d03", "users' schema": "8606fa83a998"}[of]
    assert amiss(old)[of].endswith("by an older MLflow than the one installed here. lossy upgrade")
    assert "by a newer MLflow than the one installed here" in amiss("from-the-future")[of]


def test_connections_that_do_not_suffice(postgres: Postgres, postgres_uri: str, s3_uri: str) -> None:
    stores = Stores(postgres_uri, postgres_uri, s3_uri)
    many = {"MLFLOW_SQLALCHEMYSTORE_POOL_SIZE": "20", "MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW": "0"}
    found = _amiss(stores, many, workers=2)["connections"]
    assert "2 workers with 2 pools of 20 and 10 more open up to 122 connections" in found
    assert "--workers 1 " in found
    # The limit of a user who isn't its superuser.
    name = postgres_uri.rpartition("/")[2]
    password = "secret-of-a-user"  # noqa: S105
    postgres.sql(f"create role {name} login password '{password}' connection limit 5; grant mlflow to {name}")
    limited = postgres_uri.replace(f"mlflow:{PASSWORD}", f"{name}:{password}")
    found = _amiss(Stores(limited, limited, s3_uri))["connections"]
    assert "and postgresql://127.0.0.1" in found
    assert "has 5 left" in found


@pytest.mark.parametrize("workers", [1, 2, 4, 8, 15])
@pytest.mark.parametrize("engines", [1, 2, 3])
def test_the_pool_that_is_chosen_leaves_room(workers: int, engines: int) -> None:
    demand = Demand("postgresql://h/d", 97, engines, workers)
    pool = pool_for([demand], {})
    assert pool
    assert pool.most <= 15
    assert pool.size >= 1
    assert pool.overflow >= 1
    assert demand.most(pool) <= 97 - 3
    assert demand.fits(pool)
    # And no smaller than need be.
    assert pool.most == 15 or not Demand("", 97 - 5, engines, workers).fits(
        Pool(pool.size + 1, pool.overflow)
    )


def test_more_workers_than_connections() -> None:
    with pytest.raises(LossyError, match="40 workers with 3 pools"):
        pool_for([Demand("postgresql://h/d", 97, 3, 40)], {})


def test_buckets_that_can_not_be_used(
    laptop: Stores, s3_uri: str, seaweedfs: SeaweedFS, monkeypatch: pytest.MonkeyPatch
) -> None:
    def amiss(uri: str) -> str:
        found = _amiss(Stores(laptop.database, laptop.users, uri))
        assert list(found) == ["bucket"]
        return found["bucket"]

    assert "There is no bucket elsewhere" in amiss("s3://elsewhere/x")
    assert "elsewhere" not in str(seaweedfs.client().list_buckets()["Buckets"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    assert "refuses" in amiss(s3_uri)
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    assert "can't be reached" in amiss(s3_uri)


def test_a_bucket_whose_clock_is_wrong(
    laptop: Stores, s3_uri: str, seaweedfs: SeaweedFS, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = seaweedfs.port

    class AnHourLate(BaseHTTPRequestHandler):
        """The store's own answers, with another Date."""

        def do_GET(self) -> None:
            to_store = HTTPConnection("127.0.0.1", real)
            to_store.request("GET", self.path, headers=dict(self.headers))
            answer = to_store.getresponse()
            body = answer.read()
            self.send_response_only(answer.status)
            self.send_header("Date", email.utils.formatdate(time.time() - 3600, usegmt=True))
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), AnHourLate) as late:
        Thread(target=late.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", f"http://127.0.0.1:{late.server_port}")
        found = _amiss(Stores(laptop.database, laptop.users, s3_uri))["bucket"]
        late.shutdown()
    assert re.search(r"is 36\d\d s behind this machine's. Set both by the network", found), found


def test_a_bucket_is_left_as_it_was(s3_uri: str, laptop: Stores, seaweedfs: SeaweedFS) -> None:
    assert _amiss(Stores(laptop.database, laptop.users, s3_uri)) == {}
    prefix = s3_uri.removeprefix(f"s3://{BUCKET}/")
    listed = seaweedfs.client().list_objects_v2(Bucket=BUCKET, Prefix=prefix)
    assert listed["KeyCount"] == 0


def test_a_disk_that_is_nearly_full_or_can_not_be_written(
    laptop: Stores, tmpfs: Callable[[str], Path]
) -> None:
    small = tmpfs("size=2m")
    assert (
        f"{small} has 2 MB left"
        in _amiss(Stores(laptop.database, laptop.users, str(small)))["disk of artifacts"]
    )
    closed = tmpfs("size=2m,ro")
    found = _amiss(Stores(f"sqlite:///{closed}/a.db", f"sqlite:///{closed}/a.db", f"{closed}/b"))
    assert "can't be written: Read-only file system" in found["database"]
    assert "can't be written: Read-only file system" in found["artifacts"]


def test_secrets_that_are_missing_or_weak(laptop: Stores) -> None:
    found = _amiss(laptop, {}, auth=True)
    assert "There is no MLFLOW_FLASK_SERVER_SECRET_KEY" in found["secret key"]
    assert "MLFLOW_AUTH_ADMIN_PASSWORD isn't set" in found["admin"]
    found = _amiss(
        laptop, {"MLFLOW_FLASK_SERVER_SECRET_KEY": "a" * 40, "MLFLOW_AUTH_ADMIN_PASSWORD": "short"}, auth=True
    )
    assert "can be guessed" in found["secret key"]
    assert "is too short" in found["admin"]

    found = _amiss(laptop, KEY | {"MLFLOW_AUTH_ADMIN_PASSWORD": "wörter-genug-für-alle"}, auth=True)
    assert "MLFLOW_AUTH_ADMIN_PASSWORD has characters that aren't ASCII" in found["admin"]


def test_a_configuration_of_users_that_undoes_what_auth_promises(laptop: Stores, tmp_path: Path) -> None:
    file = tmp_path / "auth.ini"
    given = KEY | ADMIN | {"MLFLOW_AUTH_CONFIG_PATH": str(file)}
    well = f"[mlflow]\ndatabase_uri = {laptop.users}\ndefault_permission = NO_PERMISSIONS\nauth_cache_ttl_seconds = 30\n"

    def amiss(text: str) -> str:
        file.write_text(text)
        return _amiss(laptop, given, auth=True).get("users' settings", "")

    assert amiss(well) == ""
    assert amiss(well + "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n") == ""
    for wrong, says in (
        (well.replace("NO_PERMISSIONS", "READ"), "Have in it: default_permission = NO_PERMISSIONS "),
        (well.replace("= 30", "= 3600"), "with '3600' seconds old passwords are good for too long"),
        (well.replace("auth_cache_ttl_seconds = 30\n", ""), "Have in it: auth_cache_ttl_seconds = 60 "),
        (well + "authorization_function = my.own:function\n", "the fences know names and passwords alone"),
        (well + "read_database_uri = sqlite:///other.db\n", "lossy keeps one database of users"),
    ):
        assert says in amiss(wrong)
    # Of a server without members it is of no matter.
    assert "users' settings" not in _found(laptop, given)


def test_a_password_of_the_database_of_any_characters(
    postgres: Postgres, postgres_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, password = postgres_uri.rpartition("/")[2], "a/b#c?d:e%f@g"
    postgres.sql(f"create role {name} login password '{password}'; grant mlflow to {name}")
    uri = postgres_uri.replace(f"mlflow:{PASSWORD}", f"{name}:a/b#c?d:e%25f%40g")
    monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", uri)
    stores = stores_of(None, str(tmp_path))
    assert _amiss(stores) == {}
    for text in (str(stores), str(_found(stores))):
        assert "b#c" not in text
    settings = server_settings(stores, Serving(auth=True), KEY | ADMIN)
    assert settings.environment.pop("PGPASSWORD") == password
    assert "b#c" not in str(settings)
    # As the server reaches it then: what stands in the file of users' settings, and the variable.
    address = settings.environment["MLFLOW_BACKEND_STORE_URI"]
    assert f"database_uri = {address}\n" in settings.users_config
    monkeypatch.setenv("PGPASSWORD", password)
    with sqlalchemy.create_engine(address).connect() as connection:
        assert connection.exec_driver_sql("select current_user").scalar() == name


def test_a_name_of_several_addresses_is_free_at_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    own = socket.getaddrinfo

    def of_two(_name: str, port: int, **asked: Any) -> list[Any]:
        return [found for address in ("127.0.0.1", "127.0.0.2") for found in own(address, port, **asked)]

    # No name has two on every machine.
    monkeypatch.setattr(socket, "getaddrinfo", of_two)
    with socket.create_server(("127.0.0.2", 0)) as other:
        both = Serving(host="both", port=other.getsockname()[1])
        with pytest.raises(ConflictError, match="of both is in use"):
            check_address(both)
    check_address(both)


def test_addresses_that_are_none(laptop: Stores, tmp_path: Path) -> None:
    assert "is no address to listen at" in _amiss(laptop, host="198.51.100.1", auth=True)["address"]
    (tmp_path / "file").write_text("")
    assert (
        "is there, and no socket" in _amiss(laptop, socket=tmp_path / "file", allowed_hosts=("h",))["address"]
    )
    assert (
        "There is no folder" in _amiss(laptop, socket=tmp_path / "no" / "s", allowed_hosts=("h",))["address"]
    )
    assert (
        "more than 107 bytes"
        in _amiss(laptop, socket=tmp_path / ("x" * 100), allowed_hosts=("h",))["address"]
    )


def test_options_that_contradict(workplace: Workplace) -> None:
    for words, says in (
        (("--socket", "s", "--port", "5"), "--socket takes the place of --host and --port"),
        (("--allowed-hosts", "https://name"), "is no name of a host"),
        (("--json",), "--json prints what --check-only finds"),
        (("--backend-store-uri", "postgresql://u:secret@h/d"), "can be read by every user"),
    ):
        done = workplace.lossy("serve", *words)
        assert (done.returncode, says in done.stderr) == (2, True), done.stderr
        assert "secret" not in done.stderr

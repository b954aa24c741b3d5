"""`lossy doctor` before real servers, databases and folders: what it finds, what it says to do, its exit code, its time."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import json
import re
import shutil
import socket
import sqlite3
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from lossy_mlflow.outbox.api import Api
from tests.conftest import Workplace, end_senders, start_mlflow_server
from tests.services.postgres import Postgres

PASSWORD = "hunter2-and-more-of-it"  # noqa: S105 (a test's own)
Examine = Callable[..., tuple[dict[str, dict[str, str]], int]]


WITHOUT_TORCH = """
import importlib.util as util
find = util.find_spec
util.find_spec = lambda name, *rest: None if name == "torch" else find(name, *rest)
"""


@pytest.fixture
def without_torch(tmp_path: Path) -> str:
    """For PYTHONPATH: a python finds no torch, as where it isn't installed (and as torch takes seconds to load)."""
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "sitecustomize.py").write_text(WITHOUT_TORCH)
    return str(tmp_path / "without")


@pytest.fixture
def examine(
    here: Workplace,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    without_torch: str,
) -> Examine:
    """The findings by name and the exit code, with these variables set; no secret is in them, and all took seconds."""
    from lossy_mlflow.cli import main

    monkeypatch.setenv("PYTHONPATH", without_torch)

    def run(**variables: str) -> tuple[dict[str, dict[str, str]], int]:
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            capfd.readouterr()
            begin, code = time.monotonic(), 0
            try:
                main(["doctor", "--json"])
            except SystemExit as end:
                code = int(end.code or 0)
        assert time.monotonic() - begin < 25
        printed = capfd.readouterr()
        assert "hunter2" not in printed.out + printed.err
        assert "Traceback" not in printed.err
        report = json.loads(printed.out)
        assert report["exit_code"] == code
        return {finding["name"]: finding for finding in report["findings"]}, code

    return run


def _states(found: dict[str, dict[str, str]], *names: str) -> list[str]:
    return [found[name]["state"] for name in names]


# A server


def test_a_server_that_is_well(mlflow_server: str, here: Workplace) -> None:
    done = here.lossy("doctor", env={"MLFLOW_TRACKING_URI": f"outbox+{mlflow_server}"})
    assert done.returncode == 0, done.stdout
    lines = {line[9:20].strip(): line for line in done.stdout.splitlines() if line}
    assert f"{mlflow_server} (MLFLOW_TRACKING_URI, by way of the outbox)" in lines["server"]
    for name in (
        "server",
        "reachable",
        "clock",
        "credentials",
        "version",
        "artifacts",
        "outbox",
        "cache",
        "torch",
    ):
        assert lines[name].startswith("ok "), done.stdout
    assert "none asked for" in lines["credentials"]
    assert "this machine needs no keys" in lines["artifacts"]
    assert done.stdout.endswith("All is well.\n")
    assert done.stderr == ""
    assert "\x1b" not in done.stdout
    assert "torch 2" in lines["torch"]


def test_a_server_that_is_away_is_told_with_a_password_in_its_address(examine: Examine) -> None:
    found, code = examine(MLFLOW_TRACKING_URI=f"http://me:{PASSWORD}@127.0.0.1:9")
    assert code == 5
    assert found["server"]["seen"].startswith("http://127.0.0.1:9 ")
    assert "Connection refused" in found["reachable"]["seen"]
    assert "MLFLOW_TRACKING_URI" in found["reachable"]["remedy"]
    assert _states(found, "credentials", "version", "clock", "artifacts") == ["skipped"] * 4
    assert found["version"]["seen"] == "not looked at: the server can't be reached"
    assert found["outbox"]["state"] == "ok"


def test_a_name_that_does_not_resolve(examine: Examine) -> None:
    found, code = examine(MLFLOW_TRACKING_URI="http://nowhere.invalid:5000")
    assert (code, found["reachable"]["state"]) == (5, "fail")


@pytest.mark.parametrize("drips", [False, pytest.param(True, marks=pytest.mark.campaign)])
def test_a_server_that_hangs_takes_seconds(drips: bool, examine: Examine) -> None:
    """It accepts and never answers; or it sends a byte a second for ever, so that no single wait is long."""
    stop = threading.Event()

    def answer(connection: socket.socket) -> None:
        with closing(connection), contextlib.suppress(OSError):
            while not stop.wait(1):
                connection.sendall(b"H" if drips else b"")

    def accept(listening: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=answer, args=listening.accept()[:1], daemon=True).start()

    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        threading.Thread(target=accept, args=(listening,), daemon=True).start()
        begin = time.monotonic()
        found, code = examine(MLFLOW_TRACKING_URI=f"http://127.0.0.1:{listening.getsockname()[1]}")
        assert time.monotonic() - begin < 15
        stop.set()
        listening.shutdown(socket.SHUT_RDWR)
    assert code == 5
    assert found["reachable"]["state"] == "fail"
    assert found["torch"]["state"] == "ok"


@pytest.mark.parametrize(
    "uri",
    [f"http://me:{PASSWORD}/x@host", f"http://me:{PASSWORD}@host:port", "foo://host", "./mlruns", "http://"],
)
def test_an_address_that_is_none(uri: str, examine: Examine) -> None:
    found, code = examine(MLFLOW_TRACKING_URI=uri)
    assert code == 1
    assert found["server"]["state"] == "fail"
    assert found["server"]["remedy"]
    assert found["cache"]["state"] == "ok"


def test_what_answers_but_is_no_mlflow(tmp_path: Path, examine: Examine) -> None:
    (tmp_path / "health").write_text("OK")
    web = subprocess.Popen(
        [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert web.stdout is not None
        port = web.stdout.readline().split(" port ")[1].split()[0]
        found, code = examine(MLFLOW_TRACKING_URI=f"http://127.0.0.1:{port}")
        assert code == 1
        assert _states(found, "reachable", "credentials", "version") == ["ok", "fail", "skipped"]
        assert "404" in found["credentials"]["seen"]
        # A folder's address is answered with another one.
        (tmp_path / "health").unlink()
        (tmp_path / "health").mkdir()
        found, code = examine(MLFLOW_TRACKING_URI=f"http://127.0.0.1:{port}")
        assert code == 1
        assert "sends requests on" in found["reachable"]["seen"]
    finally:
        web.kill()
        web.wait()


def test_a_host_that_the_server_does_not_answer_to(
    mlflow_server: str, examine: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As where it has a name in the DNS that it wasn't told of.
    resolve = socket.getaddrinfo
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *rest, **more: resolve(
            "127.0.0.1" if host == "tracking.example" else host, *rest, **more
        ),
    )
    found, code = examine(MLFLOW_TRACKING_URI=mlflow_server.replace("127.0.0.1", "tracking.example"))
    assert code == 1
    assert found["reachable"]["state"] == "ok"
    assert "answers to other names" in found["credentials"]["seen"]
    assert "--allowed-hosts tracking.example" in found["credentials"]["remedy"]


def test_a_clock_that_is_wrong(mlflow_server: str, examine: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 100)
    found, code = examine(MLFLOW_TRACKING_URI=mlflow_server)
    assert code == 0
    assert found["clock"]["state"] == "warn"
    assert re.search(r"this machine's clock is (99|100|101) s ahead of the server's", found["clock"]["seen"])
    assert "ntp" in found["clock"]["remedy"]


# Credentials


@pytest.fixture(scope="module")
def guarded_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with basic auth: the admin, and `ana`, who may look at nothing of others."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "auth.ini").write_text(
        f"[mlflow]\ndefault_permission = NO_PERMISSIONS\ndatabase_uri = sqlite:///{folder}/users.db\n"
        "admin_username = admin\nadmin_password = unused-by-the-variable\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    variables = {
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "a key of this test's",
        "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
    }
    with start_mlflow_server(folder, options=["--app-name", "basic-auth"], variables=variables) as (uri, _):
        requests.post(
            f"{uri}/api/2.0/mlflow/users/create",
            json={"username": "ana", "password": PASSWORD},
            auth=("admin", PASSWORD),
            timeout=30,
        ).raise_for_status()
        yield uri


def test_credentials(
    guarded_server: str, examine: Examine, here: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, code = examine(MLFLOW_TRACKING_URI=guarded_server)
    assert code == 1
    assert "none were sent (401)" in found["credentials"]["seen"]
    assert "MLFLOW_TRACKING_USERNAME" in found["credentials"]["remedy"]
    assert _states(found, "reachable", "clock", "version", "artifacts") == ["ok", "ok", "skipped", "skipped"]

    user = {"MLFLOW_TRACKING_URI": guarded_server, "MLFLOW_TRACKING_USERNAME": "ana"}
    found, code = examine(**user, MLFLOW_TRACKING_PASSWORD=f"not {PASSWORD}")
    assert code == 1
    assert "doesn't know 'ana' with that password (401)" in found["credentials"]["seen"]
    assert "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in found["credentials"]["seen"]

    found, code = examine(**user, MLFLOW_TRACKING_PASSWORD=PASSWORD)
    assert code == 0
    assert "signed in as 'ana'" in found["credentials"]["seen"]
    assert _states(found, "version", "artifacts") == ["ok", "skipped"]
    assert "no experiment yet" in found["artifacts"]["seen"]

    requests.post(
        f"{guarded_server}/api/2.0/mlflow/experiments/create",
        json={"name": "ana's"},
        auth=("ana", PASSWORD),
        timeout=30,
    ).raise_for_status()
    found, code = examine(**user, MLFLOW_TRACKING_PASSWORD=PASSWORD)
    assert (code, found["artifacts"]["state"]) == (0, "ok")

    found, code = examine(
        **user | {"MLFLOW_TRACKING_URI": guarded_server.replace("//", f"//admin:{PASSWORD}@")}
    )
    assert "signed in as 'admin'; from MLFLOW_TRACKING_URI itself" in found["credentials"]["seen"]
    assert found["artifacts"]["state"] == "ok"
    # A user without a password is a variable that does nothing.
    assert "MLFLOW_TRACKING_PASSWORD" in found["environment"]["seen"]

    # Of a token and a user, the sender of what is logged takes the one that MLflow takes.
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "of another server")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ana")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    found, code = examine(MLFLOW_TRACKING_URI=guarded_server)
    assert "signed in as 'ana'" in found["credentials"]["seen"]
    assert "MLFLOW_TRACKING_TOKEN is set" in found["environment"]["seen"]
    assert Api(guarded_server).get("users/current", {})["user"]["username"] == "ana"
    for name in ("TOKEN", "USERNAME", "PASSWORD"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}")

    (here.folder.parent / "home" / ".mlflow").mkdir()
    (here.folder.parent / "home" / ".mlflow" / "credentials").write_text(
        f"[mlflow]\nmlflow_tracking_username = ana\nmlflow_tracking_password = {PASSWORD}\n"
    )
    found, code = examine(MLFLOW_TRACKING_URI=guarded_server)
    assert code == 0
    assert "~/.mlflow/credentials" in found["credentials"]["seen"]


# Artifacts


@pytest.mark.campaign
def test_a_server_that_leaves_artifacts_to_its_clients(tmp_path: Path, examine: Examine) -> None:
    with start_mlflow_server(
        tmp_path / "server", options=["--no-serve-artifacts", "--default-artifact-root", "/srv/theirs"]
    ) as (uri, _):
        found, code = examine(MLFLOW_TRACKING_URI=uri)
    assert code == 1
    assert "doesn't serve artifacts" in found["artifacts"]["seen"]
    assert "--serve-artifacts" in found["artifacts"]["remedy"]


def test_an_experiment_that_keeps_its_files_elsewhere(mlflow_server: str, examine: Examine) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(mlflow_server)
    made = client.create_experiment("doctor elsewhere", artifact_location="s3://their-bucket/files")
    try:
        found, code = examine(MLFLOW_TRACKING_URI=mlflow_server)
    finally:
        client.delete_experiment(made)
    assert code == 0
    assert found["artifacts"]["state"] == "warn"
    assert "s3://their-bucket/files" in found["artifacts"]["seen"]


# TLS


def _certificate(folder: Path, days: int) -> Path:
    """A key and a self-signed certificate for 127.0.0.1, in one file, that ends in so many days."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, "test")])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=30))
        .not_valid_after(now + datetime.timedelta(days=days, hours=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    file = folder / f"{days}.pem"
    file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        + made.public_bytes(serialization.Encoding.PEM)
    )
    return file


@pytest.fixture
def over_tls(mlflow_server: str, tmp_path: Path) -> Iterator[Callable[[int], tuple[str, str]]]:
    """proxy(days) -> the https address of a TLS proxy before the server, and its certificate, which ends in so many days."""
    listening: list[socket.socket] = []
    target = ("127.0.0.1", int(mlflow_server.rpartition(":")[2]))

    def pump(source: Any, sink: Any) -> None:
        try:
            while piece := source.recv(65536):
                sink.sendall(piece)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def accept(server: socket.socket, context: ssl.SSLContext) -> None:
        while True:
            try:
                plain, _ = server.accept()
            except OSError:
                return
            try:
                inside = context.wrap_socket(plain, server_side=True)
            except OSError:
                continue
            behind = socket.create_connection(target)
            for ends in ((inside, behind), (behind, inside)):
                threading.Thread(target=pump, args=ends, daemon=True).start()

    def start(days: int) -> tuple[str, str]:
        file = _certificate(tmp_path, days)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        server = socket.create_server(("127.0.0.1", 0))
        listening.append(server)
        threading.Thread(target=accept, args=(server, context), daemon=True).start()
        return f"https://127.0.0.1:{server.getsockname()[1]}", str(file)

    yield start
    for server in listening:
        server.shutdown(socket.SHUT_RDWR)
        server.close()


def test_certificates(
    over_tls: Callable[[int], tuple[str, str]], mlflow_server: str, examine: Examine
) -> None:
    uri, file = over_tls(100)
    found, code = examine(MLFLOW_TRACKING_URI=uri, MLFLOW_TRACKING_SERVER_CERT_PATH=file)
    assert code == 0
    assert _states(found, "certificate", "reachable", "version") == ["ok", "ok", "ok"]
    assert found["certificate"]["seen"].endswith(", 100 days")

    found, code = examine(MLFLOW_TRACKING_URI=uri)
    assert code == 1
    assert "self-signed" in found["certificate"]["seen"]
    assert "MLFLOW_TRACKING_SERVER_CERT_PATH" in found["certificate"]["remedy"]
    assert found["reachable"]["seen"] == "not looked at: there is no TLS connection"

    found, code = examine(
        MLFLOW_TRACKING_URI=uri.replace("127.0.0.1", "localhost"), MLFLOW_TRACKING_SERVER_CERT_PATH=file
    )
    assert code == 1
    assert "Hostname mismatch" in found["certificate"]["seen"]

    found, code = examine(MLFLOW_TRACKING_URI=uri, MLFLOW_TRACKING_INSECURE_TLS="true")
    assert code == 0
    assert _states(found, "certificate", "reachable", "environment") == ["warn", "ok", "warn"]

    found, code = examine(MLFLOW_TRACKING_URI=mlflow_server.replace("http", "https"))
    assert code == 1
    assert "http://" in found["certificate"]["remedy"]

    uri, file = over_tls(3)
    found, code = examine(MLFLOW_TRACKING_URI=uri, MLFLOW_TRACKING_SERVER_CERT_PATH=file)
    assert (code, found["certificate"]["state"]) == (0, "warn")
    assert "renew" in found["certificate"]["remedy"]

    uri, file = over_tls(-2)
    found, code = examine(MLFLOW_TRACKING_URI=uri, MLFLOW_TRACKING_SERVER_CERT_PATH=file)
    assert code == 1
    assert "expired" in found["certificate"]["seen"]

    found, code = examine(MLFLOW_TRACKING_URI=uri, MLFLOW_TRACKING_SERVER_CERT_PATH="/not/there.pem")
    assert code == 1
    assert _states(found, "certificate", "environment") == ["fail", "fail"]


# A database


def test_a_database(examine: Examine, here: Workplace) -> None:
    file = here.folder / "mlflow.db"
    content = file.read_bytes()
    found, code = examine()
    assert code == 0
    assert _states(found, "server", "database", "schema", "writable") == ["ok"] * 4
    assert file.read_bytes() == content

    with closing(sqlite3.connect(file)) as other:
        other.execute("update alembic_version set version_num = 'from_the_future'")
        other.commit()
        found, code = examine()
        assert code == 1
        assert "newer MLflow" in found["schema"]["seen"]
        other.execute("update alembic_version set version_num = '90e64c465722'")
        other.commit()
        found, code = examine()
        assert code == 1
        assert f"mlflow db upgrade sqlite:///{file}" in found["schema"]["remedy"]
        other.execute("drop table alembic_version")
        other.commit()
        assert "no tables of MLflow's yet" in examine()[0]["schema"]["seen"]
        other.execute("begin exclusive")
        found, code = examine()
        assert code == 5
        assert "locked" in found["database"]["seen"]

    file.write_text("not a database" * 100)
    found, code = examine()
    assert code == 1
    assert "is not an SQLite database" in found["database"]["seen"]
    assert _states(found, "schema", "writable") == ["skipped", "skipped"]

    file.unlink()
    for uri in (f"sqlite:///{file}", f"sqlite+pysqlite:///{file}"):
        found, code = examine(MLFLOW_TRACKING_URI=uri)
        assert code == 0
        assert "isn't there yet" in found["database"]["seen"]
        assert not list(here.folder.iterdir())


def test_without_an_address_it_is_the_database_of_the_folder(here: Workplace) -> None:
    shutil.rmtree(here.folder)
    here.folder.mkdir()
    report = here.json("doctor")
    found = {finding["name"]: finding for finding in report["findings"]}
    assert str(here.folder / "mlflow.db") in found["server"]["seen"]
    assert "isn't set" in found["server"]["seen"]
    # Looking makes nothing: no database, no folder of a cache or an outbox.
    assert not list(here.folder.iterdir())
    assert not list((here.folder.parent / "home").rglob("*lossy*"))


def test_a_database_server(examine: Examine, postgres: Postgres, postgres_uri: str) -> None:
    found, code = examine(MLFLOW_TRACKING_URI=postgres_uri)
    assert code == 0
    assert _states(found, "server", "database", "schema") == ["ok"] * 3
    found, code = examine(MLFLOW_TRACKING_URI=postgres.create("empty_for_doctor"))
    assert "no tables of MLflow's yet" in found["schema"]["seen"]
    for place in (postgres_uri.rpartition("@")[2], "127.0.0.1:9/mlflow"):
        found, code = examine(MLFLOW_TRACKING_URI=f"postgresql://mlflow:{PASSWORD}/x@{place}")
        assert code == 5
        assert _states(found, "server", "database", "schema") == ["ok", "fail", "skipped"]
        assert place in found["server"]["seen"]


# This machine


def test_what_waits_in_the_outbox(examine: Examine, here: Workplace) -> None:
    uri = f"http://me:{PASSWORD}@127.0.0.1:9"
    code = "import mlflow\nwith mlflow.start_run(run_name='waits'):\n    mlflow.log_metric('loss', 1.0)"
    here.run(sys.executable, "-c", code, env={"MLFLOW_TRACKING_URI": f"outbox+{uri}"})
    found, exit_code = examine(MLFLOW_TRACKING_URI=uri)
    assert exit_code == 5
    assert "of 1 runs wait for http://127.0.0.1:9" in found["outbox"]["seen"]
    assert "a sender is at work" in found["outbox"]["seen"]
    # Another server's is sent by nobody.
    end_senders(here.folder.parent / "home/state/lossy_mlflow/outbox")
    found, exit_code = examine(MLFLOW_TRACKING_URI="http://127.0.0.1:10")
    assert "--to http://127.0.0.1:9" in found["outbox"]["remedy"]
    assert found["outbox"]["state"] == "warn"


def test_values_that_a_server_has_refused(mlflow_server: str, examine: Examine, here: Workplace) -> None:
    code = "import mlflow\nwith mlflow.start_run(run_name='refused'):\n    mlflow.log_param('p', 1)\n    mlflow.log_param('p', 2)"
    here.run(sys.executable, "-c", code, env={"MLFLOW_TRACKING_URI": f"outbox+{mlflow_server}"})
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found, exit_code = examine(MLFLOW_TRACKING_URI=mlflow_server)
        if "nothing waits" in found["outbox"]["seen"]:
            break
    assert exit_code == 0
    assert found["outbox"]["state"] == "warn"
    assert "refused 1 values for good" in found["outbox"]["seen"]
    assert "lossy outbox status" in found["outbox"]["remedy"]


def test_folders(examine: Examine, here: Workplace, tmp_path: Path, tmpfs: Callable[[str], Path]) -> None:
    home = tmp_path / "images"
    (home / "MNIST/raw").mkdir(parents=True)
    with (home / "MNIST/raw/train-images-idx3-ubyte").open("wb") as file:
        file.truncate(47_040_016)
    found, code = examine(LOSSY_DATA_DIR=str(home))
    assert found["data"]["state"] == "warn"
    assert found["data"]["remedy"] == "lossy data fetch mnist"
    with (home / "MNIST/raw/t10k-images-idx3-ubyte").open("wb") as file:
        file.truncate(7_840_016)
    found, code = examine(LOSSY_DATA_DIR=str(home))
    assert found["data"]["state"] == "ok"
    assert "has mnist (" in found["data"]["seen"]

    small = tmpfs("size=1m")
    found, code = examine(LOSSY_CACHE_DIR=str(small))
    assert (code, found["cache"]["state"]) == (0, "warn")
    assert f"df -h {small}" in found["cache"]["remedy"]
    read_only = str(tmpfs("ro") / "x")
    found, code = examine(
        LOSSY_CACHE_DIR=read_only,
        LOSSY_DATA_DIR=read_only,
        LOSSY_OUTBOX_DIR=read_only,
        MLFLOW_TRACKING_URI=f"sqlite:///{read_only}/mlflow.db",
    )
    assert code == 1
    assert _states(found, "cache", "data", "outbox", "writable") == ["fail"] * 4
    assert "LOSSY_CACHE_DIR" in found["cache"]["remedy"]


def test_user_code(examine: Examine, here: Workplace) -> None:
    file = here.folder / "mine.py"
    file.write_text("print('hello')\n")
    assert examine(LOSSY_USER_CODE=str(file))[0]["user code"]["state"] == "ok"
    file.write_text("x = 1\nraise RuntimeError('no')\n")
    found, code = examine(LOSSY_USER_CODE=str(file))
    assert code == 1
    assert f"{file}:2: RuntimeError: no" in found["user code"]["seen"]
    found, code = examine(LOSSY_USER_CODE=str(here.folder / "other.py"))
    assert code == 1
    assert "there is no such file" in found["user code"]["seen"]


def test_variables_that_surprise(examine: Examine) -> None:
    found, code = examine(
        MLFLOW_RUN_ID="abc",
        MLFLOW_REGISTRY_URI=f"http://me:{PASSWORD}@other",
        MLFLOW_TRACKING_PASSWORD=PASSWORD,
    )
    assert code == 0
    assert found["environment"]["state"] == "warn"
    assert found["environment"]["remedy"].endswith(
        "unset MLFLOW_RUN_ID MLFLOW_REGISTRY_URI MLFLOW_TRACKING_PASSWORD"
    )


def test_torch(examine: Examine, here: Workplace, tmp_path: Path) -> None:
    found, code = examine()
    assert (code, found["torch"]["state"]) == (0, "ok")
    assert "not installed: fine where" in found["torch"]["seen"]
    (tmp_path / "torch.py").write_text("raise OSError('libtorch.so: cannot open shared object file')\n")
    found, code = examine(PYTHONPATH=str(tmp_path))
    assert code == 1
    assert "can't be loaded: OSError: libtorch.so" in found["torch"]["seen"]


def test_the_doctor_itself_loads_no_torch(here: Workplace, without_torch: str) -> None:
    (here.folder / "mine.py").write_text("import torch\n")
    code = "import sys\nfrom lossy_mlflow.service.doctor import examine\nexamine()\nprint('torch' in sys.modules)"
    done = here.run(sys.executable, "-c", code, env={"LOSSY_USER_CODE": "mine.py"})
    assert done.stdout == "False\n"

"""The team service in real containers, as docker/compose.yaml describes them. It takes minutes: `make test-faults`."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import psutil
import pytest
import requests

from tests.conftest import Workplace, free_port, wait_for
from tests.service.test_docker import EXAMPLE, SECRETS, settings
from tests.services.containers import Containers, start_containers

pytestmark = pytest.mark.campaign
VALUES = {name: f"{name.lower()}-of-the-tests-{'0123456789' * 3}" for name in SECRETS}
# What MLflow's own API does with an artifact.
STORE = "import sys, mlflow\nwith mlflow.start_run() as run: mlflow.log_text(sys.argv[1], 'note.txt')\nprint(run.info.run_id)"
READ = "import sys, mlflow\nprint(mlflow.artifacts.load_text(f'runs:/{sys.argv[1]}/note.txt'))"


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def containers(port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    folder = tmp_path_factory.mktemp("containers")
    (tls := folder / "tls").mkdir()
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
            "-addext", "subjectAltName=DNS:localhost", "-keyout", "key.pem", "-out", "certificate.pem",
        ],
        cwd=tls,
        check=True,
        capture_output=True,
    )  # fmt: skip
    changed = VALUES | {
        "LOSSY_PORT": str(port),
        "LOSSY_CERTIFICATE": str(tls / "certificate.pem"),
        "LOSSY_CERTIFICATE_KEY": str(tls / "key.pem"),
    }
    values = settings(EXAMPLE.read_text()) | changed
    with start_containers(folder, "".join(f"{name}={value}\n" for name, value in values.items())) as started:
        yield started


@pytest.fixture(scope="module")
def admin(containers: Containers, port: int, tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    folder = tmp_path_factory.mktemp("admin")
    place = Workplace(folder, folder / "home")
    place.environment |= {
        "MLFLOW_TRACKING_URI": f"https://localhost:{port}",
        "MLFLOW_TRACKING_SERVER_CERT_PATH": str(containers.folder / "tls" / "certificate.pem"),
        "MLFLOW_TRACKING_USERNAME": "admin",
        "MLFLOW_TRACKING_PASSWORD": VALUES["LOSSY_ADMIN_PASSWORD"],
    }
    return place


def python(place: Workplace, code: str, *words: str) -> str:
    done = place.run(place.command()[0], "-c", code, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def test_what_is_stored_is_there_after_all_containers_were_made_anew(
    containers: Containers, admin: Workplace
) -> None:
    run_id = python(admin, STORE, "kept")
    containers.compose("down")
    containers.up()
    assert python(admin, READ, run_id) == "kept"


def test_without_a_password_nothing_is_shown(containers: Containers, port: int) -> None:
    certificate = str(containers.folder / "tls" / "certificate.pem")
    for name, password in (("", ""), ("admin", "another password")):
        reply = requests.get(
            f"https://localhost:{port}/api/2.0/mlflow/experiments/get?experiment_id=0",
            auth=(name, password) if name else None,
            verify=certificate,
            timeout=30,
        )
        assert reply.status_code == 401


def test_a_container_can_change_nothing_of_itself_and_reaches_nothing_outside(containers: Containers) -> None:
    for service in ("database", "store", "server", "proxy"):
        container = f"lossy_{service}_1"
        written = subprocess.run(
            ["podman", "exec", container, "touch", "/written"],
            env=containers.environment,
            capture_output=True,
            text=True,
        )
        assert "Read-only file system" in written.stderr
        bounding = containers.podman("exec", container, "grep", "CapBnd", "/proc/1/status").split()[1]
        allowed = {"proxy": 0b11000011}.get(service, 0)
        assert int(bounding, 16) == allowed, service
    routes = containers.podman("exec", "lossy_server_1", "cat", "/proc/net/route").splitlines()[1:]
    assert routes
    assert not [line for line in routes if line.split()[1] == "00000000"], "a way out"
    who = containers.podman("exec", "lossy_server_1", "id", "-u").strip()
    assert who == "10001"


def test_no_secret_is_in_the_list_of_processes_or_a_log(containers: Containers, admin: Workplace) -> None:
    assert admin.lossy("users", "list").returncode == 0
    keys = containers.podman("exec", "lossy_server_1", "cat", "/keys/credentials")
    secrets = [*VALUES.values(), *[line.partition(" = ")[2] for line in keys.splitlines()[1:]]]
    assert len(secrets) == 5
    seen = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
    seen += [
        containers.podman("logs", f"lossy_{name}_1") for name in ("database", "store", "server", "proxy")
    ]
    # An empty list would hold none.
    assert any("lossy serve" in words for words in seen)
    assert [secret for secret in secrets if any(secret in words for words in seen)] == []


def test_what_dies_is_started_again(containers: Containers, admin: Workplace) -> None:
    for service in ("database", "server"):
        pid = containers.podman("inspect", "--format", "{{.State.Pid}}", f"lossy_{service}_1").strip()
        psutil.Process(int(pid)).kill()
        wait_for(lambda pid=pid: not psutil.pid_exists(int(pid)), 30, "it is dead")
    for service in ("database", "server", "proxy"):
        wait_for(lambda name=service: containers.healthy(name), 120, f"{service} is healthy again")
    assert python(admin, STORE, "again")

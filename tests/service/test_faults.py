"""Clients log by way of the outbox while a part of the service dies, or can't be reached, and comes back: nothing is lost."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient

from lossy_mlflow.outbox.books import list_outbox
from tests.conftest import Workplace, end_senders, wait_for
from tests.services.disk import fill, mounted
from tests.services.link import Link, State
from tests.services.lossy_serve import Served, start_lossy_serve
from tests.services.nginx import start_nginx
from tests.services.postgres import Postgres, start_postgres
from tests.services.seaweedfs import BUCKET, SeaweedFS, start_seaweedfs

pytestmark = pytest.mark.campaign
_PASSWORD = "password-of-the-admin"  # noqa: S105

# Each line of its output is a call that has returned.
PROGRAM = """
import json, os, sys, time, mlflow
name, until = sys.argv[1], time.monotonic() + float(sys.argv[2])
mlflow.set_experiment("faults")
step = 0
with mlflow.start_run(run_name=name):
    while time.monotonic() < until:
        mlflow.log_metric("loss", step / 7, step=step)
        os.write(1, (json.dumps(["metric", step]) + "\\n").encode())
        if step % 20 == 0:
            mlflow.log_text("x" * 10_000 + str(step), f"files/{step}.txt")
            os.write(1, (json.dumps(["file", step]) + "\\n").encode())
        step += 1
        time.sleep(0.05)
"""


@dataclass(frozen=True)
class Service:
    """A server with all its parts. Each cable between two of them can be cut."""

    postgres: Postgres
    s3: SeaweedFS
    disk_of_postgres: Path
    disk_of_s3: Path
    to_proxy: Link
    to_postgres: Link
    to_s3: Link
    served: Served
    environment: dict[str, str]
    client: dict[str, str]

    def workers(self) -> list[psutil.Process]:
        """The processes that answer requests."""
        return [member for member in self.served.family() if "spawn_main" in " ".join(member.cmdline())]

    def check(self, place: Workplace) -> list[dict[str, Any]]:
        """What `lossy check --deep` finds, beside the server."""
        done = place.lossy("check", "--deep", "--json", env=self.environment)
        assert done.stdout, done.stderr
        return list(json.loads(done.stdout)["findings"])


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("faults")
    with ExitStack() as stack:
        # Not in pytest's folder, which PostgreSQL's user may not enter.
        elsewhere = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        elsewhere.chmod(0o755)
        disk_of_postgres, disk_of_s3 = elsewhere / "disk", folder / "s3"
        for disk in (disk_of_postgres, disk_of_s3):
            disk.mkdir()
            if os.geteuid() == 0:
                stack.enter_context(mounted(disk, "size=1g"))
        postgres = stack.enter_context(start_postgres(disk_of_postgres))
        s3 = stack.enter_context(start_seaweedfs(disk_of_s3))
        to_postgres, to_s3 = Link(postgres.port), Link(s3.port)
        database = postgres.create("mlflow").replace(str(postgres.port), str(to_postgres.port))
        environment = s3.environment | {
            "MLFLOW_BACKEND_STORE_URI": database,
            "MLFLOW_ARTIFACTS_DESTINATION": f"s3://{BUCKET}/faults",
            "MLFLOW_S3_ENDPOINT_URL": f"http://127.0.0.1:{to_s3.port}",
            "MLFLOW_AUTH_ADMIN_PASSWORD": _PASSWORD,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "a-secret-key-of-the-tests-that-is-long-enough",
        }
        socket = folder / "server.sock"
        options = ["--auth", "--workers", "2", "--socket", str(socket), "--allowed-hosts", "localhost"]
        served = stack.enter_context(start_lossy_serve(folder / "served", options, environment))
        proxy = stack.enter_context(start_nginx(folder / "nginx", f"unix:{socket}"))
        to_proxy = Link(int(proxy.uri.rpartition(":")[2]))
        client = {
            "MLFLOW_TRACKING_URI": f"outbox+https://localhost:{to_proxy.port}",
            "MLFLOW_TRACKING_SERVER_CERT_PATH": str(proxy.certificate),
            "MLFLOW_TRACKING_USERNAME": "admin",
            "MLFLOW_TRACKING_PASSWORD": _PASSWORD,
            "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        }
        yield Service(
            postgres,
            s3,
            disk_of_postgres,
            disk_of_s3,
            to_proxy,
            to_postgres,
            to_s3,
            served,
            environment,
            client,
        )


def _kill_worker(service: Service, _: float) -> None:
    service.workers()[0].kill()


def _kill_postgres(service: Service, seconds: float) -> None:
    server = psutil.Process(service.postgres.pid)
    children = server.children()
    os.kill(server.pid, signal.SIGKILL)
    psutil.wait_procs([server, *children], timeout=30)
    time.sleep(seconds)
    service.postgres.start()


def _kill_s3(service: Service, seconds: float) -> None:
    service.s3.kill()
    time.sleep(seconds)
    service.s3.start()


def _fill(disk: Path) -> Path:
    if not disk.is_mount():
        pytest.skip("needs root, to mount a file system")
    return fill(disk)


def _fill_s3(service: Service, seconds: float) -> None:
    others = _fill(service.disk_of_s3)
    time.sleep(seconds)
    others.unlink()
    # Its index takes nothing any more, until it is started anew.
    service.s3.kill()
    service.s3.start()


def _fill_postgres(service: Service, seconds: float) -> None:
    others = _fill(service.disk_of_postgres)
    time.sleep(seconds)
    others.unlink()
    # Without room for its journal it ends by itself.
    if not service.postgres.runs():
        service.postgres.start()


def _cut(link: str, state: State) -> Callable[[Service, float], None]:
    def cut(service: Service, seconds: float) -> None:
        getattr(service, link).set(state)
        time.sleep(seconds)
        getattr(service, link).set("whole")

    return cut


def _all_of_it(service: Service, seconds: float) -> None:
    _kill_worker(service, 0)
    service.to_s3.set("refused")
    time.sleep(seconds / 4)
    _kill_postgres(service, seconds / 4)
    service.to_s3.set("whole")
    time.sleep(seconds / 4)
    _kill_s3(service, seconds / 4)


FAULTS = {
    "all of it": _all_of_it,
    "a worker killed": _kill_worker,
    "PostgreSQL killed": _kill_postgres,
    "S3 killed": _kill_s3,
    "no room for S3": _fill_s3,
    "no room for PostgreSQL": _fill_postgres,
    **{
        f"{link} {state}": _cut(link, state)
        for link in ("to_proxy", "to_postgres", "to_s3")
        for state in ("silent", "refused")
    },
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_was_acknowledged_is_there_once(service: Service, workplace: Workplace, fault: str) -> None:
    outbox = workplace.folder.parent / "outbox"
    name = fault.replace(" ", "-").replace("_", "-")
    workplace.environment |= service.client | {"LOSSY_OUTBOX_DIR": str(outbox)}
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, name, "20"],
        cwd=workplace.folder,
        env=workplace.environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    training = workplace.start(
        "train",
        "vae10_digits",
        "--e-name",
        name,
        "--set",
        "model_train.epochs=60",
        "--set",
        "checkpointing_freq=20",
    )
    assert program.stdout
    assert json.loads(program.stdout.readline()) == ["metric", 0]
    # A training that is asking what there is of its label needs the server.
    wait_for(lambda: len(list_outbox(outbox)) == 2, 60, "both have begun")
    time.sleep(1)
    FAULTS[fault](service, 8)
    calls = [["metric", 0], *(json.loads(line) for line in program.communicate(timeout=120)[0].splitlines())]
    _, err = training.communicate(timeout=200)
    assert (program.returncode, training.returncode) == (0, 0), err
    try:
        _wait_until_delivered(workplace, outbox)
        _check_run(service, name, calls)
        _check_versions(workplace, f"vae10_digits_{name}")
        assert service.check(workplace) == []
    finally:
        end_senders(outbox)


def test_a_training_that_starts_while_the_database_is_away_trains(
    service: Service, workplace: Workplace
) -> None:
    """The server answers, and can't say what there is of the label."""
    outbox = workplace.folder.parent / "outbox"
    workplace.environment |= service.client | {"LOSSY_OUTBOX_DIR": str(outbox)}
    service.to_postgres.set("refused")
    short = ("--set", "model_train.epochs=20", "--set", "checkpointing_freq=20")
    try:
        done = workplace.lossy("train", "vae10_digits", "--e-name", "away", *short, "--json")
    finally:
        service.to_postgres.set("whole")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["delivered"] is False
    assert re.search(r"answers 50\d to a question. Training goes on without it", done.stderr), done.stderr
    try:
        _wait_until_delivered(workplace, outbox)
        (version,) = workplace.json("checkpoints", "vae10_digits_away")
        assert sorted(version["aliases"]) == ["best", "last"]
    finally:
        end_senders(outbox)


def _wait_until_delivered(workplace: Workplace, outbox: Path) -> None:
    """A sender that was told to wait, or had given up, goes on."""
    workplace.lossy("outbox", "send", str(outbox))
    wait_for(lambda: not any(run.waiting for run in list_outbox(outbox)), 120, "delivery")


def _check_run(service: Service, name: str, calls: list[list[Any]]) -> None:
    # The service's own database, past its server.
    client = MlflowClient(service.environment["MLFLOW_BACKEND_STORE_URI"])
    experiment = client.get_experiment_by_name("faults")
    assert experiment
    (run,) = client.search_runs([experiment.experiment_id], f"attributes.run_name = '{name}'")
    assert run.info.status == "FINISHED"
    points = client.get_metric_history(run.info.run_id, "loss")
    assert sorted(point.step for point in points) == [step for kind, step in calls if kind == "metric"]
    assert all(point.value == point.step / 7 for point in points)
    base = f"{experiment.artifact_location}/{run.info.run_id}/artifacts/files".partition(":/")[2].strip("/")
    for step in [step for kind, step in calls if kind == "file"]:
        body = service.s3.client().get_object(Bucket=BUCKET, Key=f"faults/{base}/{step}.txt")["Body"].read()
        assert body == b"x" * 10_000 + str(step).encode()


def _check_versions(workplace: Workplace, label: str) -> None:
    versions = workplace.json("checkpoints", label)
    epochs = [version["epoch"] for version in versions]
    assert sorted(set(epochs)) == sorted(epochs)
    assert 60 in epochs
    aliases = sorted(alias for version in versions for alias in version["aliases"])
    assert aliases == ["best", "last"]
    verified = workplace.json("verify", label)
    assert {item["state"] for item in verified} == {"ok"}

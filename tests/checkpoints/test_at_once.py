"""Many processes publish and promote at once; and a publication that is killed at each of its calls."""

from __future__ import annotations

import random
import subprocess
import sys
from typing import Any

import mlflow
import pytest

from lossy_mlflow.checkpoints.history import history
from lossy_mlflow.checkpoints.verify import verify, versions_to_verify
from tests.conftest import Workplace

N_PROCESSES = 20

# `kill_at`: the number of the call to the server, or its database, before which it dies; -1: none.
PUBLISH = """
import inspect, os, sys
from mlflow import MlflowClient
from mlflow.tracking._model_registry.client import ModelRegistryClient
from mlflow.tracking._tracking_service.client import TrackingServiceClient
from lossy_mlflow.checkpoints.promote import promote
from lossy_mlflow.checkpoints.publish import Publication, Snapshot, ensure_registered_model, publish
from lossy_mlflow.hparams import get_hparams
from lossy_mlflow.models import build_model, decoder_of
from lossy_mlflow.tracking.connection import connect

name, run_id, epoch, kill_at = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
tree = get_hparams("vae2_digits")
weights = decoder_of(build_model(tree)).state_dict()
calls = 0
def dies(function):
    def called(*arguments, **named):
        global calls
        if calls == kill_at:
            os.kill(os.getpid(), 9)
        calls += 1
        return function(*arguments, **named)
    return called
if kill_at >= 0:
    for method, function in list(vars(MlflowClient).items()):
        if inspect.isfunction(function) and not method.startswith("_"):
            setattr(MlflowClient, method, dies(function))
    # What is called below it.
    for below, method in ((TrackingServiceClient, "set_logged_model_tags"), (ModelRegistryClient, "set_registered_model_alias")):
        setattr(below, method, dies(getattr(below, method)))
publish(connect(), run_id, Publication(name, "", tree, {"hparam_set": "vae2_digits"}), Snapshot(epoch, abs(epoch - 7.5), weights))
if kill_at < 0:
    promote(f"{name}@last", because=str(epoch))
print(calls)
"""


@pytest.fixture(params=["sqlite", "http"])
def name(here: Workplace, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of a registered model that isn't there yet, in a file of the test's own or on the server that tests share."""
    if request.param == "http":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", request.getfixturevalue("mlflow_server"))
        here.environment["MLFLOW_TRACKING_URI"] = request.getfixturevalue("mlflow_server")
    return f"at once {random.getrandbits(64):x}"


def _run_of(name: str) -> str:
    tags = {"kind": "train", "label": name, "hparam_set": "vae2_digits"}
    return str(mlflow.MlflowClient().create_run("0", tags=tags).info.run_id)


def _start(here: Workplace, name: str, run_id: str, epoch: int, kill_at: int = -1) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PUBLISH, name, run_id, str(epoch), str(kill_at)],
        cwd=here.folder,
        env=here.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.campaign
def test_twenty_publish_and_promote_at_once(here: Workplace, name: str) -> None:
    run_id = _run_of(name)
    epochs = range(1, N_PROCESSES + 1)
    processes = [_start(here, name, run_id, epoch) for epoch in epochs]
    for process in processes:
        _, err = process.communicate(timeout=500)
        assert process.returncode == 0, err
    client = mlflow.MlflowClient()
    versions = {int(version.version): version for version in client.search_model_versions(f"name = '{name}'")}
    assert sorted(versions) == list(epochs)
    assert sorted(int(version.tags["epoch"]) for version in versions.values()) == list(epochs)
    aliases = client.get_registered_model(name).aliases
    assert versions[int(aliases["best"])].tags["epoch"] == "7"
    assert versions[int(aliases["last"])].tags["epoch"] == str(N_PROCESSES)
    told = history(name, "champion").entries
    # Who finds the alias where it is to be has nothing to record.
    assert told
    assert told[0].version == int(aliases["champion"])
    assert {row.state for row in verify(versions_to_verify(name))} == {"ok"}


@pytest.mark.campaign
def test_a_publication_that_is_killed_at_any_call_is_completed_by_the_next(
    here: Workplace, name: str
) -> None:
    client, kill_at, finished = mlflow.MlflowClient(), 0, False
    while not finished:
        label = f"{name} {kill_at}"
        run_id = _run_of(label)
        process = _start(here, label, run_id, 3, kill_at)
        _, err = process.communicate(timeout=100)
        finished = process.returncode == 0
        assert finished or process.returncode == -9, err
        for version in _versions(client, label):  # never one that is half made
            assert {row.state for row in verify(versions_to_verify(f"{label}/{version.version}"))} == {"ok"}
        assert _start(here, label, run_id, 3).wait(100) == 0
        (version,) = _versions(client, label)
        assert client.get_registered_model(label).aliases == dict.fromkeys(
            ("best", "last", "champion"), version.version
        )
        kill_at += 1
    assert kill_at > 8


def _versions(client: Any, name: str) -> list[Any]:
    return list(client.search_model_versions(f"name = '{name}'"))

"""However a training ends, its run says so: real processes, real signals, a real `mlflow run`."""

from __future__ import annotations

import contextlib
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import ROOT, Workplace, wait_for

CAMPAIGN = pytest.mark.campaign
ENDLESS = ("--set", "model_train.epochs=100000")


def _runs(client: Any) -> list[Any]:
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    return list(client.search_runs(ids))


def _run_of(client: Any, label: str) -> Any:
    return next((run for run in _runs(client) if run.info.run_name == label), None)


def _trains(client: Any, label: str) -> Any:
    """The run of that label, once an epoch stands in it."""
    run = _run_of(client, label)
    return run if run and "val_loss" in run.data.metrics else None


@pytest.fixture(params=["sqlite", pytest.param("http", marks=CAMPAIGN)])
def store(workplace: Workplace, request: pytest.FixtureRequest) -> Any:
    """A plain client of the store in which the workplace's commands work."""
    from mlflow import MlflowClient

    if request.param == "sqlite":
        return MlflowClient(f"sqlite:///{workplace.folder}/mlflow.db")
    uri = request.getfixturevalue("mlflow_server")
    workplace.environment["MLFLOW_TRACKING_URI"] = uri
    return MlflowClient(uri)


def test_a_notice_of_pre_emption_ends_the_run_as_killed(workplace: Workplace, store: Any) -> None:
    process = workplace.start("train", "vae10_digits", "--e-name", "notice", *ENDLESS)
    run = wait_for(lambda: _trains(store, "vae10_digits_notice"), 120, "an epoch")
    process.send_signal(signal.SIGUSR1)
    run_id = run.info.run_id
    wait_for(lambda: store.get_run(run_id).info.status != "RUNNING", 5, "the end of the run")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGUSR1, err
    run = store.get_run(run_id)
    assert run.info.status == "KILLED"
    assert "was stopped by SIGUSR1 after epoch" in run.data.tags["state_reason"]
    assert "training_state" in run.data.tags


def test_what_died_with_its_watcher_is_closed_by_the_next_command_there(
    workplace: Workplace, store: Any
) -> None:
    label = "vae10_digits_power cut"
    process = workplace.start("train", "vae10_digits", "--e-name", "power cut", *ENDLESS)
    run_id = wait_for(lambda: _trains(store, label), 120, "an epoch").info.run_id
    trainer = psutil.Process(process.pid)
    for member in [*trainer.children(recursive=True), trainer]:
        member.kill()
    process.communicate(timeout=60)

    elsewhere = {"XDG_STATE_HOME": str(workplace.folder / "another machine")}
    listed = workplace.json("runs", "list", env=elsewhere)
    assert [run["state"] for run in listed if run["run_id"] == run_id] == ["RUNNING"]
    told = workplace.json("runs", "reconcile", env=elsewhere)
    assert run_id not in {run["run_id"] for run in told}

    done = workplace.lossy("runs", "list")
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if run_id in line]
    assert line.split()[-1] == run_id
    assert " FAILED " in line.removeprefix(label)
    # By the command itself, or by the outbox's sender, which it has started.
    assert "died" in store.get_run(run_id).data.tags["state_reason"]
    if "MLFLOW_TRACKING_URI" not in workplace.environment:
        assert f"{label} {run_id} closed: its process on" in done.stderr
    again = workplace.lossy("runs", "reconcile")
    assert (again.returncode, run_id in again.stdout, again.stderr) == (0, False, "")


USER_CODE = """
import os, sys
from lossy_mlflow import Hparam, register_hparams, register_model
from lossy_mlflow.hparams.catalogue.digits import vae2_digits

@register_model("fragile")
def fragile(hparams):
    from lossy_mlflow.models import build_model
    from lossy_mlflow.hparams import apply_overrides
    model = build_model(apply_overrides(hparams, {"model_name": "deep_vae"}))
    loss, left = model.loss, [30]
    def breaks(batch, generator):
        left[0] -= 1
        if left[0] < 0:
            exec(hparams.breaks_by)
        return loss(batch, generator)
    model.loss = breaks
    return model

@register_hparams
def fragile_digits() -> Hparam:
    tree = vae2_digits()
    tree.model_name = "fragile"
    tree.breaks_by = "pass"
    return tree
"""


@pytest.mark.parametrize(
    ("breaks_by", "code", "reason"),
    [
        ("sys.exit(3)", 3, "SystemExit: 3"),
        pytest.param("sys.exit(0)", 1, "SystemExit: 0", marks=CAMPAIGN),
        ("os._exit(3)", 3, "The process died before it could end the run"),
        pytest.param("raise RuntimeError('out of paint')", 1, "RuntimeError: out of paint", marks=CAMPAIGN),
    ],
)
def test_a_model_that_breaks_its_training_ends_the_run_as_failed(
    workplace: Workplace, client: Any, breaks_by: str, code: int, reason: str
) -> None:
    file = workplace.folder / "fragile.py"
    file.write_text(USER_CODE)
    done = workplace.lossy(
        "train", "fragile_digits", "--user-code", str(file), "--set", f"breaks_by={breaks_by}"
    )
    assert done.returncode == code, done.stderr
    (run,) = _runs(client)
    wait_for(lambda: client.get_run(run.info.run_id).info.status != "RUNNING", 30, "the end of the run")
    run = client.get_run(run.info.run_id)
    assert run.info.status == "FAILED"
    assert reason in run.data.tags["state_reason"]


@CAMPAIGN
def test_the_same_number_written_otherwise_is_the_same_run(workplace: Workplace) -> None:
    words = ("train", "vae2_digits", "--set", "model_train.epochs=1", "--set")
    first = workplace.json(*words, "learning_rate=1e-3")
    again = workplace.json(*words, "learning_rate=0.001")
    assert (again["started"], again["run_id"]) == ("finished", first["run_id"])
    refused = workplace.lossy(*words, "learning_rate=2e-3")
    assert refused.returncode == 4
    assert "learning_rate: 0.001 -> 0.002" in refused.stderr


def _start_mlflow_run(
    workplace: Workplace, *words: str, env: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    # The entry point's `python` is the first on PATH, as in an environment that has been activated.
    path = f"{Path(sys.executable).parent}:{workplace.environment['PATH']}"
    return subprocess.Popen(
        [sys.executable, "-m", "mlflow", "run", str(ROOT), *words],
        cwd=workplace.folder,
        env=workplace.environment | {"PATH": path, "TMPDIR": str(workplace.folder)} | (env or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize(
    "begun", [True, pytest.param(False, marks=CAMPAIGN)], ids=["in the training", "before the training"]
)
def test_what_stops_mlflow_run_stops_the_training(workplace: Workplace, client: Any, begun: bool) -> None:
    words = (
        "--env-manager",
        "local",
        "-P",
        "hparam_set=vae10_digits",
        "-P",
        "overrides=model_train.epochs=100000",
    )
    process = _start_mlflow_run(workplace, *words)
    mlflow_run = psutil.Process(process.pid)

    def entry_point() -> Any:
        # Some of its children end in the moment in which they are asked.
        with contextlib.suppress(psutil.Error):
            return [child for child in mlflow_run.children() if "lossy_mlflow.cli.project" in child.cmdline()]

    (trainer,) = wait_for(entry_point, 120, "the entry point")
    if begun:
        run_id = wait_for(lambda: _trains(client, "vae10_digits"), 120, "an epoch").info.run_id
    else:
        # It has said its first word to the kernel, and none yet to the server.
        wait_for(lambda: trainer.num_threads() > 1, 60, "the watch over `mlflow run`")
        (run,) = _runs(client)
        run_id = run.info.run_id
    family = [trainer, *trainer.children(recursive=True)]
    process.send_signal(signal.SIGTERM)
    wait_for(lambda: client.get_run(run_id).info.status != "RUNNING", 30, "the end of the run")
    run = client.get_run(run_id)
    assert "SIGTERM" in run.data.tags["state_reason"], process.communicate(timeout=60)[0]
    assert run.info.status == "KILLED"
    assert ("training_state" in run.data.tags) == begun
    _, alive = psutil.wait_procs(family, timeout=60)
    assert alive == []
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM


@CAMPAIGN
def test_a_mistake_under_mlflow_run_stands_in_the_run_it_made(workplace: Workplace, client: Any) -> None:
    process = _start_mlflow_run(workplace, "--env-manager", "local", "-P", "hparam_set=vae10_digit")
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    (run,) = _runs(client)
    assert run.info.status == "FAILED"
    assert "vae10_digit" in run.data.tags["state_reason"]
    assert run.data.tags["state_reason"] in out


@pytest.mark.campaign
def test_an_environment_that_fails_to_build_ends_as_failed(workplace: Workplace, client: Any) -> None:
    words = ("--env-manager", "conda", "-P", "hparam_set=vae10_digits")
    process = _start_mlflow_run(workplace, *words, env={"MLFLOW_CONDA_HOME": str(workplace.folder / "none")})
    out, _ = process.communicate(timeout=120)
    assert "Could not find Conda executable" in out
    (run,) = workplace.json("runs", "list")
    assert (run["state"], run["note"]) == ("RUNNING", "not begun")
    assert workplace.json("runs", "reconcile") == []
    hours = 2 * 3600 * 1000
    with closing(sqlite3.connect(workplace.folder / "mlflow.db")) as database:
        database.execute("update runs set start_time = start_time - ?", (hours,))
        database.commit()
    (closed,) = workplace.json("runs", "reconcile")
    assert closed["run_id"] == run["run_id"]
    failed = client.get_run(run["run_id"])
    assert failed.info.status == "FAILED"
    assert "its environment failed" in failed.data.tags["state_reason"]
    assert workplace.json("runs", "reconcile") == []


@CAMPAIGN
def test_the_commands_say_what_to_do_next(workplace: Workplace, client: Any) -> None:
    empty = workplace.lossy("runs", "list")
    assert (empty.returncode, empty.stderr) == (0, "")
    assert "lossy train vae10_digits" in empty.stdout
    assert workplace.json("runs", "list") == []
    assert "lossy runs list" in workplace.lossy("runs", "reconcile").stdout

    long_ago = int((time.time() - 1000) * 1000)
    tags = {"kind": "train", "label": "far", "owner": "there:1", "heartbeat": str(long_ago // 1000)}
    run_id = client.create_run("0", long_ago, tags, "far").info.run_id
    listed = workplace.lossy("runs", "list")
    assert "RUNNING, silent  17 min  17 min" in listed.stdout
    assert "lossy runs reconcile" in listed.stderr
    foreseen = workplace.lossy("runs", "reconcile", "--dry-run")
    assert f"far {run_id} would be closed: no heartbeat for 1" in foreseen.stdout
    closed = workplace.lossy("runs", "reconcile")
    assert f"far {run_id} closed: no heartbeat for 1" in closed.stdout
    refused = workplace.lossy("runs", "reconcile", "--older-than", "5")
    assert refused.returncode == 2
    assert "--older-than 60" in refused.stderr

"""A server that is backed up while others log, lost, and restored: what its outboxes hold is there, and once."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from lossy_mlflow.outbox.books import list_outbox
from tests.conftest import Workplace, end_senders, free_port, start_mlflow_server, wait_for
from tests.service.filled import Done, Filled

# Each line on its standard input is a run's name; "end" ends the run that is open.
PROGRAM = """
import sys
import mlflow
mlflow.set_experiment("logged")
steps = {}
for line in sys.stdin:
    word = line.strip()
    if word == "end":
        mlflow.end_run()
    else:
        if mlflow.active_run() is None:
            mlflow.start_run(run_name=word)
            mlflow.log_param("name", word)
        first = steps.get(word, 0)
        steps[word] = first + 10
        for step in range(first, first + 10):
            mlflow.log_metric("loss", step / 8, step=step)
        mlflow.log_text(f"{word} {first}", f"{first}.txt")
        mlflow.set_tag("reached", str(first + 10))
    mlflow.flush_async_logging()
    print(word, flush=True)
"""


class _Program:
    def __init__(self, workplace: Workplace, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            cwd=workplace.folder,
            env=workplace.environment | environment | {"MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def log(self, word: str) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == f"{word}\n"

    def end(self) -> None:
        self.process.communicate("", timeout=60)


@pytest.fixture
def outbox(tmp_path: Path) -> Any:
    root = tmp_path / "outbox"
    yield root
    end_senders(root)


class _Writer(threading.Thread):
    """Logs runs with a plain client, a file first, then a tag that names it, until it is stopped."""

    def __init__(self, uri: str) -> None:
        super().__init__()
        self.client = MlflowClient(uri)
        self.experiment = self.client.create_experiment("plain")
        self.stopped = threading.Event()
        self.runs = 0

    def run(self) -> None:
        while not self.stopped.is_set():
            run_id = self.client.create_run(self.experiment).info.run_id
            for number in range(3):
                self.client.log_text(run_id, f"{number} {run_id}", f"{number}.txt")
                self.client.set_tag(run_id, f"file{number}", f"{number}.txt")
            self.runs += 1


def test_a_lost_server_comes_back_with_all_that_its_clients_hold(
    workplace: Workplace,
    command: Callable[..., Done],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    outbox: Path,
) -> None:
    port, target = free_port(), str(tmp_path / "backups")
    old = Filled(f"sqlite:///{tmp_path}/server/mlflow.db", f"{tmp_path}/server/mlartifacts")
    new = Filled(f"sqlite:///{tmp_path}/other/mlflow.db", f"{tmp_path}/other/mlartifacts")

    def all_is_delivered() -> bool:
        runs = list_outbox(outbox)
        return bool(runs) and not any(run.waiting for run in runs)

    with start_mlflow_server(tmp_path / "server", port) as (uri, _):
        program = _Program(
            workplace, {"MLFLOW_TRACKING_URI": f"outbox+{uri}", "LOSSY_OUTBOX_DIR": str(outbox)}
        )
        for word in ("early", "end", "long"):
            program.log(word)
        wait_for(all_is_delivered, 60, "delivery")
        writer = _Writer(uri)
        writer.start()
        wait_for(lambda: writer.runs >= 3, 60, "some runs")
        old.use(monkeypatch)
        done = command("backup", target)
        writer.stopped.set()
        writer.join()
        assert done.code == 0, done.err
        program.log("long")
        other = _Program(workplace, {"MLFLOW_TRACKING_URI": f"outbox+{uri}", "LOSSY_OUTBOX_DIR": str(outbox)})
        for word in ("late", "end"):
            other.log(word)
        other.end()
        wait_for(all_is_delivered, 60, "delivery")
    shutil.rmtree(tmp_path / "server")
    # While there is no server.
    program.log("long")
    new.use(monkeypatch)
    done = command("restore", target)
    assert done.code == 0, done.err
    with start_mlflow_server(tmp_path / "other", port) as (uri, _):
        client = MlflowClient(uri)
        _check_writers_runs(client)
        program.log("long")
        program.log("end")
        program.end()
        found = wait_for(lambda: _runs(client, ["early", "late", "long"]), 90, "all that the outbox holds")
        wait_for(all_is_delivered, 60, "delivery")
        for name, points in (("early", 10), ("late", 10), ("long", 40)):
            (run,) = found[name]
            history = client.get_metric_history(run.info.run_id, "loss")
            assert sorted(point.step for point in history) == list(range(points)), name
            files = {file.path for file in client.list_artifacts(run.info.run_id)}
            assert files == {f"{first}.txt" for first in range(0, points, 10)}, name
            run = client.get_run(run.info.run_id)
            assert (run.info.status, run.data.tags["reached"]) == ("FINISHED", str(points)), name


def _runs(client: MlflowClient, names: list[str]) -> dict[str, list[Any]] | None:
    experiment = client.get_experiment_by_name("logged")
    if experiment is None:
        return None
    runs = client.search_runs([experiment.experiment_id])
    found = {name: [run for run in runs if run.info.run_name == name] for name in names}
    # The last words of each, so that what follows is not looked for too early.
    reached = {"early": "10", "late": "10", "long": "40"}
    done = all(
        found[name]
        and found[name][0].data.tags.get("reached") == reached[name]
        and found[name][0].info.status == "FINISHED"
        for name in names
    )
    return found if done else None


def _check_writers_runs(client: MlflowClient) -> None:
    experiment = client.get_experiment_by_name("plain")
    assert experiment
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) >= 3
    for run in runs:
        files = {file.path for file in client.list_artifacts(run.info.run_id)}
        named = {value for key, value in run.data.tags.items() if key.startswith("file")}
        assert named <= files

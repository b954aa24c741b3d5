"""A server that is backed up while others log, lost, and restored: what its outboxes hold is there, and once."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from lossy_mlflow.hparams import flatten, get_hparams
from lossy_mlflow.outbox.books import list_outbox
from tests.conftest import Workplace, end_senders, free_port, start_mlflow_server, wait_for
from tests.outbox.proxy import Proxy
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


# One run to its end, with a metric, a file, and a decoder.
PUBLISH = """
import json, os, sys
import mlflow
from lossy_mlflow.outbox.program import outbox_for
mlflow.set_experiment("published")
with mlflow.start_run(run_name="whole", tags={"label": "mine", "kind": "train"}) as run:
    mlflow.log_metric("loss", 0.5, step=1)
    mlflow.flush_async_logging()
    mlflow.log_text("whole", "note.txt")
    journal = outbox_for(os.environ["MLFLOW_TRACKING_URI"]).journal(run.info.run_id)
    journal.defer("publish_checkpoint", json.loads(sys.argv[1]), open(sys.argv[2], "rb"))
"""


class _HoldingProxy(Proxy):
    """The upload of a run's file waits before the server until `let_go`; with it all that comes after it."""

    def __init__(self, server: str) -> None:
        self.holds, self.let_go = threading.Event(), threading.Event()
        super().__init__(server)

    def _answer(self, client: socket.socket, server: socket.socket, request: bytes) -> bool:
        if request.startswith(b"PUT ") and b"/note.txt" in request.partition(b"\r\n")[0]:
            self.holds.set()
            self.let_go.wait(120)
            with socket.create_connection(self._server) as fresh:
                return super()._answer(client, fresh, request)
        return super()._answer(client, server, request)


def _publication(folder: Path) -> list[str]:
    """What a deferred publication is called with: its arguments, and the file of the weights."""
    from safetensors.torch import save_file

    from lossy_mlflow.models import build_model, decoder_of

    tree = get_hparams("vae2_digits")
    save_file(decoder_of(build_model(tree)).state_dict(), folder / "weights")
    arguments = {"name": "mine", "description": "", "tree": flatten(tree), "epoch": 3, "val_loss": 1.5}
    return [json.dumps(arguments | {"tags": {"hparam_set": "vae2_digits"}}), str(folder / "weights")]


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

    def others_are_delivered() -> bool:
        runs = [run for run in list_outbox(outbox) if run.run_name != "whole"]
        return bool(runs) and not any(run.waiting for run in runs)

    with start_mlflow_server(tmp_path / "server", port) as (uri, _):
        # The backup is taken when the last metric of this run is delivered, and its file, its decoder and its end aren't.
        proxy = _HoldingProxy(uri)
        publishes = {"MLFLOW_TRACKING_URI": f"outbox+{proxy.uri}", "LOSSY_OUTBOX_DIR": str(outbox)}
        done_with = workplace.run(sys.executable, "-c", PUBLISH, *_publication(tmp_path), env=publishes)
        assert done_with.returncode == 0, done_with.stderr
        assert proxy.holds.wait(60)
        program = _Program(
            workplace, {"MLFLOW_TRACKING_URI": f"outbox+{uri}", "LOSSY_OUTBOX_DIR": str(outbox)}
        )
        for word in ("early", "end", "long"):
            program.log(word)
        wait_for(others_are_delivered, 60, "delivery")
        writer = _Writer(uri)
        writer.start()
        wait_for(lambda: writer.runs >= 3, 60, "some runs")
        old.use(monkeypatch)
        done = command("backup", target)
        writer.stopped.set()
        writer.join()
        assert done.code == 0, done.err
        proxy.let_go.set()
        program.log("long")
        other = _Program(workplace, {"MLFLOW_TRACKING_URI": f"outbox+{uri}", "LOSSY_OUTBOX_DIR": str(outbox)})
        for word in ("late", "end"):
            other.log(word)
        other.end()
        wait_for(all_is_delivered, 120, "delivery")
        (version,) = MlflowClient(uri).search_model_versions("name = 'mine'")
    shutil.rmtree(tmp_path / "server")
    # While there is no server.
    program.log("long")
    new.use(monkeypatch)
    done = command("restore", target)
    assert done.code == 0, done.err
    with start_mlflow_server(tmp_path / "other", port) as (uri, _):
        client = MlflowClient(uri)
        _check_writers_runs(client)
        assert client.search_model_versions("name = 'mine'") == []
        assert client.get_run(version.run_id).info.status == "RUNNING"
        (whole,) = (run for run in list_outbox(outbox) if run.run_name == "whole")
        sent = workplace.lossy("outbox", "send", whole.folder, "--to", proxy.uri, env=publishes)
        assert sent.returncode == 0, sent.stderr
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
        assert client.get_run(version.run_id).info.status == "FINISHED"
        (again,) = client.search_model_versions("name = 'mine'")
        assert (again.run_id, again.tags["weights_sha256"]) == (
            version.run_id,
            version.tags["weights_sha256"],
        )
        assert [file.path for file in client.list_artifacts(version.run_id)] == ["note.txt"]
        proxy.close()


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

"""An outbox that is sent by hand, from another place, to another server, or not at all."""

from __future__ import annotations

import json
import shutil
import sqlite3
import stat
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.conftest import start_mlflow_server, wait_for
from tests.outbox.conftest import OutboxPlace

OFFLINE = """
import sys, mlflow
mlflow.set_experiment("carried")
with mlflow.start_run(run_name=sys.argv[1]):
    mlflow.log_metric("loss", 1.5, step=3)
    mlflow.log_text("hello", "hello.txt")
"""


def _offline(place: OutboxPlace, name: str) -> None:
    place.proxy.mode = "refuse"
    assert place.run(OFFLINE, name).returncode == 0
    for sender in place.senders():
        sender.kill()
        sender.wait(10)


def _arrived(place: OutboxPlace, name: str) -> Any:
    (run,) = place.on_server(name)
    assert run.info.status == "FINISHED"
    assert place.points(run.info.run_id, "loss") == [(3, 1.5)]
    assert [file.path for file in place.client.list_artifacts(run.info.run_id)] == ["hello.txt"]
    return run


def test_a_folder_is_copied_and_sent_from_elsewhere(place: OutboxPlace, name: str, tmp_path: Path) -> None:
    _offline(place, name)
    carried = tmp_path / "stick"
    shutil.copytree(place.root, carried)
    refused = place.lossy("outbox", "send", str(carried), "--to", place.proxy.uri)
    assert refused.returncode == 5
    assert "Connection refused" in refused.stderr or "reset" in refused.stderr
    for _ in range(2):
        done = place.lossy("outbox", "send", str(carried), "--to", place.server)
        assert done.returncode == 0, done.stderr
        _arrived(place, name)
    # Back home the same records are sent once more, and nothing is there twice.
    place.proxy.mode = "pass"
    done = place.lossy("outbox", "send", str(place.root))
    assert done.returncode == 0, done.stderr
    _arrived(place, name)


def test_the_folder_of_one_run_can_be_sent_alone(place: OutboxPlace, name: str, tmp_path: Path) -> None:
    _offline(place, name)
    (run,) = place.root.glob("*/runs/*")
    shutil.copytree(run, tmp_path / "one")
    done = place.lossy("outbox", "send", str(tmp_path / "one"), "--to", place.server, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"server": place.server, "runs": 1, "refused": 0, "waiting": 0}
    _arrived(place, name)


def test_four_senders_deliver_the_same_folder(place: OutboxPlace, name: str, tmp_path: Path) -> None:
    _offline(place, name)
    copies = [tmp_path / str(number) for number in range(4)]
    for copy in copies:
        shutil.copytree(place.root, copy)
    words = [place.workplace.command("outbox", "send", str(copy), "--to", place.server) for copy in copies]
    code = "import sys, subprocess; sys.exit(subprocess.run(sys.argv[1:]).returncode)"
    processes = [place.start(code, *word) for word in words]
    for process in processes:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    _arrived(place, name)


def test_credentials_go_to_no_other_server(place: OutboxPlace, name: str) -> None:
    _offline(place, name)
    place.proxy.mode = "pass"
    before = place.proxy.requests
    done = place.lossy("outbox", "send", str(place.root), MLFLOW_TRACKING_URI="outbox+http://127.0.0.1:9")
    assert done.returncode == 2
    assert place.proxy.uri in done.stderr
    assert "--to" in done.stderr
    assert place.proxy.requests == before


def test_secrets_stay_out_of_the_files_and_the_files_are_private(place: OutboxPlace, name: str) -> None:
    uri = place.environment["MLFLOW_TRACKING_URI"].replace("://", "://alice:open-sesame@")
    place.proxy.mode = "refuse"
    secrets = {"MLFLOW_TRACKING_URI": uri, "MLFLOW_TRACKING_PASSWORD": "xyzzy-plugh"}
    done = place.run(OFFLINE, name, **secrets)
    assert done.returncode == 0
    for path in [place.root, *place.root.rglob("*")]:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode & 0o077 == 0 or path.is_file(), path
        if path.is_file():
            content = path.read_bytes()
            assert b"open-sesame" not in content, path
            assert b"xyzzy-plugh" not in content, path
    assert stat.S_IMODE(place.root.stat().st_mode) == 0o700
    assert "open-sesame" not in done.stderr


def test_status_and_discard(place: OutboxPlace, name: str) -> None:
    _offline(place, name)
    shown = place.lossy("outbox", "status")
    assert name in shown.stdout
    (entry,) = json.loads(place.lossy("outbox", "status", "--json").stdout)
    assert entry["waiting"] == 4
    assert entry["oldest_s"] > 0
    assert entry["error"]
    wrong = place.lossy("outbox", "discard", name, typed="no\n")
    assert wrong.returncode == 2, wrong.stderr
    assert len(place.runs()) == 1
    near = place.lossy("outbox", "discard", name[:-1])
    assert near.returncode == 3
    assert name in near.stderr
    done = place.lossy("outbox", "discard", name, typed=f"{name}\n")
    assert done.returncode == 0, done.stderr
    assert place.runs() == []


def test_a_newer_format_and_a_folder_that_is_none(place: OutboxPlace, name: str, tmp_path: Path) -> None:
    _offline(place, name)
    (file,) = place.root.glob("*/runs/*/run.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 99}))
    done = place.lossy("outbox", "send", str(place.root), "--to", place.server)
    assert done.returncode == 4
    assert "newer version" in done.stderr
    assert place.lossy("outbox", "send", str(tmp_path), "--to", place.server).returncode in (3, 4)


@pytest.mark.campaign
def test_a_server_restored_from_an_older_backup_gets_it_all_again(
    place: OutboxPlace, name: str, tmp_path: Path
) -> None:
    backup = tmp_path / "old.db"
    with start_mlflow_server(tmp_path / "server") as (uri, _):
        environment = {"MLFLOW_TRACKING_URI": f"outbox+{uri}"}
        with (
            closing(sqlite3.connect(tmp_path / "server" / "mlflow.db")) as source,
            closing(sqlite3.connect(backup)) as target,
        ):
            source.backup(target)
        assert place.run(OFFLINE, name, **environment).returncode == 0
        place.wait_until_delivered()
        old = _experiments(uri)
        assert "carried" in old
    shutil.copy(backup, tmp_path / "server" / "mlflow.db")
    port = int(uri.rpartition(":")[2])
    with start_mlflow_server(tmp_path / "server", port) as (uri, _):
        assert "carried" not in _experiments(uri)
        more = OFFLINE.replace("hello.txt", "more.txt")
        assert place.run(more, f"{name}-2", **environment).returncode == 0
        # Its sender, or this one, asks whether the server still has the runs of the last week.
        done = place.lossy("outbox", "send", str(place.root), "--to", uri)
        assert done.returncode == 0, done.stderr
        place.client = type(place.client)(uri)
        _arrived(place, name)


def _experiments(uri: str) -> set[str]:
    answer = requests.post(f"{uri}/api/2.0/mlflow/experiments/search", json={"max_results": 100}, timeout=10)
    return {experiment["name"] for experiment in answer.json()["experiments"]}


def test_a_server_that_stores_no_artifacts_itself(place: OutboxPlace, name: str, tmp_path: Path) -> None:
    """MLflow's own client brings them to the store, which here is a folder that both can reach."""
    store = tmp_path / "store"
    words = ["--no-serve-artifacts", "--default-artifact-root", str(store)]
    with start_mlflow_server(tmp_path / "server", options=words) as (uri, _):
        assert place.run(OFFLINE, name, MLFLOW_TRACKING_URI=f"outbox+{uri}").returncode == 0
        wait_for(lambda: list(store.rglob("hello.txt")), 60, "the artifact")
        place.wait_until_delivered()
        place.client = type(place.client)(uri)
        _arrived(place, name)

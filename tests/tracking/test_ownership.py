"""One process a label and a run, however the server's address is written; and secrets that stay out of texts."""

from __future__ import annotations

import subprocess
import sys

import mlflow
import pytest

from lossy_mlflow.errors import ConflictError, LossyError
from lossy_mlflow.outbox.owner import DIED
from lossy_mlflow.tracking.connection import Connection, connect, without_password
from lossy_mlflow.tracking.ownership import label_lock, lock_domain, run_lock
from lossy_mlflow.tracking.session import running
from tests.conftest import Workplace


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("http://host:5000", "http://host:5000/"),
        ("http://host:5000", "http://me:secret@host:5000"),
        ("sqlite:///mlflow.db", "sqlite:///{folder}/mlflow.db"),
        ("sqlite:///a%20b.db", "sqlite:///{folder}/a b.db"),
    ],
)
def test_two_spellings_of_a_server_share_the_lock_of_a_label(here: Workplace, one: str, other: str) -> None:
    with (
        label_lock(one, "label"),
        pytest.raises(ConflictError, match="another process"),
        label_lock(other.format(folder=here.folder), "label"),
    ):
        pass
    with label_lock(one, "label"), label_lock(one, "another"):
        pass


@pytest.mark.parametrize("in_the_way", ["state", "state/lossy_mlflow", "state/lossy_mlflow/locks"])
def test_locks_that_cannot_be_kept_are_said_with_the_way_on(
    here: Workplace, monkeypatch: pytest.MonkeyPatch, in_the_way: str
) -> None:
    file = here.folder / in_the_way
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("a file where a folder should be")
    monkeypatch.setenv("XDG_STATE_HOME", str(here.folder / "state"))
    with pytest.raises(LossyError, match=f"Can't write {file}") as refused, label_lock("http://a", "label"):
        pass
    assert "export XDG_STATE_HOME" in refused.value.hint
    monkeypatch.setenv("XDG_STATE_HOME", str(here.folder / "another"))
    with label_lock("http://a", "label"):
        pass


def test_the_lock_domain_is_drawn_once(here: Workplace) -> None:
    code = "from lossy_mlflow.tracking.ownership import lock_domain\nprint(lock_domain())"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code], env=here.environment, stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    assert {process.communicate(timeout=60)[0].strip() for process in started} == {lock_domain()}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at http://me:secret@host/x", "at http://host/x"),
        ("at http://me:p@ss@host/x", "at http://host/x"),
        ("at postgresql+psycopg://me:p/ss@host/x", "at postgresql+psycopg://host/x"),
        ("me@host and http://host/a@b", "me@host and http://host/a@b"),
        ("sqlite:////home/me@work/a:b.db", "sqlite:////home/me@work/a:b.db"),
    ],
)
def test_passwords_are_left_out(text: str, shown: str) -> None:
    assert without_password(text) == shown


@pytest.fixture
def connection(here: Workplace) -> Connection:
    return connect()


@pytest.fixture
def run_id(connection: Connection) -> str:
    client = connection.client
    return client.create_run(client.create_experiment("attempts")).info.run_id


def test_an_attempt_that_another_has_superseded_changes_no_state(connection: Connection, run_id: str) -> None:
    def work() -> None:
        with running(connection, run_id) as attempt:
            connection.client.set_tag(run_id, "attempt", "another's")
            connection.client.set_tag(run_id, "owner", "elsewhere:1")
            attempt.must_be_current()

    with pytest.raises(ConflictError, match="taken up on elsewhere"):
        work()
    run = connection.client.get_run(run_id)
    assert run.info.status == "RUNNING"
    assert run.data.tags["state_reason"] == ""
    assert mlflow.active_run() is None


def test_a_run_is_written_by_one_process_of_a_machine(connection: Connection, run_id: str) -> None:
    with run_lock(run_id), pytest.raises(ConflictError), running(connection, run_id):
        pass


def test_the_runs_that_the_caller_has_open_stay_open(connection: Connection, run_id: str) -> None:
    mlflow.set_experiment("callers")
    with mlflow.start_run() as outer:
        with running(connection, run_id):
            mlflow.start_run(nested=True)  # which the block forgets to end
        active = mlflow.active_run()
        assert active is not None
        assert active.info.run_id == outer.info.run_id
    assert connection.client.get_run(run_id).info.status == "FINISHED"


@pytest.mark.parametrize(("attempt", "state"), [("mine", "FAILED"), ("another's", "RUNNING")])
def test_a_watcher_ends_the_run_of_its_own_attempt_alone(
    here: Workplace, connection: Connection, run_id: str, attempt: str, state: str
) -> None:
    connection.client.set_tag(run_id, "attempt", attempt)
    command = [sys.executable, "-m", "lossy_mlflow.tracking.watcher", run_id, "mine"]
    environment = here.environment | {"MLFLOW_TRACKING_URI": connection.uri}
    subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, check=True, timeout=60)
    run = connection.client.get_run(run_id)
    assert run.info.status == state
    assert run.data.tags.get("state_reason", "") == (DIED if state == "FAILED" else "")

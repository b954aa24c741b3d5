"""Dead runs are closed, living ones are left alone: in the database of a folder, and on a server."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import mlflow
import pytest

from lossy_mlflow.errors import UsageError
from lossy_mlflow.tracking.connection import Connection, connect
from lossy_mlflow.tracking.identity import HEARTBEAT_LIMIT_S
from lossy_mlflow.tracking.open_runs import ENVIRONMENT_LIMIT_S
from lossy_mlflow.tracking.ownership import lock_domain, run_lock
from lossy_mlflow.tracking.reconcile import reconcile
from lossy_mlflow.tracking.run_list import NEWEST, ListedRun, list_runs
from lossy_mlflow.tracking.runs import set_tags
from lossy_mlflow.tracking.session import running
from tests.conftest import Workplace
from tests.outbox.proxy import Proxy

MINUTES_AGO, HOURS_AGO = 2 * HEARTBEAT_LIMIT_S, 2 * ENVIRONMENT_LIMIT_S
PARAMETERS = ("hparam_set", "e_name", "overwrite", "overrides", "user_code", "device", "data_dir")


class Runs:
    """Makes runs as a training does, as `mlflow run` does, and as other people's programs do."""

    def __init__(self, connection: Connection) -> None:
        self.client = connection.client
        # Other tests have runs on the same server: these are known by their experiment.
        self.experiment = self.client.create_experiment(f"states {random.getrandbits(64):x}")

    def make(self, age_s: float = 0, status: str = "RUNNING", name: str = "label", **tags: str) -> str:
        start = int((time.time() - age_s) * 1000)
        run_id: str = self.client.create_run(self.experiment, start, tags, run_name=name).info.run_id
        if status != "RUNNING":
            self.client.update_run(run_id, status)
        return run_id

    def training(self, age_s: float, owner: str, attempt: str = "one", **more: str) -> str:
        """Begun, and heard of last, so long ago."""
        heartbeat = f"{time.time() - age_s:.0f}"
        tags = {"kind": "train", "label": "label", "owner": owner, "heartbeat": heartbeat, **more}
        return self.make(age_s, **tags | ({"attempt": attempt} if attempt else {}))

    def project(self, age_s: float, parameters: tuple[str, ...] = PARAMETERS, **tags: str) -> str:
        """What `mlflow run` leaves when the environment of a project with these parameters can't be built."""
        run_id = self.make(age_s, **{"mlflow.source.type": "PROJECT", **tags})
        for name in parameters:
            self.client.log_param(run_id, name, "''")
        return run_id

    def status(self, run_id: str) -> str:
        return str(self.client.get_run(run_id).info.status)

    def reason(self, run_id: str) -> str:
        return str(self.client.get_run(run_id).data.tags.get("state_reason", ""))

    def ids(self) -> set[str]:
        return {run.info.run_id for run in self.client.search_runs([self.experiment])}


@pytest.fixture(params=["sqlite", "http"])
def runs(here: Workplace, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Runs:
    if request.param == "http":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", request.getfixturevalue("mlflow_server"))
    return Runs(connect())


def _reconciled(runs: Runs, **how: Any) -> dict[str, Any]:
    ours = runs.ids()
    return {dead.run_id: dead for dead in reconcile(**how) if dead.run_id in ours}


def test_the_dead_are_closed_once_and_nothing_else_is_touched(runs: Runs) -> None:
    here = lock_domain()
    dead = {
        runs.training(MINUTES_AGO, "there:1"): "s, last seen on there",
        runs.training(MINUTES_AGO, "there:1", kind="evaluate"): "last seen on there",
        runs.training(MINUTES_AGO, here, attempt=""): "no heartbeat for",
        runs.training(1, here): "its process on",
        runs.project(HOURS_AGO): "its environment failed",
    }
    living = {
        runs.training(1, "there:1"),
        runs.training(1, here, attempt=""),
        runs.training(MINUTES_AGO, "there:1", same_as="another"),
        runs.make(HOURS_AGO, **{"mlflow.source.type": "PROJECT"}),
        runs.make(HOURS_AGO, kind="train"),
        runs.make(HOURS_AGO, kind="a foreign word", label="x"),
        runs.make(HOURS_AGO),
        runs.project(MINUTES_AGO),
        runs.project(HOURS_AGO, PARAMETERS[:-1]),
    }
    ended = {runs.make(HOURS_AGO, state, kind="train", label="label") for state in ("FINISHED", "KILLED")}

    foreseen = _reconciled(runs, dry_run=True)
    assert foreseen.keys() == dead.keys()
    assert not any(run.closed for run in foreseen.values())
    assert {runs.status(run_id) for run_id in dead} == {"RUNNING"}

    closed = _reconciled(runs)
    assert closed.keys() == dead.keys()
    for run_id, reason in dead.items():
        assert runs.status(run_id) == "FAILED"
        assert runs.reason(run_id) == f"closed by reconcile: {closed[run_id].reason}"
        assert reason in closed[run_id].reason
        assert closed[run_id].closed
        info = runs.client.get_run(run_id).info
        # It ended when it was heard of last, not when somebody found it.
        assert abs(info.end_time - info.start_time) < 2000
    assert {runs.status(run_id) for run_id in living} == {"RUNNING"}
    assert {runs.status(run_id) for run_id in ended} == {"FINISHED", "KILLED"}
    assert _reconciled(runs) == {}


def test_a_limit_of_ones_own(runs: Runs) -> None:
    silent, project = runs.training(100, "there:1"), runs.project(100)
    assert _reconciled(runs) == {}
    assert _reconciled(runs, older_than=140) == {}
    assert _reconciled(runs, older_than=70).keys() == {silent, project}
    with pytest.raises(UsageError, match="every 30 s"):
        reconcile(older_than=59)


def test_a_run_that_a_process_of_this_machine_holds_is_left_alone(runs: Runs, here: Workplace) -> None:
    run_id = runs.training(HOURS_AGO, lock_domain())
    code = (
        "import sys\nfrom lossy_mlflow.tracking.ownership import run_lock\n"
        f"with run_lock({run_id!r}):\n    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code],
        env=here.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    assert _reconciled(runs) == {}
    holder.kill()
    holder.wait()
    assert _reconciled(runs).keys() == {run_id}
    # It lets go of what it closes.
    with run_lock(run_id):
        pass


def test_a_run_that_another_machine_takes_up_in_the_same_moment_runs_on(runs: Runs) -> None:
    for turn in range(8):
        run_id = runs.training(MINUTES_AGO, "there:1")

        def take_up(run_id: str = run_id, wait_s: float = random.random() * 0.1) -> None:
            time.sleep(wait_s)
            tags = {"attempt": "two", "owner": "yonder:1", "heartbeat": f"{time.time():.0f}"}
            set_tags(runs.client, run_id, tags | {"state_reason": ""})
            runs.client.update_run(run_id, status="RUNNING")

        thread = threading.Thread(target=take_up)
        thread.start()
        reconcile()
        thread.join()
        assert (runs.status(run_id), runs.reason(run_id)) == ("RUNNING", ""), turn
        runs.client.set_terminated(run_id)


@pytest.mark.parametrize("beats", [True, False], ids=["with a heartbeat", "before its next heartbeat"])
def test_a_training_that_an_outage_made_look_dead_ends_as_it_really_ended(runs: Runs, beats: bool) -> None:
    run_id = runs.training(0, "there:1")
    with running(connect(), run_id) as attempt:
        # What another machine sees of it after an outage.
        set_tags(runs.client, run_id, {"owner": "there:1", "heartbeat": f"{time.time() - MINUTES_AGO:.0f}"})
        assert _reconciled(runs).keys() == {run_id}
        if beats:
            attempt.beat()
            assert (runs.status(run_id), runs.reason(run_id)) == ("RUNNING", "")
            assert _reconciled(runs) == {}
    assert (runs.status(run_id), runs.reason(run_id)) == ("FINISHED", "")


@pytest.mark.parametrize("ahead_s", [3600, -3600], ids=["behind the server", "ahead of it"])
@pytest.mark.parametrize("runs", ["http"], indirect=True)
def test_a_clock_that_is_set_in_the_middle_of_a_training_makes_nobody_look_dead(
    runs: Runs, mlflow_server: str, monkeypatch: pytest.MonkeyPatch, ahead_s: int
) -> None:
    """Or that was wrong from the beginning: where the server didn't answer then, the next heartbeats see its clock."""
    proxy = Proxy(mlflow_server)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.uri)
    run_id = runs.training(0, "there:1")
    with closing(proxy), running(connect(), run_id) as attempt:
        proxy.clock_ahead_s = ahead_s
        attempt.beat()
        set_tags(runs.client, run_id, {"owner": "there:1"})
        heartbeat = float(runs.client.get_run(run_id).data.tags["heartbeat"])
        assert heartbeat == pytest.approx(time.time() + ahead_s, abs=20)
        silent = runs.training(MINUTES_AGO - ahead_s, "there:1")
        assert _reconciled(runs).keys() == {silent}
    assert (runs.status(run_id), runs.reason(run_id)) == ("FINISHED", "")


def test_two_that_close_the_dead_at_once(runs: Runs) -> None:
    """On two machines: neither has a lock that the other sees."""
    dead = {runs.training(MINUTES_AGO, "there:1", label=str(n)) for n in range(4)}
    alive = runs.training(1, "there:1")
    with ThreadPoolExecutor(2) as pool:
        told = [future.result() for future in [pool.submit(reconcile) for _ in range(2)]]
    assert {run.run_id for runs_of_one in told for run in runs_of_one} >= dead
    for run_id in dead:
        assert runs.status(run_id) == "FAILED"
        assert runs.reason(run_id).startswith("closed by reconcile: no heartbeat for")
    assert (runs.status(alive), runs.reason(alive)) == ("RUNNING", "")


def test_an_attempt_that_was_superseded_does_not_open_the_run_again(runs: Runs) -> None:
    run_id = runs.training(0, "there:1")
    with running(connect(), run_id) as attempt:
        set_tags(runs.client, run_id, {"attempt": "another's"})
        runs.client.set_terminated(run_id, "KILLED")
        attempt.beat()
        assert runs.status(run_id) == "KILLED"
    assert runs.status(run_id) == "KILLED"


@pytest.mark.parametrize("runs", ["sqlite"], indirect=True)
def test_a_run_that_may_not_be_changed_is_named_and_in_nobodys_way(runs: Runs, here: Workplace) -> None:
    others, mine = runs.training(MINUTES_AGO, "there:1"), runs.training(MINUTES_AGO, "there:1")
    with closing(sqlite3.connect(here.folder / "mlflow.db")) as database:
        database.execute(
            f"create trigger refuse before insert on tags when new.run_uuid = '{others}' "
            "begin select raise(abort, 'not yours'); end"
        )
        database.commit()
    dead = _reconciled(runs)
    assert "not yours" in dead[others].refused
    assert not dead[others].closed
    assert dead[mine].closed
    assert runs.status(others) == "RUNNING"


def _listed(runs: Runs, everything: bool = False) -> list[ListedRun]:
    ours = runs.ids()
    return [run for run in list_runs(everything).runs if run.run_id in ours]


def test_the_list_says_what_each_run_is_at(runs: Runs) -> None:
    lives = runs.training(10, "there:1")
    for step, loss in [(1, 3.0), (2, 2.0), (3, 2.5)]:
        runs.client.log_metric(lives, "val_loss", loss, step=step)
    silent = runs.training(MINUTES_AGO, "there:1", kind="evaluate")
    ended = runs.make(500, "KILLED", kind="import", label="x", name="x", state_reason="enough")
    project = runs.project(600)
    runs.make(1)
    dead_here = runs.training(700, lock_domain())
    held_here = runs.training(800, lock_domain())

    with run_lock(held_here):
        one, two, three, four, five, six = _listed(runs, everything=True)
    assert [run.run_id for run in (one, two, three, four, five, six)] == [
        lives,
        silent,
        ended,
        project,
        dead_here,
        held_here,
    ]
    assert (one.label, one.kind, one.state, one.note, one.host) == ("label", "train", "RUNNING", "", "there")
    assert (one.epoch, one.val_loss) == (3, 2.5)
    assert one.age_s == pytest.approx(10, abs=5)
    assert one.heartbeat_age_s == pytest.approx(10, abs=5)
    assert (two.state, two.note, two.epoch, two.val_loss) == ("RUNNING", "silent", None, None)
    assert (three.label, three.state, three.note, three.reason) == ("x", "KILLED", "", "enough")
    assert (four.kind, four.state, four.note, four.heartbeat_age_s) == ("", "RUNNING", "not begun", None)
    # Found dead on the way, and closed; what lives elsewhere, or may, is reconcile's.
    assert (five.state, five.note) == ("FAILED", "")
    assert "its process on" in five.reason
    assert (six.state, six.note) == ("RUNNING", "silent")


@pytest.mark.parametrize("runs", ["sqlite"], indirect=True)
def test_the_newest_are_listed_and_whatever_runs(runs: Runs) -> None:
    runs_on = runs.training(HOURS_AGO, "there:1")
    ended = [runs.make(age, "FINISHED", kind="train", label="label") for age in range(1, NEWEST + 3)]
    assert [run.run_id for run in _listed(runs)] == [*ended[:NEWEST], runs_on]
    assert [run.run_id for run in _listed(runs, everything=True)] == [*ended, runs_on]
    assert mlflow.active_run() is None

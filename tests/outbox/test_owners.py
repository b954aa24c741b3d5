"""Who writes a run, seen from outside: the dead are told from the living, and nothing that they have logged is falsified."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from lossy_mlflow.outbox.address import short_name
from lossy_mlflow.outbox.folder import RunFolder, ServerFolder
from lossy_mlflow.outbox.owner import DIED, Owner, this_process
from lossy_mlflow.outbox.records import Kind, Record
from lossy_mlflow.outbox.writers import SILENT_FOR_S
from lossy_mlflow.tracking.connection import connect
from lossy_mlflow.tracking.reconcile import reconcile
from lossy_mlflow.tracking.session import running
from tests.conftest import wait_for
from tests.outbox.conftest import OutboxPlace

ROOT = Path(__file__).parents[2]
HOUR_MS = 3_600_000
CLOSED: tuple[Kind, Any] = ("closed", None)
CONTAINER = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")


def _may_make_containers() -> bool:
    return subprocess.run([*CONTAINER, "true"], capture_output=True).returncode == 0


def _server_folder(place: OutboxPlace) -> ServerFolder:
    folder = ServerFolder(place.root / short_name(place.proxy.uri))
    folder.prepare(place.proxy.uri)
    return folder


def _left(
    place: OutboxPlace, name: str, owner: Owner, *more: tuple[Kind, Any], ahead_ms: int = 0
) -> RunFolder:
    """A run that `owner` has created and left RUNNING, unless `more` says otherwise; by a clock that is ahead."""
    run, now = _server_folder(place).run(name), int(time.time() * 1000)
    where = {"experiment_id": "0", "experiment_name": "Default"}
    run.define({**where, "start_time": now, "run_name": name, "owner": str(owner)})
    first: tuple[Kind, Any] = ("state", {"status": "RUNNING"})
    for kind, content in (first, ("metrics", [["loss", 0.5, now, 3]]), *more):
        run.append(f"{owner}.000000.log", Record(now + ahead_ms, kind, content))
    return run


def _silence(run: RunFolder) -> None:
    """As if nobody had written there for long."""
    for path in run.path.glob("*.log"):
        os.utime(path, times=(0, time.time() - 2 * SILENT_FOR_S))


def _start_sender(place: OutboxPlace, *before: str) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "lossy_mlflow.outbox.sender", str(_server_folder(place).path)]
    return subprocess.Popen([*before, *words], env=place.environment, cwd=ROOT)


def _status(place: OutboxPlace, name: str) -> str:
    """Of one run: two that make it at the same moment agree on one a moment later."""
    found = place.on_server(name)
    return found[0].info.status if len(found) == 1 else ""


def test_only_what_died_is_closed_and_everything_arrives_once(place: OutboxPlace, name: str) -> None:
    """By one sender here, and a second one in a container that shares the folder and the boot id, where one can be made."""
    here = this_process()
    elsewhere = dataclasses.replace(here, boot="0" * 32)
    container = dataclasses.replace(here, namespace=here.namespace + "1")
    living = {
        "here": here,
        "on-another-machine": elsewhere,
        # Its pid means nothing here: nobody has it, or another process.
        "in-a-container": dataclasses.replace(container, pid=2**22 - 1),
        "in-a-container-with-our-pid": dataclasses.replace(container, start=here.start - 1),
    }
    dead = {
        "its-pid-was-used-again": dataclasses.replace(here, start=here.start - 1),
        "on-a-machine-that-is-gone": elsewhere,
        "in-a-container-that-is-gone": container,
    }
    left_open = {"in-order-on-another-machine": elsewhere, "in-order-in-a-container": container}
    for what, owner in {**living, **dead, **left_open}.items():
        run = _left(place, f"{name}-{what}", owner, *([CLOSED] if what in left_open else []))
        if what not in living:
            _silence(run)
    senders = [_start_sender(place)]
    if _may_make_containers():
        senders.append(_start_sender(place, *CONTAINER))
    try:
        for what in dead:
            wait_for(lambda what=what: _status(place, f"{name}-{what}") == "FAILED", 90, what)
        place.wait_until_delivered()
        time.sleep(1)
        for what in (*living, *left_open):
            assert _status(place, f"{name}-{what}") == "RUNNING", what
    finally:
        for sender in senders:
            sender.kill()
            sender.wait(10)
    for listed in place.runs():
        what = listed.run_name.removeprefix(f"{name}-")
        assert place.points(listed.server_run_id, "loss") == [(3, 0.5)]
        reason = place.client.get_run(listed.server_run_id).data.tags.get("state_reason")
        assert reason == (DIED if what in dead else None)
        assert (listed.refused, listed.waiting) == (0, 0)
        # By another process, that is, than this one.
        assert listed.being_written == (what in living and what != "here")


IN_A_CONTAINER = """
import os, sys, mlflow
mlflow.start_run(run_name=sys.argv[1])
for step in range(3):
    mlflow.log_metric("loss", step / 2, step=step)
mlflow.flush_async_logging()
print(os.getpid(), flush=True)
sys.stdin.read()
"""


def test_a_container_that_shares_the_folder_and_the_boot_id(place: OutboxPlace, name: str) -> None:
    if not _may_make_containers():
        pytest.skip("may not make a PID namespace here")
    place.proxy.mode = "refuse"
    process = place.start_words([*CONTAINER, sys.executable, "-c", IN_A_CONTAINER, name])
    try:
        assert process.stdout
        # The first process of its namespace: here that number is another one's, which lives.
        assert process.stdout.readline() == "1\n"
        # Started while something waits still, which the one in the container would deliver as well.
        assert place.lossy("outbox", "status").returncode == 0
        wait_for(
            lambda: len(list(place.root.glob("*/sender-*"))) == 2, 30, "a sender in and one outside of it"
        )
        # The sender out here can't see the program, delivers what it logs, and leaves its run alone.
        place.proxy.mode = "pass"
        place.wait_until_delivered()
        (run,) = place.runs()
        assert run.being_written
        assert _status(place, name) == "RUNNING"
        refused = place.lossy("outbox", "discard", name, typed=f"{name}\n")
        assert (refused.returncode, "is writing the run" in refused.stderr) == (4, True)
    finally:
        process.kill()  # and with it everything in the container, its sender too
        # Dead before its input ends: at that end the program would end its run in order, as FINISHED.
        process.wait()
        process.communicate()
    _silence(RunFolder(Path(run.folder)))
    wait_for(lambda: _status(place, name) == "FAILED", 120, "the end of the run")
    place.wait_until_delivered()
    assert place.points(run.server_run_id, "loss") == [(0, 0.0), (1, 0.5), (2, 1.0)]


AGAIN = """
import os, sys, mlflow
mlflow.start_run(run_id=sys.argv[1])
mlflow.set_tag("colour", "green")
mlflow.log_metric("loss", 1.5, step=4)
run = mlflow.get_run(sys.argv[1])
assert (run.info.status, run.data.tags["colour"]) == ("RUNNING", "green"), run
os._exit(1) if sys.argv[2] == "dies" else mlflow.end_run()
"""


@pytest.mark.parametrize(
    ("end", "state"), [("dies", "FAILED"), pytest.param("ends", "FINISHED", marks=pytest.mark.campaign)]
)
def test_a_clock_that_was_set_back_makes_nothing_new_old(
    place: OutboxPlace, name: str, end: str, state: str
) -> None:
    """What was said first has the later time: in the order of the times the run would stay red, and RUNNING."""
    dead = dataclasses.replace(this_process(), start=this_process().start - 1)
    _left(place, name, dead, ("tags", [["colour", "red"]]), ahead_ms=HOUR_MS)
    place.proxy.mode = "refuse"
    done = place.run(AGAIN, name, end)
    assert done.returncode == (1 if end == "dies" else 0), done.stderr
    place.proxy.mode = "pass"
    wait_for(lambda: _status(place, name) == state, 60, state)
    place.wait_until_delivered()
    (run,) = place.on_server(name)
    assert run.data.tags["colour"] == "green"
    assert place.points(run.info.run_id, "loss") == [(3, 0.5), (4, 1.5)]


# A training as far as the outbox sees it: an attempt on a run, and a process that it has started for it.
TRAINING = """
import subprocess, sys, mlflow
from lossy_mlflow.tracking.connection import connected_for_logging
from lossy_mlflow.tracking.session import running
RANK = '''
import sys, mlflow
client = mlflow.MlflowClient()
for line in sys.stdin:
    client.log_metric(sys.argv[1], "rank", 1.0, step=int(line))
    print(flush=True)
'''
run_id = sys.argv[1]
with connected_for_logging() as connection, running(connection, run_id) as attempt:
    words = [sys.executable, "-c", RANK, run_id]
    rank = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    for line in sys.stdin:
        mlflow.log_metric("loss", 1.0, step=int(line))
        rank.stdin.write(line)
        rank.stdin.flush()
        rank.stdout.readline()
        print(flush=True)
    rank.communicate()
    attempt.beat()
"""


@pytest.mark.parametrize("taken", [True, False], ids=["taken", "closed"])
def test_what_an_outage_made_look_dead(
    place: OutboxPlace, name: str, taken: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Another machine has closed its run meanwhile, and has perhaps resumed it: nothing lost, nothing merged, no state false."""
    client = place.client
    tags = {"kind": "train", "label": name}
    run_id = client.create_run("0", tags=tags, run_name=name).info.run_id
    training = place.start(TRAINING, run_id)

    def step(number: int) -> None:
        assert training.stdin
        assert training.stdout
        training.stdin.write(f"{number}\n")
        training.stdin.flush()
        assert training.stdout.readline() == "\n"

    def steps(of: str, key: str) -> list[int]:
        return [number for number, _ in place.points(of, key)]

    step(1)
    wait_for(lambda: steps(run_id, "loss") == steps(run_id, "rank") == [1], 90, "the first step")
    place.proxy.mode = "refuse"
    step(2)
    # On the other machine, after a while.
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", place.server)

    def is_closed() -> bool:
        # Again, where a heartbeat was on its way still.
        client.set_tag(run_id, "heartbeat", f"{time.time() - 1000:.0f}")
        return any(dead.run_id == run_id and dead.closed for dead in reconcile())

    wait_for(is_closed, 30, "a run that looks dead")
    assert client.get_run(run_id).info.status == "FAILED"
    if taken:
        with running(connect(), run_id):
            client.log_metric(run_id, "loss", 2.0, step=100)
    place.proxy.mode = "pass"
    step(3)
    _, error = training.communicate(timeout=60)
    assert training.returncode == 0, error
    place.wait_until_delivered()
    run = client.get_run(run_id)
    assert (run.info.status, run.data.tags["state_reason"]) == ("FINISHED", "")
    if not taken:
        assert steps(run_id, "loss") == steps(run_id, "rank") == [1, 2, 3]
        return
    assert (steps(run_id, "loss"), steps(run_id, "rank")) == ([1, 100], [1])
    (apart,) = [item for item in place.on_server(name) if item.data.tags.get("same_as") == run_id]
    assert apart.info.status == "FINISHED"
    assert steps(apart.info.run_id, "loss") == steps(apart.info.run_id, "rank") == [2, 3]

"""What was logged by way of the outbox stands on the server, whatever happened in between."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest

from tests.conftest import wait_for
from tests.outbox.conftest import OutboxPlace
from tests.outbox.proxy import Mode

CAMPAIGN = pytest.mark.campaign

LOG = """
import sys, mlflow
mlflow.set_experiment("outbox tests")
with mlflow.start_run(run_name=sys.argv[1]):
    mlflow.log_params({"learning_rate": 1e-3, "name": "vae"})
    for step in range(300):
        mlflow.log_metric("loss", 1 / (step + 1), step=step)
    mlflow.log_metric("odd", float("nan"))
    mlflow.log_metric("odd", float("inf"), step=1)
    mlflow.set_tag("colour", "red")
    mlflow.set_tag("colour", "green")
    mlflow.set_tag("gone", "soon")
    mlflow.delete_tag("gone")
    mlflow.log_text("hello", "notes/deep/hello.txt")
    mlflow.log_dict({"a": [1, 2]}, "d.json")
"""


def _check_log(place: OutboxPlace, name: str) -> None:
    (run,) = place.on_server(name)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"learning_rate": "0.001", "name": "vae"}
    assert place.points(run.info.run_id, "loss") == [(step, 1 / (step + 1)) for step in range(300)]
    nan, inf = (value for _, value in place.points(run.info.run_id, "odd"))
    assert nan != nan
    assert inf > 1e308
    assert run.data.tags["colour"] == "green"
    assert "gone" not in run.data.tags
    path = place.client.download_artifacts(run.info.run_id, "notes/deep/hello.txt")
    assert Path(path).read_text() == "hello"
    assert place.client.get_experiment(run.info.experiment_id).name == "outbox tests"


def test_all_that_is_logged_arrives(place: OutboxPlace, name: str) -> None:
    done = place.run(LOG, name)
    assert done.returncode == 0, done.stderr
    assert "wait in" not in done.stderr
    _check_log(place, name)


@pytest.mark.parametrize("delay", [pytest.param("0", marks=CAMPAIGN), "60"])
def test_a_delay_saves_requests_and_holds_up_no_end(place: OutboxPlace, name: str, delay: str) -> None:
    program = """
import sys, time, mlflow
with mlflow.start_run(run_name=sys.argv[1]) as run:
    for step in range(80):
        mlflow.log_metric("loss", step, step=step)
        time.sleep(0.05)
        if step == 9:
            mlflow.get_run(run.info.run_id)  # the sender is at work by then, and what it has read doesn't wait
            print("read", flush=True)
    print("logged", flush=True)
    sys.stdin.readline()
"""
    process = place.start(program, name, LOSSY_OUTBOX_DELAY=delay)
    assert process.stdout
    assert process.stdout.readline() == "read\n"
    time.sleep(1)
    before = place.proxy.requests
    assert process.stdout.readline() == "logged\n"
    sent = place.proxy.requests - before
    assert (sent == 0) == (delay == "60")
    _, err = process.communicate("", timeout=30)
    assert (process.returncode, "wait in" in err) == (0, False)
    (run,) = place.on_server(name)
    assert run.info.status == "FINISHED"
    assert len(place.points(run.info.run_id, "loss")) == 80


@pytest.mark.parametrize(
    "mode", ["refuse", *(pytest.param(mode, marks=CAMPAIGN) for mode in ("stall", "error", "reset"))]
)
def test_a_run_starts_trains_and_ends_without_its_server(place: OutboxPlace, name: str, mode: Mode) -> None:
    place.proxy.mode = mode
    started = time.monotonic()
    done = place.run(LOG, name)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - started < 60
    # One line says how much waits where, and which command sends it.
    (line,) = [line for line in done.stderr.splitlines() if "lossy_mlflow.outbox" in line]
    assert re.search(r"\d+ records wait in .* lossy outbox send ", line), line
    assert place.on_server(name) == []
    place.proxy.mode = "pass"
    place.wait_until_delivered()
    _check_log(place, name)


STEADY = """
import sys, time, mlflow
mlflow.start_run(run_name=sys.argv[1])
times = []
for step in range(300):
    started = time.perf_counter()
    mlflow.log_metric("loss", step / 2, step=step)
    times.append(time.perf_counter() - started)
    if step == 50:
        print("away", flush=True)
        sys.stdin.readline()
    if step == 250:
        print("back", flush=True)
        sys.stdin.readline()
    time.sleep(0.01)
mlflow.end_run()
print(sorted(times)[-3])
"""


def test_an_outage_in_the_middle_delays_no_step(place: OutboxPlace, name: str) -> None:
    process = place.start(STEADY, name)
    assert process.stdin
    assert process.stdout
    assert process.stdout.readline() == "away\n"
    place.proxy.mode = "refuse"
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "back\n"
    place.proxy.mode = "pass"
    out, err = process.communicate("\n", timeout=60)
    assert process.returncode == 0, err
    # The third slowest of 300: on shared cores any two may have been left without one for a moment.
    assert float(out) < 0.05
    place.wait_until_delivered()
    (run,) = place.on_server(name)
    assert place.points(run.info.run_id, "loss") == [(step, step / 2) for step in range(300)]


COUNTING = """
import os, sys, time, mlflow
mlflow.start_run(run_name=sys.argv[1])
step = 0
while True:
    mlflow.log_metric("loss", step / 2, step=step)
    os.write(1, b"%d\\n" % step)
    step += 1
"""


def test_what_a_killed_program_had_logged_arrives_and_its_run_has_failed(
    place: OutboxPlace, name: str
) -> None:
    process = place.start(COUNTING, name)
    assert process.stdout
    for _ in range(200):
        newest = int(process.stdout.readline())
    process.kill()
    # Not communicate(): it reads past the lines that readline() has already taken out of the pipe.
    newest = max([newest, *(int(line) for line in process.stdout if line.endswith("\n"))])
    process.communicate()
    killed = time.monotonic()
    wait_for(lambda: place.on_server(name) and place.on_server(name)[0].info.status == "FAILED", 30, "FAILED")
    assert time.monotonic() - killed < 30
    place.wait_until_delivered()
    (run,) = place.on_server(name)
    steps = [step for step, _ in place.points(run.info.run_id, "loss")]
    assert steps[: newest + 1] == list(range(newest + 1))
    assert len(steps) <= newest + 2
    assert "died" in run.data.tags["state_reason"]


def test_a_killed_sender_is_replaced_and_nothing_is_sent_twice(place: OutboxPlace, name: str) -> None:
    process = place.start(STEADY.replace("time.sleep(0.01)", "time.sleep(0.02)"), name)
    assert process.stdin
    for _ in range(2):
        for sender in wait_for(place.senders, 20, "a sender"):
            os.kill(sender.pid, signal.SIGKILL)
        process.stdin.write("\n")
        process.stdin.flush()
    process.communicate(timeout=60)
    assert process.returncode == 0
    place.wait_until_delivered()
    (run,) = place.on_server(name)
    assert place.points(run.info.run_id, "loss") == [(step, step / 2) for step in range(300)]
    assert run.info.status == "FINISHED"


BAD = """
import sys, mlflow
from mlflow.entities import Metric
mlflow.start_run(run_name=sys.argv[1])
client, run_id = mlflow.MlflowClient(), mlflow.active_run().info.run_id
mlflow.log_metric("good", 1.0)
client.log_batch(run_id, metrics=[Metric(key, 1.0, 0, 0) for key in ("a", "b[0]", "c")])
mlflow.log_param("p", 1)
mlflow.log_params({"p": 2, "q": 3})
mlflow.log_metric("good", 2.0, step=1)
mlflow.set_tag("after", "all")
"""


def test_what_the_server_refuses_is_set_aside_and_stops_nothing_else(place: OutboxPlace, name: str) -> None:
    done = place.run(BAD, name)
    assert done.returncode == 0
    assert "2 values were refused" in done.stderr
    (run,) = place.on_server(name)
    assert place.points(run.info.run_id, "good") == [(0, 1.0), (1, 2.0)]
    assert set(run.data.metrics) == {"good", "a", "c"}
    assert run.data.params == {"p": "1", "q": "3"}
    assert run.data.tags["after"] == "all"
    listed = json.loads(place.lossy("outbox", "status", "--json").stdout)
    assert [(entry["refused"], entry["waiting"]) for entry in listed] == [(2, 0)]
    (file,) = place.root.glob("*/runs/*/refused.jsonl")
    entries = [json.loads(line) for line in file.read_text().splitlines()]
    assert [entry["content"]["key"] for entry in entries] == ["b[0]", "p"]
    assert all(entry["why"] for entry in entries)


RANK = """
import sys, mlflow
mlflow.start_run(run_id=sys.argv[1])
for step in range(100):
    mlflow.log_metric("rank" + sys.argv[2], step, step=step)
import os; os._exit(0) if sys.argv[2] != "0" else None
"""


@pytest.mark.parametrize("mode", [pytest.param("pass", marks=CAMPAIGN), "refuse"])
def test_several_processes_log_into_one_run(place: OutboxPlace, name: str, mode: Mode) -> None:
    place.proxy.mode = mode
    made = (
        "import sys, mlflow; print(mlflow.MlflowClient().create_run('0', run_name=sys.argv[1]).info.run_id)"
    )
    run_id = place.run(made, name).stdout.strip()
    processes = [place.start(RANK, run_id, str(rank)) for rank in range(3)]
    for process in processes:
        process.communicate(timeout=120)
    place.proxy.mode = "pass"
    place.wait_until_delivered()
    (run,) = place.on_server(name)
    for rank in range(3):
        assert place.points(run.info.run_id, f"rank{rank}") == [(step, float(step)) for step in range(100)]


NESTED = """
import sys, mlflow
with mlflow.start_run(run_name=sys.argv[1]):
    with mlflow.start_run(run_name=sys.argv[1] + "-child", nested=True):
        mlflow.log_metric("m", 1)
"""


@pytest.mark.parametrize("mode", [pytest.param("pass", marks=CAMPAIGN), "refuse"])
def test_a_nested_run_names_its_parent_as_the_server_does(place: OutboxPlace, name: str, mode: Mode) -> None:
    place.proxy.mode = mode
    assert place.run(NESTED, name).returncode == 0
    place.proxy.mode = "pass"
    place.wait_until_delivered()
    (parent,) = place.on_server(name)
    (child,) = place.on_server(f"{name}-child")
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert child.info.status == parent.info.status == "FINISHED"


READS = """
import sys, mlflow
with mlflow.start_run(run_name=sys.argv[1]) as run:
    run_id = run.info.run_id
    mlflow.log_metric("loss", 3.0, step=1)
    mlflow.log_metric("loss", 2.0, step=2)
    mlflow.log_param("a", 1)
    mlflow.set_tag("b", "c")
    mlflow.log_text("hello", "notes/hello.txt")
    client = mlflow.MlflowClient()
    found = client.get_run(run_id)
    assert found.data.metrics == {"loss": 2.0}, found.data.metrics
    assert found.data.params == {"a": "1"}
    assert found.data.tags["b"] == "c"
    assert found.info.status == "RUNNING"
    assert found.info.run_name == sys.argv[1]
    assert [(p.step, p.value) for p in client.get_metric_history(run_id, "loss")] == [(1, 3.0), (2, 2.0)]
    assert [file.path for file in client.list_artifacts(run_id)] == ["notes"]
    assert mlflow.artifacts.load_text(f"runs:/{run_id}/notes/hello.txt") == "hello"
    if sys.argv[2] == "pass":
        rows = mlflow.search_runs(experiment_ids=["0"], filter_string=f"attributes.run_name = '{sys.argv[1]}'")
        assert list(rows["metrics.loss"]) == [2.0]
assert client.get_run(run_id).info.status == "FINISHED"
"""


@pytest.mark.parametrize("mode", [pytest.param("pass", marks=CAMPAIGN), "refuse"])
def test_a_program_reads_what_it_has_logged(place: OutboxPlace, name: str, mode: Mode) -> None:
    place.proxy.mode = mode
    done = place.run(READS, name, mode)
    assert done.returncode == 0, done.stderr

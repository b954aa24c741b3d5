"""Random calls, random faults, random kills: afterwards the server holds exactly what was acknowledged, once, in one run."""

from __future__ import annotations

import json
import os
import random
import signal
import time

import pytest

from tests.conftest import wait_for
from tests.outbox.conftest import OutboxPlace
from tests.outbox.proxy import Mode

SEEDS = 50
IN_EVERY_TEST = 2
MODES: list[Mode] = ["pass", "refuse", "reset", "cut", "error", "swallow"]

# Each line of its output is one call that has returned.
PROGRAM = """
import json, os, random, sys, time, mlflow
name, seed, kill_at = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
chance = random.Random(seed)
mlflow.set_experiment(f"faults-{name}")
run = mlflow.start_run(run_name=name)
def done(*call):
    os.write(1, (json.dumps(call) + "\\n").encode())
for call in range(60):
    if call == kill_at:
        os.kill(os.getpid(), 9)
    kind = chance.choice(["metric"] * 6 + ["batch", "param", "tag", "artifact"])
    if kind == "metric":
        key, step, value = chance.choice("ab"), chance.randrange(50), chance.random()
        mlflow.log_metric(key, value, step=step)
        done("metric", key, step, value)
    elif kind == "batch":
        values = {f"m{number}": chance.random() for number in range(chance.randrange(1, 40))}
        mlflow.log_metrics(values, step=call)
        for key, value in values.items():
            done("metric", key, call, value)
    elif kind == "param":
        mlflow.log_param(f"p{call}", call)
        done("param", f"p{call}", str(call))
    elif kind == "tag":
        mlflow.set_tag("t", call)
        done("tag", "t", str(call))
    else:
        mlflow.log_text(str(call), f"files/{call}.txt")
        done("artifact", f"{call}.txt")
    time.sleep(chance.random() * 0.1)
mlflow.end_run()
done("end")
"""


@pytest.mark.parametrize(
    "seed",
    [
        *range(IN_EVERY_TEST),
        *(pytest.param(seed, marks=pytest.mark.campaign) for seed in range(IN_EVERY_TEST, SEEDS)),
    ],
)
def test_the_server_holds_what_was_acknowledged(place: OutboxPlace, name: str, seed: int) -> None:
    chance = random.Random(seed)
    place.proxy.mode = chance.choice(MODES)
    kill_at = chance.choice([-1, chance.randrange(60)])
    process = place.start(PROGRAM, name, str(seed), str(kill_at))
    while process.poll() is None:
        time.sleep(chance.random() * 0.7)
        place.proxy.mode = chance.choice(MODES)
        if chance.random() < 0.3:
            for sender in place.senders():
                os.kill(sender.pid, signal.SIGKILL)
    out, err = process.communicate(timeout=60)
    assert process.returncode == (0 if kill_at < 0 else -9), err
    calls = [json.loads(line) for line in out.splitlines()]
    place.proxy.mode = "pass"
    # A dead program's sender may be dead as well: then the next command takes it up.
    assert place.lossy("outbox", "send", str(place.root)).returncode == 0
    ended = "FINISHED" if kill_at < 0 else "FAILED"
    place.run("import mlflow; mlflow.MlflowClient().create_run('0')")
    wait_for(lambda: [run.info.status for run in place.on_server(name)] == [ended], 60, f"one run, {ended}")
    place.wait_until_delivered()
    _check(place, name, calls)


def _check(place: OutboxPlace, name: str, calls: list[list[object]]) -> None:
    (run,) = place.on_server(name)
    client, run_id = place.client, run.info.run_id
    logged = sorted(
        (str(key), step, value) for kind, key, step, value in (c for c in calls if c[0] == "metric")
    )
    points = [
        (key, p.step, p.value) for key in run.data.metrics for p in client.get_metric_history(run_id, key)
    ]
    # A call that the kill interrupted may be there as well: one call, so one batch at most.
    surplus = [point for point in points if point not in logged]
    assert len({step for _, step, _ in surplus}) <= 1
    assert sorted(point for point in points if point in logged) == sorted(set(logged))
    for _, key, value in (c for c in calls if c[0] == "param"):
        assert run.data.params[str(key)] == value
    tags = [value for kind, _, value in (c for c in calls if c[0] == "tag")]
    if tags:
        assert int(run.data.tags["t"]) >= int(str(tags[-1]))
    files = {file.path.rpartition("/")[2] for file in client.list_artifacts(run_id, "files")}
    assert {c[1] for c in calls if c[0] == "artifact"} <= files

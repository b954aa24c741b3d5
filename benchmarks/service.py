"""What a group's server bears: many clients through the outbox, against the same with plain MLflow clients.

    python benchmarks/service.py [--clients 50] [--rate 10] [--seconds 60]

`lossy serve --auth` with two workers on PostgreSQL, all on this machine. One process drives all clients: each logs so many points
a second, one call a point. Plain clients wait for the server at each call, and log as many points as they get through. Stored:
what the database has in the end. CPU: of the server's processes, PostgreSQL's apart, in the first half of the time, for what is
stored then. UI: the request for the first page of runs, ten times a second in the second half, each by a connection of its own,
as a proxy in front makes them: now this worker answers, now that. Idle: the same afterwards, on the same runs, when all is
stored.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import requests

if TYPE_CHECKING:
    from tests.services.lossy_serve import Served
    from tests.services.postgres import Postgres

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # the tests' servers

_IDLE_S = 30
_UI_EVERY_S = 0.1
_AUTH = ("admin", "benchmark-password")

# One process for all clients: how: plain, a thread a client, or outbox.
_LOAD = """
import json, sys, threading, time
import mlflow
from mlflow import MlflowClient
clients, rate, seconds, how = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
experiment = mlflow.set_experiment(how).experiment_id
client = MlflowClient()
runs = [client.create_run(experiment, run_name=f"{how}-{n}").info.run_id for n in range(clients)]
print("ready", flush=True)
sys.stdin.readline()
begin = time.monotonic()
tried, refused = [0] * clients, [0] * clients
def log(number, step):
    tried[number] += 1
    try:
        client.log_metric(runs[number], "loss", step / 7, step=step)
    except Exception:
        refused[number] += 1
def alone(number):
    step = 0
    while (now := time.monotonic() - begin) < seconds:
        time.sleep(max(0.0, step / rate - now))
        log(number, step)
        step += 1
if how == "plain":
    threads = [threading.Thread(target=alone, args=(number,)) for number in range(clients)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
else:
    for step in range(int(seconds * rate)):
        time.sleep(max(0.0, step / rate - (time.monotonic() - begin)))
        for number in range(clients):
            log(number, step)
print(json.dumps([sum(tried), sum(refused)]), flush=True)
for run in runs:
    client.set_terminated(run)
"""


@dataclass(frozen=True, slots=True)
class Load:
    """In seconds: each of the UI's requests (`ui`, `idle`), until all was stored (`took`), the server's CPU for 1000 points."""

    tried: int
    refused: int
    stored: int
    took: float
    cpu_per_1000: float
    ui: list[float]
    idle: list[float]

    @property
    def slower(self) -> float:
        return _percentile(self.ui, 99) / _percentile(self.idle, 99)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--rate", type=float, default=10, help="points a second of each client")
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    from tests.conftest import free_port
    from tests.services.lossy_serve import start_lossy_serve
    from tests.services.postgres import start_postgres

    with tempfile.TemporaryDirectory() as folder, start_postgres() as postgres:
        database = postgres.create("mlflow")
        serving = ["--auth", "--workers", "2", "--port", str(port := free_port())]
        uri = f"http://127.0.0.1:{port}"
        with start_lossy_serve(Path(folder), serving, _server(database)) as served:
            wanted = int(options.clients * options.rate * options.seconds)
            print(f"{options.clients} clients, {options.rate:g} points a second each, {options.seconds:g} s")
            loads = {}
            for name, tracking_uri, delay in (
                ("plain", uri, ""),
                ("outbox, 1 s", f"outbox+{uri}", "1"),
                ("outbox, 5 s", f"outbox+{uri}", "5"),
            ):
                environment = _client(folder, tracking_uri, delay)
                loads[name] = _measure(options, environment, uri, served, lambda: _count(postgres), name)
    _print(wanted, loads)


def _print(wanted: int, loads: dict[str, Load]) -> None:
    print(f"{'':<13}{'stored':>15}{'a second':>10}{'refused':>9}{'CPU / 1000':>12}")
    for name, load in loads.items():
        print(
            f"{name:<13}{load.stored:>7} /{wanted:>6}{load.stored / load.took:>10.0f}"
            f"{load.refused / max(1, load.tried):>9.1%}{load.cpu_per_1000:>10.2f} s"
        )
    print(f"{'UI, ms':<20}{'requests':>10}{'median':>8}{'90 %':>8}{'99 %':>8}{'longest':>9}")
    for name, load in loads.items():
        for when, times in ((name, load.ui), ("  idle", load.idle)):
            shown = "".join(f"{_percentile(times, part) * 1000:>8.0f}" for part in (50, 90, 99))
            print(f"{when:<20}{len(times):>10}{shown}{max(times) * 1000:>9.0f}")
    plain = loads["plain"].cpu_per_1000
    for name, target in (("outbox, 1 s", 8), ("outbox, 5 s", 20)):
        load = loads[name]
        print(
            f"{name}: CPU per point {plain / load.cpu_per_1000:.1f} x less than plain (target {target} x), "
            f"UI p99 {load.slower:.1f} x idle (target < 3 x)"
        )


def _measure(
    options: argparse.Namespace,
    environment: Mapping[str, str],
    uri: str,
    server: Served,
    count: Callable[[], int],
    name: str,
) -> Load:
    command = [
        sys.executable,
        "-c",
        _LOAD,
        str(options.clients),
        str(options.rate),
        str(options.seconds),
        name,
    ]
    load = subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert load.stdin
    assert load.stdout
    assert load.stdout.readline() == "ready\n"
    time.sleep(3)  # the runs themselves are through
    stored_before, cpu_before, begin = count(), _cpu(server), time.monotonic()
    load.stdin.write("\n")
    load.stdin.flush()
    time.sleep(options.seconds / 2)
    cpu_per_1000 = 1000 * (_cpu(server) - cpu_before) / max(1, count() - stored_before)
    ui: list[float] = []
    done = threading.Event()
    asking = threading.Thread(target=lambda: ui.extend(_ui_times(uri, 3600, done)))
    asking.start()
    tried, refused = json.loads(load.stdout.readline())
    done.set()
    asking.join()
    until = time.monotonic() + 60
    while (stored := count() - stored_before) < tried - refused and time.monotonic() < until:
        time.sleep(0.2)
    took = time.monotonic() - begin
    load.wait()
    time.sleep(3)  # and so are their ends
    return Load(tried, refused, stored, took, cpu_per_1000, ui, _ui_times(uri, _IDLE_S))


def _client(folder: str, uri: str, delay: str) -> dict[str, str]:
    return os.environ | {
        "MLFLOW_TRACKING_URI": uri,
        "MLFLOW_TRACKING_USERNAME": _AUTH[0],
        "MLFLOW_TRACKING_PASSWORD": _AUTH[1],
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "LOSSY_OUTBOX_DIR": f"{folder}/outbox-{delay}",
        "LOSSY_OUTBOX_DELAY": delay,
    }


def _count(postgres: Postgres) -> int:
    return int(postgres.sql("select count(*) from metrics", "mlflow"))


def _server(database: str) -> dict[str, str]:
    return {
        "MLFLOW_BACKEND_STORE_URI": database,
        "MLFLOW_AUTH_ADMIN_PASSWORD": _AUTH[1],
        "MLFLOW_FLASK_SERVER_SECRET_KEY": os.urandom(32).hex(),
    }


def _cpu(server: Served) -> float:
    """Seconds of CPU of the server's processes so far."""
    return float(sum(sum(member.cpu_times()[:2]) for member in server.family()))


def _ui_times(uri: str, seconds: float, done: threading.Event | None = None) -> list[float]:
    """Seconds of each request that the UI makes for the first page of runs, begun every `_UI_EVERY_S`, or as soon as can be."""
    path = f"{uri}/ajax-api/2.0/mlflow"
    found = requests.post(f"{path}/experiments/search", json={"max_results": 100}, auth=_AUTH, timeout=60)
    asked: Any = {
        "experiment_ids": [item["experiment_id"] for item in found.json()["experiments"]],
        "max_results": 100,
        "order_by": ["attributes.start_time DESC"],
    }
    times: list[float] = []
    started = time.perf_counter()
    while (begin := time.perf_counter()) < started + seconds and not (done and done.is_set()):
        requests.post(f"{path}/runs/search", json=asked, auth=_AUTH, timeout=60).raise_for_status()
        times.append(time.perf_counter() - begin)
        time.sleep(max(0.0, begin + _UI_EVERY_S - time.perf_counter()))
    return times


def _percentile(times: list[float], part: int) -> float:
    return sorted(times)[part * (len(times) - 1) // 100]


if __name__ == "__main__":
    main()

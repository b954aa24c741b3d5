"""What logging costs: MLflow's synchronous and asynchronous logging, and the outbox, on one default `mlflow server`.

    python benchmarks/outbox.py [--points 400]

Each program logs so many points, one call each. `caller` is the time that a call takes of the program's own thread; `delivered`
counts from the first call until the server has all of them. Then the sender alone: its memory, and its share of a core at 100
points a second.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psutil
import requests

_PROGRAM = """
import json, statistics, sys, time, mlflow
points, synchronous, pause = int(sys.argv[1]), sys.argv[2] == "sync", float(sys.argv[3])
with mlflow.start_run() as run:
    mlflow.log_metric("warm", 0, synchronous=True)
    times = []
    began = time.time()
    for step in range(points):
        start = time.perf_counter()
        mlflow.log_metric("loss", step / 3, step=step, synchronous=synchronous)
        times.append(time.perf_counter() - start)
        time.sleep(pause)
times.sort()
print(json.dumps([statistics.median(times), times[int(0.999 * (len(times) - 1))], began, run.info.run_id]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--points", type=int, default=400)
    points = parser.parse_args().points
    with tempfile.TemporaryDirectory() as folder, started_server(Path(folder)) as uri:
        os.environ["LOSSY_OUTBOX_DIR"] = f"{folder}/outbox"
        rows = {
            "synchronous": _measure(uri, uri, points, "sync"),
            "asynchronous": _measure(uri, uri, points, "async"),
            "outbox": _measure(f"outbox+{uri}", uri, 10 * points, "sync"),
        }
        print(f"{'':<14}{'caller, median':>16}{'99.9 %':>12}{'delivered a second':>22}")
        for name, (median, tail, rate) in rows.items():
            print(f"{name:<14}{median * 1e6:>13.0f} us{tail * 1e6:>9.0f} us{rate:>22.0f}")
        synchronous, asynchronous, outbox = rows.values()
        print(f"caller, synchronous to outbox    {synchronous[0] / outbox[0]:>7.0f} x   target > 100 x")
        print(f"caller, asynchronous to outbox   {asynchronous[0] / outbox[0]:>7.1f} x   target > 1 x")
        print(f"delivered, outbox to synchronous {outbox[2] / synchronous[2]:>7.0f} x   target > 20 x")
        memory, share = _sender_at_100_a_second(f"outbox+{uri}", Path(folder, "outbox"))
        print(
            f"sender: {memory:.0f} MB, target < 60; {share:.1%} of a core at 100 points a second, target < 5 %"
        )


def _measure(tracking_uri: str, server: str, points: int, how: str) -> tuple[float, float, float]:
    """(median, 99.9th percentile of a call's seconds; points delivered a second)."""
    process = _start(tracking_uri, points, how, 0)
    out, _ = process.communicate()
    median, tail, began, run_id = json.loads(out.splitlines()[-1])
    arrived = _wait_for_points(server, run_id, points)
    return median, tail, points / (arrived - began)


def _start(tracking_uri: str, points: int, how: str, pause: float) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": tracking_uri,
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    }
    command = [sys.executable, "-c", _PROGRAM, str(points), how, str(pause)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def _wait_for_points(server: str, run_id: str, points: int) -> float:
    """When the server had all points; never later than the program's end, where they had arrived by then."""
    query = {"run_id": run_id, "metric_key": "loss", "max_results": "25000"}
    while True:
        answer = requests.get(f"{server}/api/2.0/mlflow/metrics/get-history", params=query, timeout=60)
        if len(answer.json().get("metrics", [])) >= points:
            return time.time()
        time.sleep(0.05)


def _sender_at_100_a_second(tracking_uri: str, outbox: Path) -> tuple[float, float]:
    process = _start(tracking_uri, 1500, "sync", 0.01)
    time.sleep(8)  # its start is not what is measured
    (file,) = outbox.glob("*/sender-*")
    sender = psutil.Process(int(file.read_text().split(".")[2]))
    before, started = sum(sender.cpu_times()[:2]), time.monotonic()
    time.sleep(8)
    share = (sum(sender.cpu_times()[:2]) - before) / (time.monotonic() - started)
    memory = sender.memory_info().rss / 1e6
    process.wait()
    return memory, share


@contextmanager
def started_server(folder: Path) -> Iterator[str]:
    """A default `mlflow server`, but for its port and its job runners, which have no part in this."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    with Path(folder, "server.log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    uri = f"http://127.0.0.1:{port}"
    try:
        while True:
            try:
                requests.get(f"{uri}/health", timeout=2)
                break
            except requests.RequestException:
                time.sleep(0.3)
        yield uri
    finally:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for member in family:
            member.terminate()
        process.wait()


if __name__ == "__main__":
    main()

"""What grows with the number of runs: `lossy check`, `runs list`, `resolve`, and what the UI's first pages ask the server for.

    python benchmarks/scale.py [--runs 10000] [--s3]

Two databases on one PostgreSQL, one with a tenth of the runs, of 100 metrics each, and two files a run in a folder (or in S3).
Each time is the best of three, with processes started anew. `core` is what command, server and database have worked for it
together, which changes less with what else the machine does. `ratio`: how many times more that is with ten times the runs.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import psutil
import requests

sys.path.insert(0, str(Path(__file__).parent.parent))

from lossy_mlflow.service.files import file_place
from tests.conftest import start_mlflow_server
from tests.services.many_runs import files_of, fill
from tests.services.postgres import Postgres, start_postgres
from tests.services.seaweedfs import BUCKET, start_seaweedfs


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--s3", action="store_true", help="The files in SeaweedFS, not in a folder.")
    options = parser.parse_args()
    with ExitStack() as started:
        folder = Path(started.enter_context(tempfile.TemporaryDirectory()))
        postgres = started.enter_context(start_postgres())
        if options.s3:
            os.environ.update(started.enter_context(start_seaweedfs(folder / "s3")).environment)
        os.environ["XDG_STATE_HOME"] = str(folder / "state")
        _migrate(postgres.create("migrated"))
        sizes = [options.runs // 10, options.runs]
        columns = [_measured(postgres, folder, n_runs, options.s3) for n_runs in sizes]
    print(f"{'':<40}{sizes[0]:>7} runs    core{sizes[1]:>7} runs    core   ratio")
    for name, small in columns[0].items():
        large = columns[1][name]
        figures = f"{small.wall:>10.2f} s{small.core:>6.2f} s{large.wall:>10.2f} s{large.core:>6.2f} s"
        print(f"{name:<40}{figures}{large.core / small.core:>8.1f}")
    slowest = max(cost.wall for cost in columns[1].values())
    print(f"the slowest with {sizes[1]} runs {slowest:.2f} s, target < 2 s")


@dataclass(frozen=True)
class Cost:
    """In seconds, by the clock and of a processor's core."""

    wall: float
    core: float


def _migrate(uri: str) -> None:
    code = f"from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore as S; S({uri!r}, 'mlflow-artifacts:/')"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def _measured(postgres: Postgres, folder: Path, n_runs: int, in_s3: bool) -> dict[str, Cost]:
    database = postgres.create(f"runs{n_runs}", template="migrated")
    start = time.perf_counter()
    fill(database, n_runs)
    store = f"s3://{BUCKET}/{n_runs}" if in_s3 else str(folder / f"store{n_runs}")
    n_files = _store_files(store, list(files_of(database)))
    print(
        f"{n_runs} runs and {n_files} files made in {time.perf_counter() - start:.0f} s",
        file=sys.stderr,
    )
    os.environ["MLFLOW_BACKEND_STORE_URI"], os.environ["MLFLOW_ARTIFACTS_DESTINATION"] = database, store
    options = ["--backend-store-uri", database, "--artifacts-destination", store]
    with start_mlflow_server(folder / f"server{n_runs}", options=options) as (uri, server):
        os.environ["MLFLOW_TRACKING_URI"] = uri
        api = f"{uri}/ajax-api/2.0/mlflow"
        by_metric = _FIRST_RUNS | {"order_by": ["metrics.metric_7 ASC"]}
        deeds: dict[str, Callable[[], object]] = {
            "lossy check": lambda: _lossy("check"),
            "lossy runs list": lambda: _lossy("runs", "list"),
            "lossy resolve NAME": lambda: _lossy("resolve", f"trained_{n_runs // 2}"),
            "UI: the experiments": lambda: _post(f"{api}/experiments/search", {"max_results": 25}),
            "UI: an experiment's newest 100 runs": lambda: _post(f"{api}/runs/search", _FIRST_RUNS),
            "UI: the same by a metric": lambda: _post(f"{api}/runs/search", by_metric),
            "UI: the first registered models": lambda: requests.get(
                f"{api}/registered-models/search?max_results=10&order_by=name+ASC", timeout=60
            ).raise_for_status(),
        }
        servers = [server.pid, postgres.pid]
        return {name: _best(do, servers) for name, do in deeds.items()}


def _store_files(store: str, paths: list[str]) -> int:
    if store.startswith("s3://"):
        place = file_place(store)
        with ThreadPoolExecutor(8) as pool:
            return sum(1 for _ in pool.map(lambda path: place.write(path, BytesIO(b"{}")), paths))
    for path in paths:
        file = Path(store, path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"{}")
    return len(paths)


_FIRST_RUNS: dict[str, Any] = {
    "experiment_ids": ["1"],
    "max_results": 100,
    "run_view_type": "ACTIVE_ONLY",
    "order_by": ["attributes.start_time DESC"],
}


def _best(do: Callable[[], object], servers: list[int]) -> Cost:
    costs = []
    for _ in range(3):
        start, worked = time.perf_counter(), _worked(servers)
        do()
        costs.append(Cost(time.perf_counter() - start, _worked(servers) - worked))
    return Cost(min(cost.wall for cost in costs), max(0.01, min(cost.core for cost in costs)))


def _worked(servers: list[int]) -> float:
    """Seconds of a core that have gone so far into this process, the servers, and all that they have started."""
    total = sum(os.times()[:4])
    for pid in servers:
        process = psutil.Process(pid)
        # Of those that have ended, their starter knows.
        ended = process.cpu_times()
        total += ended.children_user + ended.children_system
        for one in [process, *process.children(recursive=True)]:
            times = one.cpu_times()
            total += times.user + times.system
    return total


def _lossy(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "lossy_mlflow", *words], check=True, stdout=subprocess.DEVNULL)


def _post(url: str, body: dict[str, Any]) -> None:
    requests.post(url, json=body, timeout=60).raise_for_status()


if __name__ == "__main__":
    main()

"""How fast `lossy backup` is, against `pg_dump` and a plain copy of the files, in turn, in the same run.

    python benchmarks/service_backup.py [--rounds 3] [--megabytes 1000] [--rows 200000]

PostgreSQL and SeaweedFS are started for it, as the tests do. The files are of random bytes: `runs`, as trainings of vae10_digits
leave them, ten files of 4 kB to one of 1.5 MB; `small`, half of the bytes in files of 20 kB. Each lies once in a folder, once in
S3. The plain copy is `cp -r`, or sixteen threads that download; it ends with a sync, as a backup does. What is compared is bytes
per second of a first backup; one that finds nothing new is shown besides.

Nothing is deleted before the end: ext4 passes over the inodes of files that were deleted in the last five minutes, one by one,
which makes each new file cost many times what it does otherwise. Wait so long between two runs.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from lossy_mlflow.service.backup import back_up
from lossy_mlflow.service.files import FilePlace, file_place
from lossy_mlflow.service.postgres import postgres_client
from lossy_mlflow.service.stores import Stores
from tests.services.postgres import start_postgres
from tests.services.seaweedfs import BUCKET, start_seaweedfs

# Files of so many bytes, and which part of all bytes each has.
MIXES = {"runs": {4_000: 0.03, 1_500_000: 0.97}, "small": {20_000: 0.5, 20_000_000: 0.5}}
TARGET = 0.7


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=200_000)
    arguments = parser.parse_args()
    with started() as (folder, uri):
        fill_database(uri, arguments.rows)
        for mix, shares in MIXES.items():
            for shown, root in (("folder", str(folder)), ("S3", f"s3://{BUCKET}")):
                artifacts = f"{root}/{mix}"
                fill_place(file_place(artifacts), arguments.megabytes * 1_000_000, shares)
                stores = Stores(uri, uri, artifacts)
                found = measure(stores, folder / f"copies-{mix}-{shown}", arguments.rounds)
                _print(f"{mix}, {shown}", found)


@contextmanager
def started() -> Iterator[tuple[Path, str]]:
    """A folder, and a new database; this process's environment leads to an S3 server."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        postgres = stack.enter_context(start_postgres())
        s3 = stack.enter_context(start_seaweedfs(folder / "seaweedfs"))
        os.environ |= s3.environment
        yield folder, postgres.create("runs")


def fill_database(uri: str, rows: int) -> None:
    """MLflow's tables, with one run that has so many points."""
    import sqlalchemy
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    store = SqlAlchemyStore(uri, "mlflow-artifacts:/")
    run_id = store.create_run("0", "me", 0, [], "one").info.run_id
    with store.engine.begin() as connection:
        connection.execute(
            sqlalchemy.text(
                "insert into metrics (key, value, timestamp, run_uuid, step, is_nan)"
                " select 'loss', random(), 1700000000000 + n, :run, n, false from generate_series(1, :rows) n"
            ),
            {"run": run_id, "rows": rows},
        )
    store.engine.dispose()


def fill_place(place: FilePlace, n_bytes: int, shares: Mapping[int, float]) -> None:
    for size, share in shares.items():
        for number in range(int(n_bytes * share) // size):
            place.write(f"1/{number % 100}/{size}/{number}.bin", io.BytesIO(os.urandom(size)))


def measure(stores: Stores, folder: Path, rounds: int) -> dict[str, float]:
    """The median seconds of a first backup, of one that finds nothing new, and of pg_dump with a plain copy; and the bytes."""
    times: dict[str, list[float]] = {"backup": [], "again": [], "plain": []}
    n_bytes = 0
    # The first round doesn't count: what is loaded by the first call is loaded then.
    for number in range(rounds + 1):
        target = folder / str(number)
        both: dict[str, Callable[[], object]] = {
            "plain": partial(plain_copy, stores, target / "plain"),
            "backup": partial(back_up, stores, str(target / "backup")),
        }
        for name in sorted(both, reverse=number % 2 == 0):
            times[name].append(_seconds(both[name]))
        begun = time.perf_counter()
        done = back_up(stores, str(target / "backup"))
        times["again"].append(time.perf_counter() - begun)
        n_bytes = done.bytes + sum(done.dumps.values())
    return {name: statistics.median(values[1:]) for name, values in times.items()} | {"bytes": n_bytes}


def _seconds(do: Callable[[], object]) -> float:
    begun = time.perf_counter()
    do()
    return time.perf_counter() - begun


def plain_copy(stores: Stores, target: Path) -> None:
    target.mkdir(parents=True)
    address, environment = postgres_client(stores.database)
    subprocess.run(
        ["pg_dump", "-Fc", "-f", str(target / "dump"), "-d", address],
        env=os.environ | environment,
        check=True,
    )
    if stores.artifacts.startswith("s3://"):
        _download(file_place(stores.artifacts), target)
    else:
        subprocess.run(["cp", "-r", stores.artifacts, str(target)], check=True)
    file_place(str(target)).sync()


def _download(place: FilePlace, target: Path) -> None:
    def one(path: str) -> None:
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        with place.open(path) as stream, (target / path).open("wb") as copy:
            while data := stream.read(1 << 20):
                copy.write(data)

    with ThreadPoolExecutor(place.threads) as pool:
        for _ in pool.map(one, _paths(place)):
            pass


def _paths(place: FilePlace) -> Iterator[str]:
    return (file.path for file in place.files())


def _print(shown: str, found: dict[str, float]) -> None:
    megabytes = found["bytes"] / 1e6
    ratio = found["plain"] / found["backup"]
    verdict = "" if ratio >= TARGET else "  missed"
    print(
        f"{shown:<16}{megabytes:>8.0f} MB   backup {megabytes / found['backup']:>6.0f} MB/s   pg_dump and copy"
        f" {megabytes / found['plain']:>6.0f} MB/s   {ratio:>5.0%}   target >= {TARGET:.0%}{verdict}"
    )
    print(
        f"{'':<16}{'nothing new':>11}   {found['again']:>5.2f} s, {found['again'] / found['backup']:.0%} of the first backup"
    )


if __name__ == "__main__":
    main()

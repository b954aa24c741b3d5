"""How fast `lossy check --deep` reads what a server keeps, against `pg_dump` and a plain copy of the same, in turn.

    python benchmarks/service_check.py [--rounds 3] [--decoders 600]

PostgreSQL and SeaweedFS are started for it, as the tests do. Ten finished runs to a decoder of 1.5 MB, which is registered; the
files lie once in a folder, once in S3. Each digest is right: a check that finds anything ends the measurement.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import sqlalchemy

sys.path.insert(0, str(Path(__file__).parent.parent))

from service_backup import TARGET, plain_copy, started

from lossy_mlflow.checkpoints.flavor import FILES, WEIGHTS_FILE, combined_sha256
from lossy_mlflow.hparams import Hparam, hparams_sha256
from lossy_mlflow.hparams.flatten import flatten
from lossy_mlflow.hparams.tree import freeze
from lossy_mlflow.service.check import check
from lossy_mlflow.service.files import FilePlace, file_place
from lossy_mlflow.service.stores import Stores
from lossy_mlflow.tracking.run_files import HPARAMS_FILE
from tests.services.many_runs import files_of, fill
from tests.services.seaweedfs import BUCKET

_WEIGHTS_BYTES, _OTHER_BYTES = 1_500_000, 2_000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--decoders", type=int, default=600)
    arguments = parser.parse_args()
    with started() as (folder, uri):
        _migrate(uri)
        fill(uri, arguments.decoders * 10)
        contents = dict(_contents(uri))
        for shown, artifacts in (("folder", str(folder / "store")), ("S3", f"s3://{BUCKET}/store")):
            _store(file_place(artifacts), contents)
            _measure(shown, Stores(uri, uri, artifacts), folder / f"copies-{shown}", arguments.rounds)


def _migrate(uri: str) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    SqlAlchemyStore(uri, "mlflow-artifacts:/").engine.dispose()


def _contents(uri: str) -> Iterator[tuple[str, bytes]]:
    """By path, what each promised file holds. The digests in the database are made those of it."""
    tree = freeze(Hparam(model_name="vae"))
    files: dict[str, bytes] = {WEIGHTS_FILE: os.urandom(_WEIGHTS_BYTES)}
    files |= {name: os.urandom(_OTHER_BYTES) for name in sorted(FILES - {WEIGHTS_FILE})}
    together = combined_sha256({name: hashlib.sha256(data).hexdigest() for name, data in files.items()})
    tags = {"hparams_sha256": hparams_sha256(tree)}
    engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool)
    with engine.begin() as connection:
        for statement, values in (
            ("update tags set value = :hparams_sha256 where key = 'hparams_sha256'", tags),
            ("delete from tags where key = 'training_state'", {}),
            (
                "update logged_model_tags set tag_value = :together where tag_key = 'files_sha256'",
                {"together": together},
            ),
            (
                "update model_version_tags set value = :together where key = 'files_sha256'",
                {"together": together},
            ),
        ):
            connection.execute(sqlalchemy.text(statement), values)
    for path in files_of(uri):
        name = path.rpartition("/artifacts/")[2]
        yield (
            path,
            json.dumps(flatten(tree)).encode()
            if name == HPARAMS_FILE and "/models/" not in path
            else files[name],
        )


def _store(place: FilePlace, contents: dict[str, bytes]) -> None:
    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(lambda path: place.write(path, BytesIO(contents[path])), contents):
            pass


def _measure(shown: str, stores: Stores, folder: Path, rounds: int) -> None:
    checks, copies, n_bytes = [], [], 0
    # The first round doesn't count: what is loaded by the first call is loaded then.
    for number in range(rounds + 1):
        begun = time.perf_counter()
        plain_copy(stores, folder / str(number))
        copies.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        report = check(stores, deep=True)
        checks.append(time.perf_counter() - begun)
        if report.findings:
            sys.exit(f"The check has found what isn't there: {report.findings[0]}")
        n_bytes = report.n_bytes
    checked, copied = statistics.median(checks[1:]), statistics.median(copies[1:])
    ratio = copied / checked
    verdict = "" if ratio >= TARGET else "  missed"
    print(
        f"{shown:<8}{n_bytes / 1e6:>6.0f} MB   check --deep {n_bytes / 1e6 / checked:>6.0f} MB/s   pg_dump and copy"
        f" {n_bytes / 1e6 / copied:>6.0f} MB/s   {ratio:>5.0%}   target >= {TARGET:.0%}{verdict}"
    )


if __name__ == "__main__":
    main()

"""A server's stores after a life: decoders trained, promoted, copied, overwritten, imported, pruned, stopped and resumed."""

from __future__ import annotations

import os
import shutil
import signal
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from mlflow import MlflowClient

from lossy_mlflow.checkpoints.flavor import FILES
from lossy_mlflow.cli.app import app
from lossy_mlflow.outbox.books import list_outbox
from lossy_mlflow.service.database import engine_of
from lossy_mlflow.service.files import file_place
from lossy_mlflow.service.stores import Stores
from tests.conftest import Workplace, end_senders, start_mlflow_server, wait_for
from tests.services.postgres import Postgres
from tests.services.seaweedfs import BUCKET, SeaweedFS

TRAIN = (
    "train",
    "vae2_digits",
    "--set=n_iwae_samples=3",
    "--set=checkpointing_freq=1",
    "--set=start_checkpointing=0",
)
# Of a decoder: its pictures are among them.
N_FILES = len(FILES) + 1
_LONG = (
    "train",
    "vae2_digits",
    "--e-name=long",
    "--set=model_train.epochs=100000",
    "--set=checkpointing_freq=40",
)


@dataclass(frozen=True)
class Kept:
    """Stores that no server uses: `database` is a file's path, or the name of a database of `postgres`.

    `dead`: a copy of the database in which a run of the machine `home` was killed, and nobody has noticed.
    """

    database: str
    artifacts: str
    home: Path
    dead: str = ""
    postgres: Postgres | None = None
    seaweedfs: SeaweedFS | None = None

    @property
    def variables(self) -> dict[str, str]:
        """What a process needs to reach the store."""
        return self.seaweedfs.environment if self.seaweedfs else {}

    def copy(self, folder: Path, database: str = "") -> Stores:
        """A copy of both, in `folder` or under another name, which a test may damage."""
        if self.postgres and self.seaweedfs:
            uri = self.postgres.create(f"t{uuid.uuid4().hex[:12]}", template=self.database)
            client, prefix = self.seaweedfs.client(), self.artifacts.removeprefix(f"s3://{BUCKET}/")
            target = uuid.uuid4().hex[:12]
            for item in client.list_objects_v2(Bucket=BUCKET, Prefix=f"{prefix}/")["Contents"]:
                key = f"{target}/{item['Key'].removeprefix(prefix)[1:]}"
                client.copy_object(Bucket=BUCKET, Key=key, CopySource={"Bucket": BUCKET, "Key": item["Key"]})
            return Stores(uri, uri, f"s3://{BUCKET}/{target}")
        shutil.copy(database or self.database, folder / "mlflow.db")
        shutil.copytree(self.artifacts, folder / "artifacts")
        uri = f"sqlite:///{folder}/mlflow.db"
        return Stores(uri, uri, str(folder / "artifacts"))


@contextmanager
def at_home(folder: Path, variables: dict[str, str]) -> Iterator[pytest.MonkeyPatch]:
    """This process, and what it starts, has a home of its own, and these variables."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("MLFLOW_RUN", "LOSSY_"))]:
            patch.delenv(name)
        homes = {name: str(folder / name) for name in ("HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME")}
        for name, value in (homes | variables).items():
            patch.setenv(name, value)
        yield patch


def lossy(*words: str) -> None:
    app.main(list(words), prog_name="lossy", standalone_mode=False)


def kept_in(folder: Path) -> Kept:
    """SQLite and a folder, both in `folder`."""
    return Kept(
        str(folder / "mlflow.db"), str(folder / "artifacts"), folder / "home", str(folder / "dead.db")
    )


def keep_sqlite(folder: Path, migrated: Path) -> Kept:
    """By all that `lossy` can do."""
    shutil.copy(migrated, folder / "mlflow.db")
    kept = kept_in(folder)
    (folder / "artifacts").mkdir()
    uri = f"sqlite:///{kept.database}"
    with at_home(kept.home, {}) as patch, _served(folder, uri, kept) as server:
        patch.setenv("MLFLOW_TRACKING_URI", server)
        client = MlflowClient(server)
        _first_life(client)
        lossy(*TRAIN, "--set=model_train.epochs=1", "--overwrite")
        _has_versions(client, "vae2_digits", 3)
        lossy("prune", "vae2_digits", "--keep=1", "--older-than=0s", "--yes")
        weights = next(Path(kept.artifacts).rglob("weights.safetensors"))
        shutil.copy(weights, folder / "theirs.safetensors")
        lossy("import", str(folder / "theirs.safetensors"), "--name=theirs", "--hparam-set=vae2_digits")
        _stopped_and_resumed(client, folder, kept, server)
    return kept


def keep_postgres(folder: Path, postgres: Postgres, migrated: str, seaweedfs: SeaweedFS) -> Kept:
    """In short."""
    database, place = f"kept{uuid.uuid4().hex[:8]}", f"s3://{BUCKET}/{uuid.uuid4().hex[:12]}"
    uri = postgres.create(database, template=migrated)
    kept = Kept(database, place, folder / "home", "", postgres, seaweedfs)
    with at_home(kept.home, seaweedfs.environment) as patch, _served(folder, uri, kept) as server:
        patch.setenv("MLFLOW_TRACKING_URI", server)
        _first_life(MlflowClient(server))
        lossy("prune", "vae2_digits", "--keep=1", "--older-than=0s", "--yes")
        _is_delivered()
    return kept


@contextmanager
def served(folder: Path, stores: Stores, kept: Kept) -> Iterator[str]:
    """The URI of a server of these stores."""
    options = ["--backend-store-uri", stores.database, "--artifacts-destination", stores.artifacts]
    with start_mlflow_server(folder / "server", options=options, variables=kept.variables) as (uri, _):
        yield uri


@contextmanager
def _served(folder: Path, database: str, kept: Kept) -> Iterator[str]:
    with served(folder, Stores(database, database, kept.artifacts), kept) as uri:
        try:
            yield uri
        finally:
            # This process has logged there too, and would start another sender in the place of one that has ended.
            shutil.rmtree(_outbox(kept), ignore_errors=True)
            end_senders(_outbox(kept))


def _outbox(kept: Kept) -> Path:
    return kept.home / "XDG_STATE_HOME" / "lossy_mlflow" / "outbox"


def _first_life(client: MlflowClient) -> None:
    """Two versions, the newer one champion, and copied: the older one's files will be nobody's."""
    lossy(*TRAIN, "--set=model_train.epochs=2")
    _has_versions(client, "vae2_digits", 2)
    lossy("promote", "vae2_digits/2")
    lossy("promote", "vae2_digits/2", "--to=production")


def _stopped_and_resumed(client: MlflowClient, folder: Path, kept: Kept, server: str) -> None:
    place = Workplace(folder, kept.home)
    variables = {name: os.environ[name] for name in ("HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME")}
    variables |= {"MLFLOW_TRACKING_URI": server}
    process = place.start(*_LONG, env=variables)
    try:
        _has_versions(client, "vae2_digits_long", 1)
    finally:
        end_senders(_outbox(kept))  # it would notice
        process.kill()
        process.communicate()
    shutil.copy(kept.database, kept.dead)
    (first,) = _attempts(client, "vae2_digits_long")
    process = place.start(*_LONG, env=variables)
    try:
        wait_for(lambda: _attempts(client, "vae2_digits_long") not in ([first], []), 300, "the next attempt")
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=120)
    finally:
        process.kill()
        process.communicate()
    _is_delivered()


def _is_delivered() -> None:
    def nothing_waits() -> bool:
        return not any(run.waiting or run.being_written for run in list_outbox(None))

    wait_for(nothing_waits, 120, "the outbox to be delivered")


def _attempts(client: MlflowClient, label: str) -> list[str]:
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    return [run.data.tags["attempt"] for run in client.search_runs(ids, f"tags.label = '{label}'")]


def _has_versions(client: MlflowClient, name: str, at_least: int) -> None:
    wait_for(
        lambda: len(client.search_model_versions(f"name = '{name}'")) >= at_least,
        300,
        f"{at_least} versions of {name}",
    )


def change(stores: Stores, statement: str, **values: Any) -> int:
    """What somebody does in the database by hand: how many rows."""
    with engine_of(stores.database).begin() as connection:
        return connection.execute(sqlalchemy.text(statement), values).rowcount


def ask(stores: Stores, question: str) -> list[Any]:
    with engine_of(stores.database).connect() as connection:
        return [row[0] for row in connection.execute(sqlalchemy.text(question))]


def content_of(stores: Stores) -> dict[str, bytes]:
    """All that lies in the store."""
    place, found = file_place(stores.artifacts), {}
    for file in place.files():
        with place.open(file.path) as stream:
            found[file.path] = stream.read()
    return found

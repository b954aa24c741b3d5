"""A team's server behind the fences, and who is at it: an admin, Alice who has something of every kind, Bob who has no right."""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

from lossy_mlflow.service.settings import Serving, server_settings
from lossy_mlflow.service.stores import Stores
from tests.conftest import clean_environment, end_with_children, free_port, wait_for

# Stands in the names of all that is Alice's, and in its content.
NAME = "alicename7q3"
SECRET = "alicesecret5k9"  # noqa: S105
PASSWORDS = {"admin": "admin-password-8d2", "alice": "alice-password-4f7", "bob": "bob-password-6h1"}
SECRET_KEY = "flask-secret-key-3v8"  # noqa: S105
API = "/api/2.0/mlflow"


@dataclass(frozen=True)
class Guarded:
    """A server behind the fences, its database and artifacts in `folder`."""

    uri: str
    folder: Path
    process: subprocess.Popen[bytes]
    session: requests.Session = field(default_factory=requests.Session)

    @property
    def port(self) -> int:
        return int(self.uri.rsplit(":", 1)[1])

    @property
    def log(self) -> str:
        return (self.folder / "server.log").read_text()

    def ask(self, who: str | None, method: str, path: str, **options: Any) -> requests.Response:
        """The answer to a request with the right password of `who`, or without any."""
        if who:
            options = {"auth": (who, PASSWORDS[who])} | options
        return self.session.request(method, self.uri + path, timeout=60, allow_redirects=False, **options)

    def told(self, who: str, method: str, path: str, **fields: Any) -> dict[str, Any]:
        """The answer to JSON, which must be well."""
        answer = self.ask(who, method, path, json=fields)
        assert answer.status_code == 200, (path, answer.text)
        return dict(answer.json()) if answer.text else {}

    def rows(self) -> dict[str, set[tuple[Any, ...]]]:
        """All that the database holds."""
        with closing(sqlite3.connect(self.folder / "mlflow.db")) as database:
            names = [
                row[0] for row in database.execute("select name from sqlite_master where type = 'table'")
            ]
            return {name: set(database.execute(f'select * from "{name}"')) for name in names}  # noqa: S608

    def files(self) -> dict[str, str]:
        """The SHA-256 of each file that is stored."""
        root = self.folder / "artifacts"
        return {
            str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(root.rglob("*"))
            if path.is_file()
        }


def own_stores(folder: Path, migrated: Path) -> Stores:
    """Stores in the folder, the database a copy of `migrated`."""
    (folder / "artifacts").mkdir(parents=True, exist_ok=True)
    shutil.copy(migrated, folder / "mlflow.db")
    return Stores(*[f"sqlite:///{folder}/mlflow.db"] * 2, str(folder / "artifacts"))


def settings_of(
    folder: Path, stores: Stores, port: int = 5000, workers: int = 1
) -> tuple[dict[str, str], list[str]]:
    """The environment and the arguments of such a server: what `lossy serve` gives to `mlflow server`."""
    serving = Serving(port=port, workers=workers, auth=True, allowed_hosts=("127.0.0.1",))
    secrets = {
        "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORDS["admin"],
        "MLFLOW_FLASK_SERVER_SECRET_KEY": SECRET_KEY,
    }
    settings = server_settings(stores, serving, clean_environment() | secrets)
    (folder / "auth.ini").write_text(settings.users_config)
    return settings.environment | {"MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini")}, settings.arguments


@contextmanager
def start_guarded(
    folder: Path, stores: Stores, environment: Mapping[str, str] | None = None
) -> Iterator[Guarded]:
    """A server on the stores, with an admin, Alice and Bob, who own nothing yet."""
    port = free_port()
    its_own, arguments = settings_of(folder, stores, port)
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *arguments],
            cwd=folder,
            env={**its_own, **(environment or {})},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    server = Guarded(f"http://127.0.0.1:{port}", folder, process)
    try:
        wait_for(lambda: _answers(server), 120, f"the server answers: {server.log}")
        for who in ("alice", "bob"):
            server.told("admin", "POST", f"{API}/users/create", username=who, password=PASSWORDS[who])
        yield server
    finally:
        if process.poll() is None:
            end_with_children(process)


def _answers(server: Guarded) -> bool:
    assert server.process.poll() is None, server.log
    try:
        return server.ask(None, "GET", "/health").ok
    except requests.RequestException:
        return False


@dataclass(frozen=True)
class Belongings:
    """What Alice has."""

    experiment: str
    run: str
    logged_model: str
    version: str
    trace: str
    model: str = f"{NAME}-model"
    file: str = f"{NAME}.txt"

    @property
    def artifact(self) -> str:
        """Where the file of her run is, as the artifact proxy calls it."""
        return f"{self.experiment}/{self.run}/artifacts/{self.file}"


def furnish(server: Guarded) -> Belongings:
    """Give Alice an experiment with a run, metrics, a data set, a file, a trace; a logged model; versions of a model."""

    def alice(path: str, method: str = "POST", **fields: Any) -> dict[str, Any]:
        return server.told("alice", method, f"{API}/{path}", **fields)

    now = int(time.time() * 1000)
    experiment = alice("experiments/create", name=f"{NAME}-experiment")["experiment_id"]
    alice("experiments/set-experiment-tag", experiment_id=experiment, key="note", value=SECRET)
    run = alice("runs/create", experiment_id=experiment, start_time=now, run_name=f"{NAME}-run")["run"][
        "info"
    ]["run_id"]
    alice(
        "runs/log-batch",
        run_id=run,
        metrics=[{"key": f"{NAME}-loss", "value": 4711.25, "timestamp": now, "step": 1}],
        params=[{"key": f"{NAME}-param", "value": SECRET}],
        tags=[{"key": f"{NAME}-tag", "value": SECRET}],
    )
    data = {
        "name": f"{NAME}-data",
        "digest": "d1",
        "source_type": "local",
        "source": SECRET,
        "schema": SECRET,
    }
    alice("runs/log-inputs", run_id=run, datasets=[{"dataset": data, "tags": []}])
    made = alice(
        "logged-models",
        experiment_id=experiment,
        name=f"{NAME}-logged",
        source_run_id=run,
        params=[{"key": f"{NAME}-param", "value": SECRET}],
    )
    logged_model = made["model"]["info"]["model_id"]
    alice(f"logged-models/{logged_model}", "PATCH", model_id=logged_model, status="LOGGED_MODEL_READY")
    has = Belongings(experiment, run, logged_model, "1", f"tr-{run}")
    for path in (has.artifact, f"{experiment}/models/{logged_model}/artifacts/MLmodel"):
        put = server.ask(
            "alice", "PUT", f"/api/2.0/mlflow-artifacts/artifacts/{path}", data=f"{SECRET} {path}".encode()
        )
        assert put.status_code == 200, put.text
    alice(
        "registered-models/create",
        name=has.model,
        description=SECRET,
        tags=[{"key": "note", "value": SECRET}],
    )
    alice(
        "model-versions/create",
        name=has.model,
        source=f"models:/{logged_model}",
        model_id=logged_model,
        description=SECRET,
    )
    alice("model-versions/create", name=has.model, source=f"runs:/{run}/", run_id=run, description=SECRET)
    alice("registered-models/alias", name=has.model, alias="best", version="1")
    _trace(server, has)
    return has


def _trace(server: Guarded, has: Belongings) -> None:
    """A trace can't come in through the server, which has no route for it: it is there from before."""
    from mlflow.entities import TraceInfo, TraceLocation, TraceState
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    store = SqlAlchemyStore(f"sqlite:///{server.folder}/mlflow.db", "mlflow-artifacts:/")
    store.start_trace(
        TraceInfo(
            trace_id=has.trace,
            trace_location=TraceLocation.from_experiment_id(has.experiment),
            request_time=1,
            state=TraceState.OK,
            request_preview=SECRET,
            tags={"note": SECRET},
        )
    )
    store.engine.dispose()

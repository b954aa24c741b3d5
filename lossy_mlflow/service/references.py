"""What a server's database refers to: its rows as far as `lossy check` judges them, all of one moment.

The number of questions doesn't grow with what is in the database. Metrics are looked at for runs alone that are open and have no
heartbeat.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy

from lossy_mlflow.checkpoints.flavor import is_logged_decoder
from lossy_mlflow.service.database import snapshot
from lossy_mlflow.tracking.open_runs import OpenRun, has_our_marks, open_run_of
from lossy_mlflow.tracking.run_files import STATE_TAG

if TYPE_CHECKING:
    from sqlalchemy import Connection

# A tag of LoggedModels whose files `lossy check --repair` frees: set before the first of them goes.
FREED_TAG = "lossy.freed"
_MODEL_STATES = {1: "PENDING", 2: "READY", 3: "FAILED"}
_MODEL_TAGS = ("files_sha256", "weights_sha256", "mlflow.model.isExternal", FREED_TAG)
_VERSION_TAGS = ("files_sha256", "weights_sha256")
_RUN_TAGS = ("hparams_sha256", "same_as", STATE_TAG)
_OPEN = (
    "join runs on runs.run_uuid = t.run_uuid"
    " where runs.lifecycle_stage = 'active' and runs.status in ('RUNNING', 'SCHEDULED')"
)
_TRACE_TAGS = ("mlflow.artifactLocation", "mlflow.trace.archiveLocation")


@dataclass(frozen=True, slots=True)
class RunRow:
    """A run. `tags`: those of an ended run that say which files it has; `is_active` is False in the bin."""

    run_id: str
    name: str
    status: str
    is_active: bool
    address: str
    tags: dict[str, str]


@dataclass(frozen=True, slots=True)
class SilentRun:
    """An open run without heartbeats, of plain MLflow. `last_sign`: its start or its newest metric, in seconds since 1970."""

    run_id: str
    name: str
    last_sign: float


@dataclass(frozen=True, slots=True)
class ModelRow:
    """A LoggedModel. `touched`: when it was last changed or a version of it deleted, in seconds since 1970."""

    model_id: str
    name: str
    status: str
    is_active: bool
    is_decoder: bool
    address: str
    touched: float
    tags: dict[str, str]


@dataclass(frozen=True, slots=True)
class VersionRow:
    """A version of the registered model `name`. `address`: of its files. `model_id`: of the LoggedModel that its source names, or
    ''.
    """

    workspace: str
    name: str
    version: int
    status: str
    run_id: str
    address: str
    model_id: str
    tags: dict[str, str]

    @property
    def title(self) -> str:
        return f"{self.name}/{self.version}"


@dataclass(frozen=True, slots=True)
class RegisteredRow:
    """A registered model: its aliases, and its tags that tell of promotions. `made`: in seconds since 1970."""

    workspace: str
    name: str
    made: float
    aliases: dict[str, int]
    promotions: dict[str, str]


@dataclass(frozen=True, slots=True)
class References:
    """`now`: the time by the database's clock. `experiments`, `traces`: the addresses of their files."""

    now: float
    experiments: list[str]
    traces: list[str]
    runs: dict[str, RunRow]
    open_runs: list[OpenRun]
    silent_runs: list[SilentRun]
    models: dict[str, ModelRow]
    registered: list[RegisteredRow]
    versions: list[VersionRow]


def read_references(uri: str) -> References:
    """Raises as `database.snapshot` does."""
    with snapshot(uri) as connection:
        ours, silent = _open_runs(connection)
        return References(
            now=database_time(connection),
            experiments=[row[0] or "" for row in _rows(connection, "select artifact_location from experiments")],
            traces=[row[0] for row in _rows(connection, "select value from trace_tags where key in :keys", keys=_TRACE_TAGS)],
            runs={run.run_id: run for run in _runs(connection)},
            open_runs=ours,
            silent_runs=silent,
            models={model.model_id: model for model in _models(connection)},
            registered=list(_registered(connection)),
            versions=list(_versions(connection)),
        )  # fmt: skip


def database_time(connection: Connection) -> float:
    """Seconds since 1970."""
    is_postgres = connection.dialect.name == "postgresql"
    question = (
        "select extract(epoch from now())"
        if is_postgres
        else "select (julianday('now') - 2440587.5) * 86400.0"
    )
    return float(connection.execute(sqlalchemy.text(question)).scalar_one())


def _rows(connection: Connection, question: str, **lists: Collection[str]) -> Any:
    """What the question gives. `lists`: for each name in it, the values of an IN."""
    bound: list[Any] = [
        sqlalchemy.bindparam(name, list(values), expanding=True) for name, values in lists.items()
    ]
    return connection.execute(sqlalchemy.text(question).bindparams(*bound)).all()


def _tags(rows: Any) -> dict[Any, dict[str, str]]:
    """Of rows that end with a tag's name and value, by what stands before them."""
    found: dict[Any, dict[str, str]] = defaultdict(dict)
    for *owner, key, value in rows:
        found[tuple(owner)][key] = value or ""
    return found


def _runs(connection: Connection) -> Iterator[RunRow]:
    question = "select run_uuid, key, value from tags where key in :keys"
    tags = _tags(_rows(connection, question, keys=_RUN_TAGS))
    question = "select run_uuid, name, status, lifecycle_stage, artifact_uri from runs"
    for run_id, name, status, stage, address in _rows(connection, question):
        yield RunRow(run_id, name or "", status, stage == "active", address or "", tags.get((run_id,), {}))


def _open_runs(connection: Connection) -> tuple[list[OpenRun], list[SilentRun]]:
    def of_open(columns: str, table: str, end: str = "") -> Any:
        return _rows(connection, f"select t.run_uuid, {columns} from {table} t {_OPEN} {end}")  # noqa: S608

    tags, params = _tags(of_open("t.key, t.value", "tags")), _tags(of_open("t.key, ''", "params"))
    ours, others = [], []
    for run_id, name, status, started in of_open("t.name, t.status, t.start_time", "runs"):
        its, start = tags.get((run_id,), {}), (started or 0) / 1000
        if has_our_marks(its, params.get((run_id,), {}).keys()):
            ours.append(open_run_of(run_id, name or "", status, start, its))
        elif status == "RUNNING":
            others.append((run_id, name or "", start))
    newest = dict(of_open("max(t.timestamp)", "latest_metrics", "group by t.run_uuid")) if others else {}
    silent = [
        SilentRun(run_id, name, max(start, newest.get(run_id, 0) / 1000)) for run_id, name, start in others
    ]
    return ours, silent


def _models(connection: Connection) -> Iterator[ModelRow]:
    question = "select model_id, tag_key, tag_value from logged_model_tags where tag_key in :keys"
    tags = _tags(_rows(connection, question, keys=_MODEL_TAGS))
    question = (
        "select storage_location, max(last_updated_time) from model_versions"
        " where current_stage = 'Deleted_Internal' group by storage_location"
    )
    unnamed_since = dict(_rows(connection, question))
    question = (
        "select model_id, name, status, lifecycle_stage, model_type, artifact_location,"
        " last_updated_timestamp_ms from logged_models"
    )
    for model_id, name, status, stage, kind, address, updated in _rows(connection, question):
        yield ModelRow(
            model_id=model_id,
            name=name,
            status=_MODEL_STATES.get(status, str(status)),
            is_active=stage == "active",
            is_decoder=is_logged_decoder(kind, name),
            address=address,
            touched=max(updated, unnamed_since.get(address) or 0) / 1000,
            tags=tags.get((model_id,), {}),
        )


def _registered(connection: Connection) -> Iterator[RegisteredRow]:
    question = "select workspace, name, alias, version from registered_model_aliases"
    aliases: dict[Any, dict[str, int]] = defaultdict(dict)
    for workspace, name, alias, version in _rows(connection, question):
        aliases[workspace, name][alias] = version
    question = "select workspace, name, key, value from registered_model_tags where key like 'promotion.%'"
    promotions = _tags(_rows(connection, question))
    question = "select workspace, name, creation_time from registered_models"
    for workspace, name, made in _rows(connection, question):
        which = (workspace, name)
        yield RegisteredRow(
            workspace, name, (made or 0) / 1000, aliases.get(which, {}), promotions.get(which, {})
        )


def _versions(connection: Connection) -> Iterator[VersionRow]:
    question = "select workspace, name, version, key, value from model_version_tags where key in :keys"
    tags = _tags(_rows(connection, question, keys=_VERSION_TAGS))
    question = (
        "select workspace, name, version, status, run_id, source, storage_location"
        " from model_versions where current_stage != 'Deleted_Internal'"
    )
    for workspace, name, version, status, run_id, source, location in _rows(connection, question):
        rest = (source or "").removeprefix("models:/")
        yield VersionRow(
            workspace=workspace,
            name=name,
            version=version,
            status=status,
            run_id=run_id or "",
            address=location or source or "",
            model_id=rest if rest != source and "/" not in rest else "",
            tags=tags.get((workspace, name, version), {}),
        )

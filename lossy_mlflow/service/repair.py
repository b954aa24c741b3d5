"""The safe part of what `lossy check` finds, mended: what nothing refers to goes, what only says too much is set right.

Before anything goes it is asked again whether something refers to it. Each step leaves what the next check finds, and the next
repair finishes, wherever it is cut off.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy
from sqlalchemy.exc import OperationalError

from lossy_mlflow.errors import ConflictError, NotFoundError
from lossy_mlflow.service.alone import alone
from lossy_mlflow.service.check import OLDER_THAN_S, Report
from lossy_mlflow.service.database import engine_of
from lossy_mlflow.service.files import StoredFile
from lossy_mlflow.service.findings import Finding, Kind
from lossy_mlflow.service.holdings import Places
from lossy_mlflow.service.references import FREED_TAG
from lossy_mlflow.service.stores import Stores
from lossy_mlflow.tracking.connection import without_password

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

_IS_NAMED = """
    select 1 from model_versions where current_stage != 'Deleted_Internal'
    and (source like :within or storage_location like :within)
"""
_IS_KNOWN = f"""
    select 1 from runs where run_uuid = :id or artifact_uri like :within
    union all select 1 from logged_models where model_id = :id or artifact_location like :within
    union all select 1 from trace_info where request_id = :id
    union all select 1 from trace_tags where key like 'mlflow.%ocation' and value like :within
    union all {_IS_NAMED}
"""  # noqa: S608


@dataclass(frozen=True, slots=True)
class Mended:
    """A finding, and what has become of it: `done`, or why not. `n_bytes`: what was freed."""

    kind: str
    what: str
    done: bool
    note: str
    n_bytes: int = 0


def repairable(report: Report) -> list[Finding]:
    """What `repair` would mend of it, in its order: names first, then files."""
    order = [
        Kind.NOWHERE,
        Kind.IN_BIN,
        Kind.DEAD_RUN,
        Kind.UNUSED,
        Kind.HALF_MODEL,
        Kind.ORPHANS,
        Kind.UNFINISHED,
    ]
    titles = [kind.title for kind in order]
    found = [one for one in report.findings if one.repairable]
    return sorted(found, key=lambda one: (titles.index(one.kind), one.what))


def is_of_another_server(report: Report) -> bool:
    """Whether most of what lies in the store is unknown to the database: is it the right one?"""
    titles = {Kind.ORPHANS.title}
    n_orphans = sum(one.n_files for one in repairable(report) if one.kind in titles)
    return n_orphans > report.n_known


def repair(
    stores: Stores,
    report: Report,
    *,
    older_than_s: float = OLDER_THAN_S,
    sure: bool = False,
    each: Callable[[Mended], None] = lambda _: None,
) -> list[Mended]:
    """Mend what is repairable of the report, as long as it is still so; each is told of once it is done.

    Raises ConflictError while a backup, a restore or another repair is at work on these stores; and, unless somebody is `sure`,
    where most of the store's files would go: then the database is another server's, most likely.
    """
    if is_of_another_server(report) and not sure:
        raise ConflictError(
            f"The database refers to {report.n_known} files of {stores.artifacts}, and to fewer than it doesn't: "
            "are these the stores of one server? Nothing was changed.",
            "Look: lossy check    and if they are, say so at a terminal: lossy check --repair, without --yes",
        )
    done = []
    with alone(stores, "repair"):
        mender = _Mender(stores, older_than_s)
        for finding in repairable(report):
            done.append(mender.mend(finding))
            each(done[-1])
    return done


class _Mender:
    def __init__(self, stores: Stores, older_than_s: float) -> None:
        self._stores = stores
        self._older_than_s = older_than_s
        self._engine: Engine = engine_of(stores.database)
        with self._engine.connect() as connection:
            question = sqlalchemy.text("select artifact_location from experiments")
            self._places = Places(stores, [row[0] or "" for row in connection.execute(question)])
        self._ways: dict[str, Callable[[Finding], tuple[str, int]]] = {
            Kind.NOWHERE.title: self._alias,
            Kind.IN_BIN.title: self._take_out_of_bin,
            Kind.DEAD_RUN.title: self._run,
            Kind.UNUSED.title: self._model,
            Kind.HALF_MODEL.title: self._model,
            Kind.ORPHANS.title: self._orphans,
            Kind.UNFINISHED.title: self._unfinished,
        }

    def mend(self, finding: Finding) -> Mended:
        """Raises ConflictError where others keep the database to themselves for too long."""
        try:
            why_not, n_bytes = self._ways[finding.kind](finding)
        except OperationalError as error:
            raise ConflictError(
                f"The database {without_password(self._stores.database)} is busy: {str(error.orig).splitlines()[0]}.",
                "Start this again when it is less so: what is mended stays mended.",
            ) from error
        return Mended(finding.kind, finding.what, not why_not, why_not or "done", n_bytes)

    def _alias(self, finding: Finding) -> tuple[str, int]:
        workspace, name, alias, version = finding.key
        with self._engine.begin() as connection:
            gone = _run(
                connection,
                """
            delete from registered_model_aliases
            where workspace = :workspace and name = :name and alias = :alias and version = :version
            and not exists (
                select 1 from model_versions v where v.workspace = :workspace and v.name = :name
                and v.version = :version and v.current_stage != 'Deleted_Internal'
            )
            """,
                workspace=workspace, name=name, alias=alias, version=int(version),
            ).rowcount  # fmt: skip
        return ("" if gone else "somebody has set it since", 0)

    def _take_out_of_bin(self, finding: Finding) -> tuple[str, int]:
        (model_id,) = finding.key
        with self._engine.begin() as connection:
            _take_out(connection, model_id)
        return "", 0

    def _run(self, finding: Finding) -> tuple[str, int]:
        from mlflow import MlflowClient

        from lossy_mlflow.tracking.connection import Connection, ServerClock
        from lossy_mlflow.tracking.reconcile import close_dead_run

        uri = self._stores.database
        connection = Connection(MlflowClient(uri, uri), uri, ServerClock(uri))
        try:
            reason = close_dead_run(connection, finding.key[0])
        except NotFoundError:
            return "it is gone", 0
        return ("" if reason else "somebody works on it again", 0)

    def _model(self, finding: Finding) -> tuple[str, int]:
        """The row goes to the bin first, in one step with the question whether a version names it; then the files."""
        (model_id,) = finding.key
        latest = self._places.store.now() - self._older_than_s
        when = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        with self._engine.begin() as connection:
            freed = _run(
                connection,
                f"""
                update logged_models set lifecycle_stage = 'deleted'
                where model_id = :id and not exists ({_IS_NAMED})
                and (last_updated_timestamp_ms <= :latest or lifecycle_stage = 'deleted')
                """,  # noqa: S608
                id=model_id,
                within=f"%{model_id}%",
                latest=latest * 1000,
            ).rowcount
            if not freed:
                return "somebody works on it, or a version names it now", 0
            _run(
                connection,
                """
                insert into logged_model_tags (model_id, experiment_id, tag_key, tag_value)
                select model_id, experiment_id, cast(:key as varchar(255)), cast(:value as text) from logged_models
                where model_id = :id and not exists (
                    select 1 from logged_model_tags where model_id = :id and tag_key = :key
                )
                """,
                id=model_id, key=FREED_TAG, value=when,
            )  # fmt: skip
        with self._engine.begin() as connection:
            # MLflow looks for the model, and makes the version after that: one may have come between.
            if _run(connection, _IS_NAMED, within=f"%{model_id}%").first():
                _take_out(connection, model_id)
                return "a version names it now", 0
            question = "select artifact_location from logged_models where model_id = :id"
            address = _run(connection, question, id=model_id).scalar()
        # Somebody may have purged it since: its files are found as such of nothing.
        spot = self._places.spot(address) if address else None
        return "", self._delete(spot, self._places.files_at(spot).values()) if spot else 0

    def _orphans(self, finding: Finding) -> tuple[str, int]:
        path, item_id = finding.key
        with self._engine.connect() as connection:
            if _run(connection, _IS_KNOWN, id=item_id, within=f"%{item_id}%").first():
                return "something refers to it now", 0
        files = list(self._places.files_at(path).values())
        latest = self._places.store.now() - self._older_than_s
        if any(file.modified > latest for file in files):
            return "somebody has written there since", 0
        return "", self._delete(path, files)

    def _unfinished(self, finding: Finding) -> tuple[str, int]:
        path, mark = finding.key
        self._places.store.abandon(StoredFile(path, finding.n_bytes, 0.0, mark))
        return "", finding.n_bytes

    def _delete(self, spot: str, files: Iterable[StoredFile]) -> int:
        n_bytes = 0
        for file in files:
            place, _ = self._places.at(spot)
            place.delete(file.path)
            n_bytes += file.size
        return n_bytes


def _take_out(connection: Connection, model_id: str) -> None:
    _run(connection, "update logged_models set lifecycle_stage = 'active' where model_id = :id", id=model_id)
    delete = "delete from logged_model_tags where model_id = :id and tag_key = :key"
    _run(connection, delete, id=model_id, key=FREED_TAG)


def _run(connection: Connection, statement: str, **values: Any) -> Any:
    return connection.execute(sqlalchemy.text(statement), values)

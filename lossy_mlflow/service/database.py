"""The databases of a tracking server, by way of SQLAlchemy: reached, and at which schema."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from lossy_mlflow.errors import ConflictError, NotFoundError
from lossy_mlflow.service.stores import DATABASE_VARIABLE
from lossy_mlflow.tracking.connection import check_database, sqlite_file, without_password

if TYPE_CHECKING:
    from alembic.script import ScriptDirectory
    from sqlalchemy import Connection, Engine

TRACKING_VERSIONS = "alembic_version"
USERS_VERSIONS = "alembic_version_auth"
# Where MLflow keeps the steps of each schema.
_STEPS = {TRACKING_VERSIONS: "store/db_migrations", USERS_VERSIONS: "server/auth/db/migrations"}


class Schema(Enum):
    """How a database's tables stand to the MLflow that is installed here. EMPTY: it has none yet."""

    EMPTY = "empty"
    CURRENT = "current"
    OLDER = "older"
    NEWER = "newer"


def engine_of(uri: str) -> Engine:
    """An engine whose connections are closed after use. It never makes a database.

    Raises NotFoundError for an SQLite file that isn't there, UnreachableError for a server that doesn't answer or refuses.
    """
    import sqlalchemy

    if file := sqlite_file(uri):
        if not file.exists():
            raise NotFoundError(
                f"There is no database {file}.",
                "Name it: --backend-store-uri sqlite:////ABSOLUTE/PATH/mlflow.db",
            )
    else:
        check_database(uri, DATABASE_VARIABLE)
    return sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool)


@contextmanager
def snapshot(uri: str) -> Iterator[Connection]:
    """A connection that sees the database as it is at its first question, whatever is written meanwhile, and can't change it.

    Raises as `engine_of` does, and ConflictError for what has not the tables that this MLflow has.
    """
    with _tables_told(uri), engine_of(uri).connect() as connection:
        if connection.dialect.name == "postgresql":
            yield connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        else:
            connection.exec_driver_sql("pragma query_only = on")
            connection.exec_driver_sql("begin")
            yield connection


@contextmanager
def _tables_told(uri: str) -> Iterator[None]:
    """What a database without MLflow's tables makes the block raise, as a ConflictError."""
    from sqlalchemy.exc import OperationalError, ProgrammingError

    try:
        yield
    except (OperationalError, ProgrammingError) as error:
        if not re.search(r"no such (table|column)|UndefinedTable|UndefinedColumn", str(error)):
            raise
        shown = without_password(uri)
        raise ConflictError(
            f"The database {shown} has not the tables of this MLflow: {str(error.orig).splitlines()[0]}.",
            "Name the server's own: --backend-store-uri ...    or bring it to this version: lossy upgrade",
        ) from error


def revision_of(uri: str, table: str = TRACKING_VERSIONS) -> str | None:
    """The revision of the schema that the table of alembic's names; None where the database has no such table yet."""
    import sqlalchemy

    engine = engine_of(uri)
    if not sqlalchemy.inspect(engine).has_table(table):
        return None
    with engine.connect() as connection:
        return connection.execute(
            sqlalchemy.select(sqlalchemy.text("version_num")).select_from(sqlalchemy.table(table))
        ).scalar()


def schema_of(uri: str, table: str = TRACKING_VERSIONS) -> Schema:
    """How the schema whose revision is in `table` stands to this MLflow's. NEWER: this MLflow doesn't know the revision."""
    return standing(revision_of(uri, table), table)


def standing(revision: str | None, table: str = TRACKING_VERSIONS) -> Schema:
    """The same of a revision that is known; None: there are no tables yet."""
    if revision is None:
        return Schema.EMPTY
    if revision == head_of(table):
        return Schema.CURRENT
    return Schema.OLDER if knows_revision(table, revision) else Schema.NEWER


def head_of(table: str = TRACKING_VERSIONS) -> str:
    """The revision that the MLflow installed here gives the schema that the table of alembic's names."""
    head = _scripts(table).get_current_head()
    assert head
    return head


def knows_revision(table: str, revision: str) -> bool:
    """Whether the MLflow installed here has made, or can upgrade, a schema of that revision."""
    from alembic.util import CommandError

    try:
        return _scripts(table).get_revision(revision) is not None
    except CommandError:
        return False


def _scripts(table: str) -> ScriptDirectory:
    from alembic.script import ScriptDirectory

    # Found without being imported: MLflow is slow to.
    mlflow = importlib.util.find_spec("mlflow")
    assert mlflow
    assert mlflow.origin
    return ScriptDirectory(Path(mlflow.origin).parent / _STEPS[table])

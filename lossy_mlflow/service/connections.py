"""How many connections a server opens to PostgreSQL, and whether that many are to be had."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lossy_mlflow.errors import LossyError
from lossy_mlflow.service.database import engine_of
from lossy_mlflow.service.settings import MAX_OVERFLOW, POOL_SIZE, Pool, Serving
from lossy_mlflow.service.stores import Stores
from lossy_mlflow.tracking.connection import sqlite_file, without_password

# SQLAlchemy's own.
_SIZE, _OVERFLOW = 5, 10
# For a backup, a check and a person who looks, while the server is busy.
_SPARE = 5


@dataclass(frozen=True, slots=True)
class Demand:
    """On the database `uri`, of which `free` connections are to be had: `engines` in each of `workers` processes."""

    uri: str
    free: int
    engines: int
    workers: int

    def most(self, pool: Pool) -> int:
        """The connections of all workers when every pool is full, and of MLflow's first process, which keeps one an engine."""
        return self.engines * (self.workers * pool.most + 1)

    def fits(self, pool: Pool) -> bool:
        return self.most(pool) <= self.free


def demands(stores: Stores, serving: Serving) -> list[Demand]:
    """What a server asks of each PostgreSQL database: in every worker an engine for the runs, the registry and the users each."""
    engines = {stores.database: 2}
    if serving.auth:
        engines[stores.users] = engines.get(stores.users, 0) + 1
    return [
        Demand(uri, _free_connections(uri), number, serving.workers)
        for uri, number in engines.items()
        if not sqlite_file(uri)
    ]


def pool_for(asked: list[Demand], given: Mapping[str, str]) -> Pool | None:
    """The pool of each engine: what `given` says, else the largest up to SQLAlchemy's own that leaves some connections to others.

    None where no database is PostgreSQL. Raises LossyError where they can't be had, with the setting that mends it.
    """
    if not asked:
        return None
    if given.get(POOL_SIZE) or given.get(MAX_OVERFLOW):
        # MLflow takes a 0 for nothing said.
        pool = Pool(_number(given, POOL_SIZE) or _SIZE, _number(given, MAX_OVERFLOW) or _OVERFLOW)
    else:
        most = min(
            _SIZE + _OVERFLOW,
            *((one.free - _SPARE - one.engines) // one.engines // one.workers for one in asked),
        )
        # An overflow of 0 can't be said to MLflow.
        size = max(1, most // 3)
        pool = Pool(size, max(1, most - size))
    for demand in asked:
        if not demand.fits(pool):
            raise _too_many(demand, pool)
    return pool


def _number(given: Mapping[str, str], name: str) -> int:
    text = given.get(name) or "0"
    if not text.isdecimal():
        raise LossyError(
            f"{name} is {text!r}, which is no number.", f"unset {name}: lossy finds one that fits"
        )
    return int(text)


def _too_many(demand: Demand, pool: Pool) -> LossyError:
    workers = (demand.free - demand.engines) // (demand.engines * pool.most)
    fewer = f"Start fewer: --workers {workers}    or have" if workers else "Have"
    return LossyError(
        f"{demand.workers} workers with {demand.engines} pools of {pool.size} and {pool.overflow} more open up to"
        f" {demand.most(pool)} connections, and {without_password(demand.uri)} has {demand.free} left.",
        f"{fewer} smaller pools: unset {POOL_SIZE} {MAX_OVERFLOW}    or more connections: max_connections in"
        " postgresql.conf",
    )


def _free_connections(uri: str) -> int:
    """How many more connections the user of `uri` may open there now."""
    import sqlalchemy

    # A setting that this version of PostgreSQL hasn't, and a limit of -1, are none.
    query = sqlalchemy.text(
        """
        with busy as (select datname, usename from pg_stat_activity
                      where backend_type = 'client backend' and pid <> pg_backend_pid())
        select current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
               - coalesce(current_setting('reserved_connections', true), '0')::int - (select count(*) from busy),
               case when datconnlimit >= 0 and not rolsuper
                    then datconnlimit - (select count(*) from busy b where b.datname = d.datname) end,
               case when rolconnlimit >= 0 and not rolsuper
                    then rolconnlimit - (select count(*) from busy b where b.usename = rolname) end
        from pg_database d, pg_roles where d.datname = current_database() and rolname = current_user
        """
    )
    with engine_of(uri).connect() as connection:
        limits = connection.execute(query).one()
    return max(0, min(int(limit) for limit in limits if limit is not None))

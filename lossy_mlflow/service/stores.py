"""What a tracking server keeps, and where: a database of runs, one of users, and a place of artifacts."""

from __future__ import annotations

import configparser
import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

from lossy_mlflow.errors import UsageError
from lossy_mlflow.service.locations import folder_of
from lossy_mlflow.tracking.connection import sqlite_file, without_password

DATABASE_VARIABLE = "MLFLOW_BACKEND_STORE_URI"
ARTIFACTS_VARIABLE = "MLFLOW_ARTIFACTS_DESTINATION"
AUTH_CONFIG_VARIABLE = "MLFLOW_AUTH_CONFIG_PATH"


@dataclass(frozen=True, slots=True)
class Stores:
    """The stores of one tracking server.

    `database`: SQLAlchemy's URI of the runs and the registry, SQLite's with an absolute path. `users`: that of the users, the
    same unless MLflow's own configuration of its users names another. `artifacts`: an absolute folder, or s3://BUCKET/PATH.
    """

    database: str
    users: str
    artifacts: str

    @property
    def databases(self) -> dict[str, str]:
        """The URIs of the databases by what they hold; one that holds both is there once."""
        both = {"tracking": self.database, "users": self.users}
        return {"tracking": self.database} if self.users == self.database else both

    def __str__(self) -> str:
        return f"{without_password(self.database)} and {self.artifacts}"


def stores_of(backend_store_uri: str | None = None, artifacts_destination: str | None = None) -> Stores:
    """The stores that these options name, else MLflow's own variables, else what `mlflow server` takes in the working folder.

    Raises UsageError for a database that is neither SQLite nor PostgreSQL, for artifacts that are neither in a folder nor in S3,
    and for a password in an option: every user of the machine can read a process's arguments.
    """
    for option, value in (
        ("--backend-store-uri", backend_store_uri),
        ("--artifacts-destination", artifacts_destination),
    ):
        if value and without_password(value) != value and ":" in urlsplit(value).netloc.rpartition("@")[0]:
            raise UsageError(
                f"A password in {option} can be read by every user of this machine, in the list of processes.",
                f"Put it into a variable: export {DATABASE_VARIABLE}=...    or leave it out, and set PGPASSWORD",
            )
    database = _database(backend_store_uri or os.environ.get(DATABASE_VARIABLE) or "sqlite:///mlflow.db")
    users = _users_database()
    artifacts = artifacts_destination or os.environ.get(ARTIFACTS_VARIABLE) or "./mlartifacts"
    return Stores(database, _database(users) if users else database, _artifacts(artifacts))


def _database(uri: str) -> str:
    if file := sqlite_file(uri):
        return f"sqlite:///{quote(str(file.absolute()))}"
    # The drivers that are libpq, which takes a password from PGPASSWORD as well.
    if re.match(r"postgresql(\+psycopg2?)?://", uri):
        if re.search(r"[?&](ssl)?password=", uri):
            raise UsageError(
                "A password behind the ? of a database's address would be shown wherever the address is.",
                "Put it before the @, or into a variable: export PGPASSWORD=...",
            )
        return uri
    raise UsageError(
        f"{without_password(uri)!r} is no database that lossy can keep.",
        "Name one like postgresql://USER@HOST/DATABASE, or sqlite:////ABSOLUTE/PATH/mlflow.db",
    )


def _users_database() -> str | None:
    path = os.environ.get(AUTH_CONFIG_VARIABLE)
    if not path:
        return None
    config = configparser.ConfigParser()
    if not config.read(path) or not config.has_option("mlflow", "database_uri"):
        raise UsageError(
            f"{AUTH_CONFIG_VARIABLE} names {path}, which has no database_uri in a section [mlflow].",
            f"Write it, or have the users in the database of the runs: unset {AUTH_CONFIG_VARIABLE}",
        )
    return config["mlflow"]["database_uri"]


def _artifacts(place: str) -> str:
    if place.startswith("s3://"):
        if not urlsplit(place).netloc:
            raise UsageError(f"{place!r} names no bucket.", "Name one like s3://BUCKET/PATH")
        return place.rstrip("/")
    folder = folder_of(place) or (None if re.match(r"[\w+.-]+:", place) else Path(place))
    if folder is None:
        raise UsageError(
            f"{place!r} is no place of artifacts that lossy can keep.",
            "Name a folder, or one like s3://BUCKET/PATH",
        )
    return str(folder.absolute())

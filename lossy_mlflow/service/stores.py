"""What a tracking server keeps, and where: a database of runs, one of users, and a place of artifacts."""

from __future__ import annotations

import configparser
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from lossy_mlflow.errors import UsageError
from lossy_mlflow.service.locations import folder_of
from lossy_mlflow.tracking.connection import sqlite_file, without_password

DATABASE_VARIABLE = "MLFLOW_BACKEND_STORE_URI"
ARTIFACTS_VARIABLE = "MLFLOW_ARTIFACTS_DESTINATION"
AUTH_CONFIG_VARIABLE = "MLFLOW_AUTH_CONFIG_PATH"
# As SQLAlchemy reads an address: a password goes on to the first @, whatever else is in it.
_WITH_PASSWORD = re.compile(r"([\w+.-]+://[^:/@]*):([^@]*)@")


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
        if value and _WITH_PASSWORD.match(value):
            raise UsageError(
                f"A password in {option} can be read by every user of this machine, in the list of processes.",
                f"Put it into a variable: export {DATABASE_VARIABLE}=...    or leave it out, and set PGPASSWORD",
            )
    database = _database(backend_store_uri or os.environ.get(DATABASE_VARIABLE) or "sqlite:///mlflow.db")
    config = os.environ.get(AUTH_CONFIG_VARIABLE)
    users = users_config(config)["database_uri"] if config else ""
    artifacts = artifacts_destination or os.environ.get(ARTIFACTS_VARIABLE) or "./mlartifacts"
    return Stores(database, _database(users) if users else database, _artifacts(artifacts))


def apart_from_password(uri: str) -> tuple[str, str]:
    """A database's address without its password, which libpq takes from PGPASSWORD as well, and the password."""
    found = _WITH_PASSWORD.match(uri)
    if not found:
        return uri, ""
    return f"{found[1]}@{uri[found.end() :]}", unquote(found[2])


def users_config(path: str) -> Mapping[str, str]:
    """MLflow's configuration of users, the section [mlflow] of the file `path`. Raises UsageError where it can't be read."""
    config = configparser.ConfigParser()
    try:
        read = config.read(path)
        section = dict(config["mlflow"]) if config.has_section("mlflow") else {}
    except (configparser.Error, UnicodeDecodeError) as error:
        # Without the line, in which there may be a password.
        raise UsageError(
            f"{AUTH_CONFIG_VARIABLE} names {path}, which can't be read: {type(error).__name__}.",
            "A % is written %% there, and each line is NAME = VALUE.",
        ) from None
    if not read or "database_uri" not in section:
        raise UsageError(
            f"{AUTH_CONFIG_VARIABLE} names {path}, which has no database_uri in a section [mlflow].",
            f"Write it, or have the users in the database of the runs: unset {AUTH_CONFIG_VARIABLE}",
        )
    return section


def _database(uri: str) -> str:
    if file := sqlite_file(uri):
        return f"sqlite:///{quote(str(file.absolute()))}"
    # The drivers that are libpq, which takes a password from PGPASSWORD as well.
    if re.match(r"postgresql(\+psycopg2?)?://", uri):
        _check_postgresql(uri)
        return uri
    shown = f"{uri.partition('://')[0]}://..." if "@" in uri else uri
    raise UsageError(
        f"{shown!r} is no database that lossy can keep.",
        "Name one like postgresql://USER@HOST/DATABASE, or sqlite:////ABSOLUTE/PATH/mlflow.db",
    )


def _check_postgresql(uri: str) -> None:
    """Nothing of it is shown: what can't be read may be a part of the password."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(uri)
    except (ArgumentError, ValueError):
        raise UsageError(
            "The address of the database can't be read.",
            "Write it like postgresql://USER:PASSWORD@HOST:PORT/DATABASE",
        ) from None
    # In a message a blank would end the part that isn't shown.
    if "@" in (url.host or "") or re.search(r"\s", uri):
        raise UsageError(
            "The address of the database has an @ or a blank in its password or its names.",
            "Write %40 for the @, %20 for the blank, or have the password in a variable of its own: export PGPASSWORD=...",
        )
    if {"password", "sslpassword"} & url.query.keys():
        raise UsageError(
            "A password behind the ? of a database's address would be shown wherever the address is.",
            "Put it before the @, or into a variable: export PGPASSWORD=...",
        )


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

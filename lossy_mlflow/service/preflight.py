"""What would otherwise fail in the middle of the night, looked at before a server starts: all at once, with what mends it."""

from __future__ import annotations

import io
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lossy_mlflow.errors import ConflictError, LossyError, UsageError
from lossy_mlflow.service.address import check_address
from lossy_mlflow.service.bucket import Bucket
from lossy_mlflow.service.connections import demands, pool_for
from lossy_mlflow.service.database import TRACKING_VERSIONS, USERS_VERSIONS, Schema, engine_of, schema_of
from lossy_mlflow.service.files import file_place
from lossy_mlflow.service.folder import nearest_there
from lossy_mlflow.service.settings import (
    ADMIN_NAME,
    ADMIN_PASSWORD,
    AUTH_CACHE_S,
    AUTH_FUNCTION,
    DEFAULT_PERMISSION,
    SECRET_KEY,
    Serving,
    password_fault,
)
from lossy_mlflow.service.stores import AUTH_CONFIG_VARIABLE, DATABASE_VARIABLE, Stores, users_config
from lossy_mlflow.tracking.connection import check_database, check_sqlite_file, sqlite_file, without_password

_FREE_BYTES = 1_000_000_000
_KEY_LENGTH = 32
# S3 refuses a request whose time is 15 minutes off; heartbeats are judged in minutes.
_CLOCK_S = 60
_NEW_KEY = "export {}=$(python3 -c 'import secrets; print(secrets.token_urlsafe(32))')"
# They would make another server than the one that lossy starts, backs up and checks.
_CONTRADICTIONS = (
    *("MLFLOW_REGISTRY_STORE_URI", "MLFLOW_READ_REPLICA_BACKEND_STORE_URI", "MLFLOW_DEFAULT_ARTIFACT_ROOT"),
    *("MLFLOW_SERVE_ARTIFACTS", "MLFLOW_ARTIFACTS_ONLY", "MLFLOW_ENABLE_WORKSPACES", "MLFLOW_STATIC_PREFIX"),
    *("MLFLOW_GUNICORN_OPTS", "MLFLOW_UVICORN_OPTS", "MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE"),
)


@dataclass(frozen=True, slots=True)
class Checked:
    """What one check has found. Where it isn't `ok`, `hint` is what mends it, `exit_code` the error's."""

    of: str
    ok: bool
    what: str
    hint: str = ""
    exit_code: int = 0


# Gives what is well; None where there is nothing to look at; raises LossyError for what isn't well.
Check = Callable[[], str | None]


def preflight(stores: Stores, serving: Serving, given: Mapping[str, str]) -> list[Checked]:
    """Look at all that a server on `stores` in the environment `given` will need. Nothing is changed, but for a file that is
    written into the place of artifacts and taken away again.
    """
    databases: dict[str, Check] = {
        "database": lambda: _database(stores.database),
        "schema": lambda: _schema(stores.database, TRACKING_VERSIONS),
    }
    secret_key: dict[str, Check] = {}
    members: dict[str, Check] = {}
    if serving.auth:
        if stores.users != stores.database:
            databases["users' database"] = lambda: _database(stores.users)
        databases["users' schema"] = lambda: _schema(stores.users, USERS_VERSIONS)
        databases["admin"] = lambda: _admin(stores.users, given)
        members["users' settings"] = lambda: _users_settings(given)
        secret_key["secret key"] = lambda: _secret_key(given)
    databases["connections"] = lambda: _connections(stores, serving, given)
    disks: list[dict[str, Check]] = [
        {f"disk of {what}": partial(_disk, folder)} for what, folder in _folders(stores).items()
    ]
    # Within a group, what comes after a check that fails would fail for the same reason.
    groups: list[dict[str, Check]] = [
        {"settings": lambda: _settings(given)},
        {"address": lambda: check_address(serving)},
        {"access": lambda: _access(serving)},
        secret_key,
        members,
        databases,
        {"bucket": lambda: _bucket(stores.artifacts), "artifacts": lambda: _artifacts(stores.artifacts)},
        *disks,
    ]
    return [checked for group in groups for checked in _carried_out(group)]


def _carried_out(group: Mapping[str, Check]) -> Iterator[Checked]:
    for of, check in group.items():
        try:
            if what := check():
                yield Checked(of, True, what)
        except LossyError as error:
            yield Checked(of, False, error.what, error.hint, error.exit_code)
            return


def _settings(given: Mapping[str, str]) -> str:
    if found := [name for name in _CONTRADICTIONS if given.get(name)]:
        raise UsageError(
            f"{', '.join(found)} would make another server than lossy keeps.", f"unset {' '.join(found)}"
        )
    return "nothing contradicts lossy's"


def _access(serving: Serving) -> str:
    if serving.for_this_machine:
        return "by members of this machine" if serving.auth else "by every user of this machine"
    if not serving.auth and not serving.socket:
        raise UsageError(
            f"At {serving.host}, whoever reaches this machine could read, change and delete everything.",
            "Let in members alone: --auth    or serve this machine: --host 127.0.0.1",
        )
    if not serving.allowed_hosts:
        raise UsageError(
            "MLflow refuses clients that call the server by a name it doesn't know.",
            "Say by which name they do, as in https://NAME: --allowed-hosts NAME",
        )
    return (
        f"by {'members' if serving.auth else 'whom the proxy lets in'}, as {', '.join(serving.allowed_hosts)}"
    )


def _database(uri: str) -> str:
    if not (file := sqlite_file(uri)):
        check_database(uri, DATABASE_VARIABLE)
        return f"{without_password(uri)} is reached"
    if file.exists():
        check_sqlite_file(file)
        return f"{file} can be written"
    _try_to_write(file.parent)
    return f"{file} will be made"


def _schema(uri: str, table: str) -> str:
    if (file := sqlite_file(uri)) and not file.exists():
        return "will be made"
    schema = schema_of(uri, table)
    if schema is Schema.OLDER:
        raise ConflictError(
            f"The database {without_password(uri)} was written by an older MLflow than the one installed here.",
            "lossy upgrade",
        )
    if schema is Schema.NEWER:
        raise ConflictError(
            f"The database {without_password(uri)} was written by a newer MLflow than the one installed here,"
            " or by another program.",
            "pip install --upgrade mlflow    or name another database: --backend-store-uri",
        )
    return "will be made" if schema is Schema.EMPTY else "is that of this MLflow"


def _connections(stores: Stores, serving: Serving, given: Mapping[str, str]) -> str | None:
    asked = demands(stores, serving)
    pool = pool_for(asked, given)
    if not pool:
        return None
    return ", ".join(f"up to {one.most(pool)} of {one.free} that are left" for one in asked)


def _secret_key(given: Mapping[str, str]) -> str:
    key = given.get(SECRET_KEY, "")
    if not key:
        raise UsageError(f"There is no {SECRET_KEY}, by which forms are signed.", _NEW_KEY.format(SECRET_KEY))
    if len(key) < _KEY_LENGTH or len(set(key)) < _KEY_LENGTH // 4:
        raise UsageError(
            f"{SECRET_KEY} can be guessed: {_KEY_LENGTH} random characters are needed.",
            _NEW_KEY.format(SECRET_KEY),
        )
    return f"{SECRET_KEY} is set"


def _users_settings(given: Mapping[str, str]) -> str | None:
    """What would undo what --auth promises in a configuration of the operator's own; all of it at once."""
    if not (path := given.get(AUTH_CONFIG_VARIABLE)):
        return None
    config = users_config(path)
    ttl = config.get("auth_cache_ttl_seconds", "0")
    wrong = {
        f"default_permission = {DEFAULT_PERMISSION}": (
            config.get("default_permission") != DEFAULT_PERMISSION,
            "every member sees what others have made",
        ),
        f"auth_cache_ttl_seconds = {AUTH_CACHE_S}": (
            not (ttl.isdecimal() and 1 <= int(ttl) <= AUTH_CACHE_S),
            f"with {ttl!r} seconds old passwords are good for too long, or each request takes half a second",
        ),
        f"authorization_function = {AUTH_FUNCTION}": (
            config.get("authorization_function", AUTH_FUNCTION) != AUTH_FUNCTION,
            "the fences know names and passwords alone",
        ),
        "no read_database_uri": ("read_database_uri" in config, "lossy keeps one database of users"),
    }
    if found := {setting: why for setting, (is_wrong, why) in wrong.items() if is_wrong}:
        raise UsageError(
            f"{path}, which {AUTH_CONFIG_VARIABLE} names, isn't as lossy needs it: {'; '.join(found.values())}.",
            f"Have in it: {', '.join(found)}    or none of your own: unset {AUTH_CONFIG_VARIABLE}",
        )
    return f"those of {path}"


def _admin(users: str, given: Mapping[str, str]) -> str:
    configured = users_config(path) if (path := given.get(AUTH_CONFIG_VARIABLE)) else {}
    name = given.get(ADMIN_NAME) or configured.get("admin_username", "admin")
    if _user_exists(users, name):
        return f"{name} is there"
    password = given.get(ADMIN_PASSWORD) or configured.get("admin_password", "")
    fault = password_fault(password) if password else "isn't set"
    if fault:
        raise UsageError(
            f"There is no user {name} yet, and {ADMIN_PASSWORD} {fault}.",
            f"Set it, for the first start: read -rs {ADMIN_PASSWORD}; export {ADMIN_PASSWORD}",
        )
    return f"{name} will be made"


def _user_exists(uri: str, name: str) -> bool:
    import sqlalchemy

    if (file := sqlite_file(uri)) and not file.exists():
        return False
    engine = engine_of(uri)
    if not sqlalchemy.inspect(engine).has_table("users"):
        return False
    users = sqlalchemy.table("users", sqlalchemy.column("username"))
    with engine.connect() as connection:
        return bool(connection.execute(sqlalchemy.select(users).where(users.c.username == name)).first())


def _bucket(uri: str) -> str | None:
    place = file_place(uri)
    if not isinstance(place, Bucket):
        return None
    # Before anything is written: some stores make a bucket that isn't there.
    ahead = place.now() - time.time()
    if abs(ahead) > _CLOCK_S:
        raise LossyError(
            f"The clock of {uri} is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} this machine's.",
            "Set both by the network: timedatectl set-ntp true",
        )
    return f"{place.bucket} is there, its clock within {_CLOCK_S} s of this machine's"


def _artifacts(uri: str) -> str:
    place = file_place(uri)
    if not isinstance(place, Bucket) and not Path(uri).exists():
        _try_to_write(Path(uri))
        return f"{uri} will be made"
    name, content = f".lossy-probe-{uuid.uuid4().hex}", b"lossy"
    place.write(name, io.BytesIO(content))
    try:
        with place.open(name) as stream:
            if stream.read() != content:
                raise LossyError(f"{uri} gives other bytes than were stored.", "Look at its log.")
    except FileNotFoundError:
        raise LossyError(f"{uri} hasn't what was stored there.", "Look at its log.") from None
    finally:
        place.delete(name)
    return f"{uri} can be written, read and cleared"


def _folders(stores: Stores) -> dict[str, Path]:
    """The folders of this machine that grow."""
    folders = {holds: file.parent for holds, uri in stores.databases.items() if (file := sqlite_file(uri))}
    if not stores.artifacts.startswith("s3://"):
        folders["artifacts"] = Path(stores.artifacts)
    # Each file that is sent to S3 or fetched from it lies here meanwhile.
    return folders | {"temporary files": Path(tempfile.gettempdir())}


def _disk(folder: Path) -> str:
    free = shutil.disk_usage(nearest_there(folder)).free
    if free < _FREE_BYTES:
        raise LossyError(
            f"{folder} has {free / 1e6:.0f} MB left, less than {_FREE_BYTES / 1e6:.0f} MB.",
            "Free some space, or name another: --artifacts-destination, --backend-store-uri, TMPDIR",
        )
    return f"{folder} has {free / 1e9:.1f} GB left"


def _try_to_write(folder: Path) -> None:
    try:
        with tempfile.TemporaryFile(dir=nearest_there(folder)):
            pass
    except OSError as error:
        raise LossyError(
            f"{folder} can't be written: {error.strerror}.", "Work in a folder that can be."
        ) from None

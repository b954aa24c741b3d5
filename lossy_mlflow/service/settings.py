"""What `mlflow server` is told for a group: environment, arguments, the configuration of users. No secret is an argument."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lossy_mlflow.errors import UsageError
from lossy_mlflow.service.stores import (
    ARTIFACTS_VARIABLE,
    AUTH_CONFIG_VARIABLE,
    DATABASE_VARIABLE,
    Stores,
    apart_from_password,
)

# Applications of MLflow's entry-point group mlflow.app. One lets in only users with a password, behind fences; one is open.
_AUTH_APP, _OPEN_APP = "lossy-auth", "lossy-open"
# How long a worker accepts a password that another worker has seen changed: without it each call takes half a second.
AUTH_CACHE_S = 60
AUTH_FUNCTION = "mlflow.server.auth:authenticate_request_basic_auth"
DEFAULT_PERMISSION = "NO_PERMISSIONS"
# MLflow takes no shorter one.
_PASSWORD_LENGTH = 12
SECRET_KEY = "MLFLOW_FLASK_SERVER_SECRET_KEY"  # noqa: S105
ADMIN_PASSWORD = "MLFLOW_AUTH_ADMIN_PASSWORD"  # noqa: S105
ADMIN_NAME = "MLFLOW_AUTH_ADMIN_USERNAME"
POOL_SIZE = "MLFLOW_SQLALCHEMYSTORE_POOL_SIZE"
MAX_OVERFLOW = "MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW"
_ORIGINS = "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"
_SECRETS = (
    DATABASE_VARIABLE,
    "PGPASSWORD",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    SECRET_KEY,
    ADMIN_PASSWORD,
)
# What a person has set as a client of some server, perhaps of this one.
_OF_CLIENTS = (
    *("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"),
    *("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"),
    # Of the gateway: any member could have the server ask that host.
    "MLFLOW_DEPLOYMENTS_TARGET",
    *("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"),
)
_FIXED = {
    # Eight processes and 2 GB for what nobody here uses.
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # It alone refuses HEAD, for which MLflow's rights have no rule.
    "MLFLOW_BASIC_AUTH_FAIL_CLOSED": "true",
    # Else a user registers another's s3://.../artifacts as a version of her own model, and downloads it.
    "MLFLOW_CREATE_MODEL_VERSION_SOURCE_VALIDATION_REGEX": "^(mlflow-artifacts|runs|models):",
}
_LOCAL_NAMES = ("localhost", "127.0.0.1")
# A request that is under way when the server is told to end has this long.
GRACE_S = 20


@dataclass(frozen=True, slots=True)
class Serving:
    """How a server is reached: at `host` and `port`, or at the Unix socket `socket`; by whom: with `auth`, by members alone.

    `allowed_hosts`: the names by which clients call it, as in https://NAME; none: localhost, and addresses of private networks.
    """

    host: str = "127.0.0.1"
    port: int = 5000
    socket: Path | None = None
    workers: int = 1
    auth: bool = False
    allowed_hosts: tuple[str, ...] = ()

    @property
    def for_this_machine(self) -> bool:
        """Whether only programs of this machine reach it, and no proxy is meant to be in front."""
        return not self.socket and self.host in ("127.0.0.1", "localhost", "::1")

    @property
    def address(self) -> str:
        """What clients of this machine set MLFLOW_TRACKING_URI to; the socket's path, where it is one."""
        if self.socket:
            return str(self.socket)
        host = self.own_host
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @property
    def own_host(self) -> str:
        """The address by which this machine reaches it: what listens at all addresses listens at its own."""
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104


@dataclass(frozen=True, slots=True)
class Pool:
    """Connections that an engine of MLflow's keeps open, and how many more it opens when those are in use."""

    size: int
    overflow: int

    @property
    def most(self) -> int:
        return self.size + self.overflow


@dataclass(frozen=True, slots=True)
class Settings:
    """`environment` is all of the server's; `arguments` follow `mlflow server`. `users_config`: the text of the file that
    MLFLOW_AUTH_CONFIG_PATH has to name, without a secret in it; '' where nothing has to be written.
    """

    environment: dict[str, str]
    arguments: list[str]
    users_config: str


def server_settings(
    stores: Stores, serving: Serving, given: Mapping[str, str], pool: Pool | None = None
) -> Settings:
    """The settings of a server on `stores` whose own environment is `given`.

    `pool`: that of each engine, where the environment says nothing of it.
    """
    environment = {name: value for name, value in given.items() if name not in _OF_CLIENTS} | _FIXED
    for name in (POOL_SIZE, MAX_OVERFLOW):
        # MLflow can't read an empty one.
        if not environment.get(name, "?"):
            del environment[name]
    # Apart from its password, the address can stand in a log, a configuration file, an error.
    address, password = apart_from_password(stores.database)
    environment |= {DATABASE_VARIABLE: address, ARTIFACTS_VARIABLE: stores.artifacts}
    if password:
        environment["PGPASSWORD"] = password
    if pool and not (given.get(POOL_SIZE) or given.get(MAX_OVERFLOW)):
        environment |= {POOL_SIZE: str(pool.size), MAX_OVERFLOW: str(pool.overflow)}
    environment.pop("MLFLOW_SERVER_ALLOWED_HOSTS", None)
    if serving.allowed_hosts:
        environment["MLFLOW_SERVER_ALLOWED_HOSTS"] = ",".join(_host_headers(serving.allowed_hosts))
        # MLflow takes the UI's own requests for those of a foreign page, unless it is told the page's address.
        environment.setdefault(_ORIGINS, ",".join(_origins(serving.allowed_hosts)))
    users_config = ""
    if serving.auth and not given.get(AUTH_CONFIG_VARIABLE):
        users_config = _users_config(apart_from_password(stores.users)[0])
    return Settings(environment, _arguments(serving), users_config)


def _arguments(serving: Serving) -> list[str]:
    options = ["--timeout-graceful-shutdown", str(GRACE_S)]
    if serving.socket:
        # Who reaches the socket is the proxy: what it says of its clients is true.
        options += ["--uds", str(serving.socket), "--forwarded-allow-ips", "*"]
    elif serving.workers > 1:
        options += ["--loop", "lossy_mlflow.service.undelayed:UndelayedLoop"]
    return [
        *("--app-name", _AUTH_APP if serving.auth else _OPEN_APP),
        *("--host", serving.host, "--port", str(serving.port)),
        *("--workers", str(serving.workers)),
        *("--uvicorn-opts", shlex.join(options)),
    ]


def _users_config(database: str) -> str:
    # A lone % is the beginning of a reference in such a file.
    return (
        "[mlflow]\n"
        f"database_uri = {database.replace('%', '%%')}\n"
        f"default_permission = {DEFAULT_PERMISSION}\n"
        "admin_username = admin\n"
        f"authorization_function = {AUTH_FUNCTION}\n"
        f"auth_cache_ttl_seconds = {AUTH_CACHE_S}\n"
    )


def _host_headers(names: tuple[str, ...]) -> list[str]:
    """What MLflow compares a request's Host with."""
    return list(dict.fromkeys(form for name in (*names, *_LOCAL_NAMES) for form in _with_any_port(name)))


def _origins(names: tuple[str, ...]) -> list[str]:
    return [origin for name in names if name != "*" for origin in _origins_of(name)]


def _origins_of(name: str) -> list[str]:
    """MLflow takes an origin with a star for a shell's pattern where pages write, and for a regular expression of an origin's
    beginning where they read: as that, https://NAME:* lets https://NAME.evil.example read. These are right as both.
    """
    if "[" in name:
        return ["https://" + re.sub(r"[][]", r"[\g<0>]", name) + "*"]
    return [f"https://{name}", *([] if ":" in name else [f"https://{name.replace('.', '[.]')}:[0-9]*"])]


def _with_any_port(name: str) -> list[str]:
    """MLflow takes a name alone for the name without a port."""
    if name == "*" or ":" in name.rpartition("]")[2]:
        return [name]
    # In a pattern, [ begins a set of characters.
    return [name, f"{name.replace('[', '[[]')}:*"]


def password_fault(password: str) -> str:
    """Why it can be no member's password, as the end of a sentence; '' where it can be."""
    if len(password) < _PASSWORD_LENGTH:
        return f"is too short: {_PASSWORD_LENGTH} characters are needed"
    # Clients send others as Latin-1 or as UTF-8, and MLflow reads them as ASCII where it serves artifacts.
    if not password.isascii():
        return "has characters that aren't ASCII: with such a one the server gives no files"
    return ""


def secrets_in_files(given: Mapping[str, str]) -> dict[str, str]:
    """The secrets that `given` names files of, as containers get them: NAME_FILE stands for NAME. Each without its last newline.

    Raises UsageError for a file that can't be read, and where NAME is set too.
    """
    found = {}
    for name in _SECRETS:
        if not (path := given.get(f"{name}_FILE")):
            continue
        if given.get(name):
            raise UsageError(f"Both {name} and {name}_FILE are set.", f"Take one away: unset {name}")
        try:
            found[name] = Path(path).read_text().rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            raise UsageError(
                f"{name}_FILE names {path}, which can't be read: {reason}.", "Name a file with the secret."
            ) from None
    return found

"""The members of a server that was started with --auth, and their rights, by its own REST API."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lossy_mlflow.errors import ConflictError, LossyError, NotFoundError, UsageError, did_you_mean
from lossy_mlflow.service.settings import password_fault
from lossy_mlflow.tracking.connection import (
    Connection,
    connect,
    explained,
    is_server,
    tracking_uri,
    without_password,
)

NONE = "NONE"
_ERRORS = {"RESOURCE_ALREADY_EXISTS": ConflictError, "RESOURCE_DOES_NOT_EXIST": NotFoundError}
_KINDS = {"experiment": "experiment", "model": "registered_model"}
_USERS = "/api/2.0/mlflow/users"
_RIGHTS = "/api/3.0/mlflow/users/permissions"
_ROLES = "/api/3.0/mlflow/roles"
# The role that holds the rights of one user alone.
_OWN_ROLE = "__user_"


@dataclass(frozen=True, slots=True)
class Right:
    """What a user may do with an experiment or a registered model (`kind`)."""

    kind: str
    name: str
    permission: str


@dataclass(frozen=True, slots=True)
class User:
    """A member. An admin may do everything, whatever `rights` say."""

    name: str
    admin: bool
    rights: tuple[Right, ...] = ()


def list_users() -> list[User]:
    """All members with their rights, by name. Raises UsageError where the server has none, LossyError for who is no admin."""
    with explained():
        connection = _connected()
        known = _known_users(connection)
        experiments = {
            item.experiment_id: item.name for item in _all_pages(connection.client.search_experiments)
        }
        return [User(name, known[name], _rights(connection, name, experiments)) for name in sorted(known)]


def add_user(name: str, password: str, admin: bool = False) -> User:
    """A new member, without rights on what others have made. Raises ConflictError where there is one of that name."""
    # What comes before the first colon of a basic-auth header is the name.
    if not re.fullmatch(r"[\w.@+-]+", name, re.ASCII):
        raise UsageError(
            f"{name!r} is no name of a user.", "Take letters, digits, and . _ @ + - : lossy users add ada"
        )
    _check_password(password)
    with explained():
        connection = _connected()
        if name in _known_users(connection):
            raise ConflictError(
                f"There is a user {name} already.", f"Give another password: lossy users passwd {name}"
            )
        _ask(connection, "POST", f"{_USERS}/create", username=name, password=password)
        if admin:
            _ask(connection, "PATCH", f"{_USERS}/update-admin", username=name, is_admin=True)
    return User(name, admin)


def change_password(name: str, password: str) -> None:
    """Another password for a member, by an admin or by that member. Raises NotFoundError with the names that are near."""
    _check_password(password)
    with explained():
        connection = _connected()
        own = _credentials(connection)
        # Of oneself the server wants to know the old one; others' names are an admin's to see.
        current = {"current_password": own.password} if own.username == name else {}
        if not current:
            _check_user(connection, name)
        _ask(connection, "PATCH", f"{_USERS}/update-password", username=name, password=password, **current)


def grant(name: str, kind: str, target: str, permission: str) -> Right:
    """Give a member the right `permission` (READ, EDIT, MANAGE, or NONE) on the experiment or model (`kind`) `target`.

    It takes the place of the right on that which was given before. Asked of the server by an admin, or by a member who has MANAGE
    there. Raises NotFoundError with the names that are near, as far as one may know them.
    """
    with explained():
        connection = _connected()
        is_admin = _ask(connection, "GET", f"{_USERS}/current")["user"]["is_admin"]
        if is_admin:
            _check_user(connection, name)
        where = {"resource_type": _KINDS[kind], "resource_id": _id_of(connection, kind, target)}
        if permission == NONE:
            _revoke(connection, name, where)
            return Right(kind, target, NONE)
        try:
            _ask(connection, "POST", f"{_RIGHTS}/grant", username=name, permission=permission, **where)
        except ConflictError:
            change = _change if is_admin else _replace
            change(connection, name, where, permission)
    return Right(kind, target, permission)


def _revoke(connection: Connection, name: str, where: dict[str, str]) -> None:
    """Also where there is nothing to take back."""
    try:
        _ask(connection, "POST", f"{_RIGHTS}/revoke", username=name, **where)
    except NotFoundError as error:
        if "Permission for user" not in error.what:
            raise


def _change(connection: Connection, name: str, where: dict[str, str], permission: str) -> None:
    """In one step, without a moment in which there is no right: MLflow lets admins alone change one."""
    role = next(row["role_id"] for row in _rows(connection, name) if row["role_name"].startswith(_OWN_ROLE))
    found = _ask(connection, "GET", f"{_ROLES}/permissions/list", role_id=role)["role_permissions"]
    right = next(
        row["id"] for row in found if (row["resource_type"], row["resource_pattern"]) == tuple(where.values())
    )
    path = f"{_ROLES}/permissions/update"
    _ask(connection, "PATCH", path, role_permission_id=right, permission=permission)


def _replace(connection: Connection, name: str, where: dict[str, str], permission: str) -> None:
    """In two: in between, and where the second fails, there is none."""
    _revoke(connection, name, where)
    try:
        _ask(connection, "POST", f"{_RIGHTS}/grant", username=name, permission=permission, **where)
    except LossyError as error:
        raise LossyError(
            f"{name} has no right there now: {error.what}", "Give it again: the same command"
        ) from error


def remove_user(name: str) -> None:
    """Take a member away. What the member has made stays. Raises NotFoundError with the names that are near."""
    with explained():
        connection = _connected()
        _check_user(connection, name)
        _ask(connection, "DELETE", f"{_USERS}/delete", username=name)


def _connected() -> Connection:
    """The server that is asked. Raises UsageError for a database, which would be made where there is none."""
    if not is_server(uri := tracking_uri()):
        raise UsageError(
            f"Users are a server's, and MLFLOW_TRACKING_URI names {without_password(uri)}.",
            "export MLFLOW_TRACKING_URI=https://...",
        )
    return connect()


def _check_password(password: str) -> None:
    if fault := password_fault(password):
        raise UsageError(
            f"The password {fault}.",
            "A random one: python3 -c 'import secrets; print(secrets.token_urlsafe(12))'",
        )


def _check_user(connection: Connection, name: str) -> None:
    known = _known_users(connection)
    if name not in known:
        raise NotFoundError(
            f"There is no user {name!r}; {did_you_mean(name, known) or f'{len(known)} are known'}",
            f"lossy users list    lossy users add {shlex.quote(name)}",
        )


def _known_users(connection: Connection) -> dict[str, bool]:
    """Whether each is an admin, by name."""
    users = _ask(connection, "GET", f"{_USERS}/list")["users"]
    return {user["username"]: user["is_admin"] for user in users}


def _rows(connection: Connection, name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = _ask(connection, "GET", f"{_RIGHTS}/list", username=name)["permissions"]
    return rows


def _rights(connection: Connection, name: str, experiments: dict[str, str]) -> tuple[Right, ...]:
    rights = []
    for row in _rows(connection, name):
        kind = next((ours for ours, theirs in _KINDS.items() if theirs == row["resource_type"]), None)
        which = row["resource_pattern"]
        if kind == "experiment":
            which = experiments.get(which, which)
        rights.append(Right(kind or row["resource_type"], which, row["permission"]))
    return tuple(sorted(rights, key=lambda right: (right.kind, right.name)))


def _all_pages(search: Callable[..., Any]) -> list[Any]:
    found: list[Any] = []
    token = None
    while token != "":
        page = search(max_results=1000, page_token=token)
        found += page
        token = page.token or ""
    return found


def _id_of(connection: Connection, kind: str, name: str) -> str:
    client = connection.client
    if kind == "experiment":
        if found := client.get_experiment_by_name(name):
            return str(found.experiment_id)
        names = [item.name for item in _all_pages(client.search_experiments)]
    else:
        names = [model.name for model in _all_pages(client.search_registered_models)]
        if name in names:
            return name
    raise NotFoundError(
        f"There is no {kind} {name!r}; {did_you_mean(name, names) or f'{len(names)} are known'}",
        "Look them up in the UI, or with: lossy runs list    lossy checkpoints NAME",
    )


def _credentials(connection: Connection) -> Any:
    from mlflow.utils.credentials import get_default_host_creds

    return get_default_host_creds(connection.uri)


def _ask(connection: Connection, method: str, path: str, **fields: Any) -> dict[str, Any]:
    """What the server answers to a request of its REST API. MLflow's own client of it needs all that its server needs."""
    from mlflow.utils.rest_utils import http_request

    shown = without_password(connection.uri)
    body = {"params" if method == "GET" else "json": fields} if fields else {}
    reply = http_request(_credentials(connection), path, method, raise_on_status=False, **body)
    if reply.status_code == 401:
        raise LossyError(
            f"{shown} doesn't let you in.",
            "export MLFLOW_TRACKING_USERNAME=...; export MLFLOW_TRACKING_PASSWORD=...",
        )
    if reply.status_code == 403:
        raise LossyError(
            f"{shown} refuses: that is for admins, or for who has MANAGE there.",
            "Ask one, or sign in as one: export MLFLOW_TRACKING_USERNAME=...",
        )
    if reply.status_code == 404 and "error_code" not in reply.text:
        raise UsageError(f"{shown} has no users: whoever reaches it may do everything.", "lossy serve --auth")
    try:
        answer: dict[str, Any] = reply.json() if reply.content else {}
    except ValueError:
        answer = {}
    code = answer.get("error_code")
    if code in _ERRORS:
        raise _ERRORS[code](f"{shown}: {answer['message']}")
    if not reply.ok:
        raise LossyError(f"{shown} answers {reply.status_code}: {answer.get('message', reply.reason)}")
    return answer

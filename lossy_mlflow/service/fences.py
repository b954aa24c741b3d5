"""What stands before MLflow's own rights: `mlflow server --app-name lossy-auth` is its `basic-auth` behind these fences.

Closed by default: a route that neither the tracking client nor the UI's pages of runs and models ask for doesn't exist here, nor
does one that a newer MLflow brings, until it stands in a list below. docs/operations.md, "Security", says what is held and why.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import sys
from typing import TYPE_CHECKING, Any

from lossy_mlflow.service.bodies import answer, bounded
from lossy_mlflow.service.passwords import Passwords
from lossy_mlflow.service.undelayed import freeze_loaded

if TYPE_CHECKING:
    from flask import Request as FlaskRequest
    from flask import Response
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.types import ASGIApp, Receive, Scope, Send

# Below /api/ and /ajax-api/. A star is one step of a path, two are the rest of it.
_OPEN = {
    "2.0/mlflow/experiments/": "create delete delete-experiment-tag get get-by-name restore search search-datasets"
    " set-experiment-tag update",
    "2.0/mlflow/runs/": "create delete delete-tag get log-batch log-inputs log-metric log-model log-parameter outputs restore"
    " search set-tag update",
    "2.0/mlflow/metrics/": "get-history get-history-bulk get-history-bulk-interval",
    "2.0/mlflow/artifacts/": "list",
    "2.0/mlflow-artifacts/": "artifacts artifacts/**",
    "2.0/mlflow/logged-models": " /search /* /*/params /*/tags /*/tags/* /*/artifacts/directories /*/artifacts/files",
    "2.0/mlflow/registered-models/": "alias create delete delete-tag get get-latest-versions rename search set-tag update",
    "2.0/mlflow/model-versions/": "create delete delete-tag get get-download-uri search set-tag transition-stage update",
    "2.0/mlflow/users/": "create current delete get list update-admin update-password",
    "3.0/mlflow/users/": "current/permissions permissions/get permissions/grant permissions/list permissions/revoke roles/list",
    "3.0/mlflow/roles/": "assign create delete get list permissions/add permissions/list permissions/remove permissions/update"
    " unassign update users/list",
    # Asked for by the UI's pages of an experiment and a run. There are no traces: nothing that writes one is open.
    "3.0/mlflow/traces/": "metrics search",
    "3.0/mlflow/datasets/": "search",
    "3.0/mlflow/": "server-info",
}
# For reading alone. The UI's pages ask whether there is an assistant, telemetry, a gateway, and are told that there is none.
_OPEN_TO_GET = {
    "3.0/mlflow/": "ui-telemetry",
    "3.0/mlflow/assistant/": "config providers",
    "2.0/mlflow/": "gateway-proxy",
}
_PAGES = [
    "/",
    "/health",
    "/version",
    "/graphql",
    "/get-artifact",
    "/model-versions/get-artifact",
    "/static-files/**",
]
# MLflow shows to every user who there is, and what rights each has: every role by its number, and every user has one.
_ADMINS_ONLY = re.compile(r"/mlflow/(users/list$|roles/)")
# Nothing is there: MLflow answers 401 without a password, then 403, and 404 to an admin.
_NOWHERE = "/api/closed"


def create_app() -> ASGIApp:
    """MLflow's basic-auth app behind the fences. What it can't start with is said once, and ends the server."""
    import filelock
    import platformdirs
    import psutil
    from mlflow.exceptions import MlflowException
    from mlflow.server import app as flask_app
    from mlflow.server import auth
    from starlette.routing import Route
    from uvicorn.config import STARTUP_FAILURE

    # Several workers start at once: one makes the users' tables and the admin, the others find them, or that it couldn't.
    database = hashlib.sha256(auth.auth_config.database_uri.encode()).hexdigest()[:16]
    file = platformdirs.user_state_path("lossy_mlflow", ensure_exists=True) / f"auth-{database}.lock"
    supervisor = f"{os.getppid()} {psutil.Process(os.getppid()).create_time()}"
    with filelock.FileLock(file):
        try:
            if file.read_text() == supervisor:
                os._exit(STARTUP_FAILURE)
            app = auth.create_app(flask_app)
        except MlflowException as error:
            file.write_text(supervisor)
            print(f"The server can't start: {error}", file=sys.stderr, flush=True)
            # With another exit code, or where a worker takes its time to end, uvicorn starts it again and again.
            os._exit(STARTUP_FAILURE)
    flask_app.before_request(_refuse)
    for kind in ("api", "ajax-api"):
        # Before MLflow's own, which is asked no more.
        app.router.routes.insert(0, Route(f"/{kind}/3.0/mlflow/server-info", _server_info))
    app.add_middleware(Fences)
    freeze_loaded()
    return app  # type: ignore[no-any-return]


async def _server_info(_: Request) -> JSONResponse:
    """What MLflow says of the server, but not that its bucket can be reached. A client would take every file from there, by an
    address that it can't reach, and wouldn't fall back.
    """
    import anyio.to_thread
    from mlflow.server.handlers import build_server_info_payload
    from mlflow.utils.server_info import (
        SERVER_INFO_MULTIPART_DOWNLOADS_ENABLED,
        SERVER_INFO_MULTIPART_UPLOADS_ENABLED,
    )
    from starlette.responses import JSONResponse

    info = await anyio.to_thread.run_sync(build_server_info_payload)
    closed = {
        SERVER_INFO_MULTIPART_UPLOADS_ENABLED: False,
        SERVER_INFO_MULTIPART_DOWNLOADS_ENABLED: False,
        "features_enabled": {"gateway": False},
    }
    return JSONResponse(info | closed)


@functools.cache
def _paths(reading: bool) -> re.Pattern[str]:
    tables = [_OPEN, _OPEN_TO_GET] if reading else [_OPEN]
    paths = _PAGES + [
        f"/{kind}api/{below}{name}"
        for kind in ("", "ajax-")
        for table in tables
        for below, names in table.items()
        for name in names.split(" ")
    ]
    rest, step = re.escape("**"), re.escape("*")
    return re.compile("|".join(re.escape(path).replace(rest, ".+").replace(step, "[^/]+") for path in paths))


def is_open(method: str, path: str) -> bool:
    """Whether this server answers there at all."""
    # A path with such a step means another one to whoever reads it before or after this.
    is_plain = not {"..", "."} & set(path.split("/"))
    return is_plain and _paths(method == "GET").fullmatch(path) is not None


def _refuse() -> Response | None:
    """What MLflow would let any user do. Called by Flask when MLflow has found who asks, and lets them."""
    import flask
    from mlflow.server import auth

    path = flask.request.path
    if _ADMINS_ONLY.search(path):
        return None if auth.sender_is_admin() else _denied("An admin alone may ask this.")
    if path.endswith("/experiments/create") and _names_location(flask.request):
        return _denied(
            "This server chooses where an experiment's files are. Create it without artifact_location."
        )
    return None


def _names_location(request: FlaskRequest) -> bool:
    # As MLflow reads it: whatever type it is said to be of, twice where it is encoded twice, by either name of the field.
    asked: Any = request.get_json(force=True, silent=True)
    try:
        asked = json.loads(asked) if isinstance(asked, str) else asked
    except ValueError:
        return False
    return isinstance(asked, dict) and bool(asked.get("artifact_location") or asked.get("artifactLocation"))


def _denied(message: str) -> Response:
    import flask

    return flask.make_response({"error_code": "PERMISSION_DENIED", "message": message}, 403)


class Fences:
    """The outermost layer of the app: what goes further is open, of a bounded size, and not known to have a wrong password."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.passwords = Passwords()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if not is_open(scope["method"], scope["path"]):
            scope = {**scope, "path": _NOWHERE, "raw_path": _NOWHERE.encode()}
        passwords = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(passwords) > 1:
            await answer(send, 400, "Two passwords are one too many.", {})
        # Of the path that MLflow is going to see: what is closed has no public name there.
        elif refusal := await self.passwords.refusal(scope["path"], passwords[0] if passwords else b""):
            await answer(send, *refusal)
        else:
            await bounded(self.app, scope, receive, send)

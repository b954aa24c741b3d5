"""Every route that a team's server lists, without a password, with a wrong one, and asked by who has no right there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import requests

from lossy_mlflow.service.fences import is_open
from tests.conftest import ROOT
from tests.service.people import (
    API,
    NAME,
    SECRET,
    Belongings,
    Guarded,
    own_stores,
    settings_of,
)

# What MLflow answers to anybody, on purpose. Each is read only.
PUBLIC = {
    "/health": "says OK and nothing else: a proxy and a container's health check ask it, and have no password",
    "/api/3.0/mlflow/server-info": "what a client must know before it logs in: kinds of store, no name, no address",
    "/ajax-api/3.0/mlflow/server-info": "as above, for the UI",
    "/static-files/<path>": "the UI's own scripts and pictures, as anybody can have them from MLflow's package",
}
READ_ONLY = ("GET", "HEAD", "OPTIONS")


@dataclass(frozen=True)
class Question:
    """A request that is all about what Alice has."""

    route: tuple[str, str]
    path: str
    query: dict[str, Any]
    body: Any

    @property
    def name(self) -> str:
        return " ".join(self.route)

    def ask(self, guarded: Guarded, who: str | None, **options: Any) -> requests.Response:
        method, _ = self.route
        sent: dict[str, Any] = {"params": self.query}
        if method not in READ_ONLY or self.path == "/graphql":
            sent |= {"data": self.body} if isinstance(self.body, bytes) else {"json": self.body}
        return guarded.ask(who, method, quote(self.path), **sent, **options)


def named(has: Belongings, path: str) -> dict[str, Any]:
    """What a request's parameters are called, and what of Alice's they mean."""
    return {
        "run_id": has.run,
        "run_uuid": has.run,
        "run_ids": has.run,
        "source_run_id": has.run,
        "experiment_id": has.experiment,
        "experiment_ids": has.experiment,
        "experiment_name": f"{NAME}-experiment",
        "name": f"{NAME}-experiment" if "/experiments/" in path else has.model,
        "new_name": f"{NAME}-stolen",
        "model_id": has.logged_model,
        "source": f"runs:/{has.run}/",
        "version": has.version,
        "alias": "best",
        "stages": "None",
        "stage": "Production",
        "metric_key": f"{NAME}-loss",
        "metric_keys": f"{NAME}-loss",
        "key": "note",
        "tag_key": "note",
        "artifact_path": has.artifact,
        "artifact_file_path": "MLmodel",
        "path": "MLmodel" if "model-versions" in path else "" if "list" in path else has.file,
        "username": "alice",
        "password": "password-of-an-intruder",
        "is_admin": True,
        "request_id": has.trace,
        "trace_id": has.trace,
        "trace_ids": has.trace,
        "request_ids": has.trace,
        "resource_type": "experiment",
        "resource_id": has.experiment,
        "resource_pattern": has.experiment,
        "permission": "MANAGE",
        "role_id": 1,
        "query": f'{{mlflowGetRun(input: {{runId: "{has.run}"}}) {{run {{info {{runName}} data {{params {{key value}}}}}}}}}}',
        "filter": "",
        "filter_string": "",
        "order_by": [],
        "page_token": "",
        "status": "FINISHED",
        "max_results": 100,
        "url": "https://127.0.0.1/",
        "data": SECRET,
        "model_json": json.dumps(
            {"run_id": has.run, "artifact_path": "m", "utc_time_created": "t", "flavors": {}}
        ),
    }


def filled(fields: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """A value for each field: Alice's where one is known by that name, else any of its type."""

    def value(name: str, kind: Any) -> Any:
        if isinstance(kind, list):
            one = value(name, kind[0])
            return one if isinstance(one, list) else [one]
        if isinstance(kind, dict):
            return filled(kind, known)
        if name in known:
            return known[name]
        return {"str": "x", "number": 1, "bool": True}.get(kind, kind)

    return {name: value(name, kind) for name, kind in fields.items()}


def question(route: dict[str, Any], has: Belongings) -> Question:
    known = named(has, route["path"])
    path = re.sub(r"<(\w+)>", lambda parameter: str(known.get(parameter[1], "x")), route["path"])
    fields = known if route["fields"] is None else filled(route["fields"], known)
    if route["method"] == "PUT" and "mlflow-artifacts" in path:
        return Question((route["method"], route["path"]), path, {}, b"overwritten")
    if path.endswith("mlflow-artifacts/artifacts"):
        fields = {"path": f"{has.experiment}/{has.run}/artifacts"}
    flat = {name: value for name, value in fields.items() if not isinstance(value, dict)}
    return Question((route["method"], route["path"]), path, flat, fields)


@pytest.fixture(scope="module")
def questions(
    alices: Belongings, migrated_database: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[Question]:
    """One for each route and method of the app that the server runs."""
    folder = tmp_path_factory.mktemp("listed")
    listed = subprocess.run(
        [sys.executable, "-m", "tests.service.every_route", "lossy_mlflow.service.fences:create_app"],
        cwd=ROOT,
        env={**settings_of(folder, own_stores(folder, migrated_database))[0], "_MLFLOW_SGI_NAME": "uvicorn"},
        check=True,
        capture_output=True,
        text=True,
    )
    routes = json.loads(listed.stdout)
    assert len(routes) > 1000
    return [question(route, alices) for route in routes]


def test_garbage_is_looked_for_among_what_requests_leave_alone(
    migrated_database: Path, tmp_path: Path
) -> None:
    """Of 300,000 objects of MLflow's each full collection takes 0.25 s, in which a worker answers nobody."""
    code = (
        "import gc, lossy_mlflow.service.fences as fences\n"
        "app = fences.create_app()\n"
        "print(gc.get_freeze_count(), len(gc.get_objects()))"
    )
    settings = settings_of(tmp_path, own_stores(tmp_path, migrated_database))[0]
    environment = {**settings, "_MLFLOW_SGI_NAME": "uvicorn"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    passed_over, looked_at = map(int, done.stdout.split()[-2:])
    assert passed_over > 100_000
    assert looked_at < 10_000


def answers(
    guarded: Guarded, questions: list[Question], who: str | None, **options: Any
) -> list[requests.Response]:
    with ThreadPoolExecutor(8) as threads:
        return list(threads.map(lambda one: one.ask(guarded, who, **options), questions))


def test_without_a_password_every_route_answers_401(guarded: Guarded, questions: list[Question]) -> None:
    answered = zip(questions, answers(guarded, questions, None), strict=True)
    public = {one.route for one, answer in answered if answer.status_code != 401}
    assert public <= {(method, path) for path in PUBLIC for method in READ_ONLY}
    assert {("GET", path) for path in PUBLIC} <= public


@pytest.mark.parametrize(
    "authorization",
    [
        "Basic YWxpY2U6d3JvbmctcGFzc3dvcmQ=",  # alice:wrong-password
        "Basic bm9ib2R5Om5vYm9keS1hdC1hbGw=",  # nobody:nobody-at-all
        "Basic YWxpY2U6",  # alice, without one
        "Basic YWRtaW46cGFzc3dvcmQxMjM0",  # admin:password1234, which old MLflows shipped
        "Basic !!!",
        "Basic",
        "Bearer YWxpY2U6d3JvbmctcGFzc3dvcmQ=",
        "Digest username=alice",
        "Basic w7zDtsOkOsO8",  # not ASCII
    ],
)
def test_with_a_wrong_password_every_route_answers_401(
    guarded: Guarded, questions: list[Question], authorization: str
) -> None:
    # A sample for each but the first: one of every eleven.
    some = questions if "d3Jvbmct" in authorization and authorization.startswith("Basic") else questions[::11]
    headers = {"Authorization": authorization, "X-MLflow-Authorization": authorization}
    answered = zip(some, answers(guarded, some, None, headers=headers), strict=True)
    assert {one.route[1] for one, answer in answered if answer.status_code != 401} <= set(PUBLIC)


def test_who_has_no_right_is_told_nothing_and_changes_nothing(
    guarded: Guarded, alices: Belongings, questions: list[Question]
) -> None:
    # Something of his own, so that the searches have what they may tell.
    own = guarded.told("bob", "POST", f"{API}/experiments/create", name="bobs-for-every-route")[
        "experiment_id"
    ]
    guarded.told("bob", "POST", f"{API}/runs/create", experiment_id=own)
    rows, files = guarded.rows(), guarded.files()
    # HEAD and OPTIONS of what is closed to every method would show the same again.
    questions = [
        one for one in questions if one.route[0] not in ("HEAD", "OPTIONS") or is_open("GET", one.path)
    ]
    for one, answer in zip(questions, answers(guarded, questions, "bob"), strict=True):
        if not is_open(one.route[0], one.path):
            assert answer.status_code == 403, one.name
        # What he has sent himself may stand in an error; nothing that he didn't know.
        told = answer.text + str(answer.headers)
        assert SECRET not in told, (one.name, told)
        assert "4711.25" not in told, (one.name, told)
        if answer.ok:
            for hers in (NAME, alices.run, alices.logged_model, alices.trace):
                assert hers not in told, (one.name, told)
            # Her name, of which he may write in what is his.
            assert '"alice"' not in told or not re.search("/(users|roles)/", one.path), (one.name, told)
        # MLflow looks for the query in a body that HEAD has not.
        assert answer.status_code < 500 or one.name == "HEAD /graphql", (one.name, told)
    assert guarded.files() == files
    after = guarded.rows()
    for table, before in rows.items():
        assert before <= after[table], f"rows of {table} are changed or gone"
        for new in after[table] - before:
            hers = {alices.run, alices.logged_model, alices.trace, alices.model}
            assert not hers & {str(value) for value in new}, (table, new)
    assert {name: len(rows) for name, rows in after.items()} == {
        name: len(rows) for name, rows in rows.items()
    }


def test_the_same_questions_reach_what_they_ask_for(
    guarded: Guarded, alices: Belongings, questions: list[Question]
) -> None:
    """Else the answers to Bob would show nothing."""
    dull = set()
    for one in questions:
        method, path = one.route
        if method != "GET" or not is_open(method, one.path) or "/ajax-api/" in path:
            continue
        answer = one.ask(guarded, "alice")
        hers = (NAME, SECRET, '"alice"', "MANAGE", "MLmodel", alices.logged_model, "4711.25")
        if not (answer.ok and any(one in answer.text for one in hers)):
            dull.add(path)
    assert dull == {
        *("/", "/version", "/health", "/api/3.0/mlflow/server-info", "/static-files/<path>"),
        # Data sets of another kind, of which she has none; and what an admin alone may ask.
        *("/api/3.0/mlflow/datasets/search", "/api/2.0/mlflow/users/list"),
        *(f"/api/3.0/mlflow/roles/{name}" for name in ("get", "list", "users/list", "permissions/list")),
    }

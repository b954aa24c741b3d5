"""What somebody with a password of his own tries, to come by what is another's; and what anybody tries, to stop the server."""

from __future__ import annotations

import base64
import http.client
import json
import socket
import statistics
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from tests.service.people import (
    API,
    NAME,
    PASSWORDS,
    SECRET,
    SECRET_KEY,
    Belongings,
    Guarded,
)

PROXY = "/api/2.0/mlflow-artifacts/artifacts"
# Beside the artifacts, on the server's disk.
TREASURE = "treasure-of-the-server-2x7"
TEMPORARY_BYTES = 64 << 20


@pytest.fixture(scope="session")
def server(guarded: Guarded) -> Guarded:
    (guarded.folder / "treasure.txt").write_text(TREASURE)
    return guarded


@dataclass(frozen=True)
class Bobs:
    """What the attacker has a right to."""

    experiment: str
    run: str
    logged_model: str
    model: str = "bobs-model"


@pytest.fixture(scope="session")
def bobs(server: Guarded, alices: Belongings) -> Bobs:
    experiment = server.told("bob", "POST", f"{API}/experiments/create", name="bobs-attack")["experiment_id"]
    run = server.told("bob", "POST", f"{API}/runs/create", experiment_id=experiment)["run"]["info"]["run_id"]
    made = server.told("bob", "POST", f"{API}/logged-models", experiment_id=experiment, name="bobs-logged")
    server.told("bob", "POST", f"{API}/registered-models/create", name="bobs-model")
    mine = Bobs(experiment, run, made["model"]["info"]["model_id"])
    assert raw(server, "PUT", f"{PROXY}/{experiment}/{run}/artifacts/x.txt", b"bobs").status == 200
    return mine


@dataclass(frozen=True)
class Raw:
    status: int
    text: str


def raw(
    server: Guarded, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> Raw:
    """A request as Bob with a path exactly as it is: other clients would tidy it up."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    token = base64.b64encode(f"bob:{PASSWORDS['bob']}".encode()).decode()
    try:
        connection.putrequest(method, path, skip_host=bool(headers and "Host" in headers))
        fields = {"Authorization": f"Basic {token}", "Content-Length": str(len(body or b""))} | (
            headers or {}
        )
        for name, value in fields.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        return Raw(answer.status, answer.read().decode(errors="replace") + str(answer.headers))
    finally:
        connection.close()


def innocent(text: str) -> bool:
    """Nothing of Alice's content, nor of the server's disk."""
    return not any(secret in text for secret in (SECRET, TREASURE, "root:x:", "4711.25"))


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:5000", "127.0.0.1.evil.example", "localhost.evil", ""]
)
def test_a_foreign_host_is_refused(server: Guarded, alices: Belongings, host: str) -> None:
    for path in ("/", f"{API}/experiments/search", f"{PROXY}/{alices.artifact}"):
        assert raw(server, "GET", path, headers={"Host": host}).status in (400, 403)


@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", "null", "https://127.0.0.1.evil.example", "http://localhost.evil.example"],
)
def test_a_page_of_a_foreign_origin_changes_and_reads_nothing(
    server: Guarded, bobs: Bobs, origin: str
) -> None:
    headers = {"Origin": origin, "Content-Type": "application/json"}
    files = server.files()
    body = json.dumps({"experiment_id": bobs.experiment, "key": "by", "value": origin}).encode()
    assert raw(server, "POST", f"{API}/experiments/set-experiment-tag", body, headers).status == 403
    target = f"{PROXY}/{bobs.experiment}/{bobs.run}/artifacts/x.txt"
    assert raw(server, "PUT", target, b"foreign", headers).status == 403
    assert raw(server, "DELETE", target, None, headers).status == 403
    assert server.files() == files
    # A browser keeps an answer from a page that isn't named in it, and sends JSON only where it was allowed to before.
    read = raw(server, "GET", f"{API}/experiments/get?experiment_id={bobs.experiment}", headers=headers)
    assert "access-control" not in read.text.lower()
    asked = {
        **headers,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type",
    }
    assert (
        f"access-control-allow-origin: {origin}" not in raw(server, "OPTIONS", "/graphql", headers=asked).text
    )
    simple = {**headers, "Content-Type": "text/plain"}
    assert raw(server, "POST", "/graphql", b'{"query": "{__typename}"}', simple).status >= 400


def traversals(alices: Belongings, bobs: Bobs) -> list[str]:
    """Paths that mean something else than they begin with."""
    up_and_over = f"{alices.experiment}/{alices.run}/artifacts/{alices.file}"
    dots = ("..", "%2e%2e", "%252e%252e", ".%2e", "..%00", "..;", "%c0%ae%c0%ae")
    slashes = ("/", "%2f", "%252f", "%5c")
    paths = [
        f"{bobs.experiment}{slash}{dot}{slash}{target}"
        for dot in dots
        for slash in slashes
        for target in (up_and_over, f"..{slash}treasure.txt")
    ]
    own = f"{bobs.experiment}/{bobs.run}/artifacts"
    others = rf"""
    {bobs.experiment}/{"../" * 12}etc/passwd  {bobs.experiment}\..\{up_and_over}  x/../{up_and_over}
    /etc/passwd  //etc/passwd  %2fetc%2fpasswd  %252fetc/passwd  file:///etc/passwd  file:/etc/passwd  file:../treasure.txt
    C:/x  C:\x  ~/x  %00  .  ..  ./  ./{up_and_over}  %2e/{up_and_over}  /{up_and_over}  //{up_and_over}
    %3{up_and_over}  %253{up_and_over}  file:{up_and_over}  file:/{up_and_over}  {up_and_over}#  {up_and_over}%3f
    workspaces/default/{up_and_over}  workspaces/x/{bobs.experiment}/{up_and_over}
    {own}/{"a" * 5000}  {own}/{"b/" * 2000}c
    """
    return [*paths, *others.split()]


def test_no_path_leads_out_of_what_is_ones_own(server: Guarded, alices: Belongings, bobs: Bobs) -> None:
    files = server.files()
    own = f"{bobs.experiment}/"
    model = f"mlflow/logged-models/{bobs.logged_model}/artifacts"
    for path in traversals(alices, bobs):
        for asked in (
            *(f"{PROXY}/{path}", f"{PROXY}?path={path}", f"/get-artifact?run_id={bobs.run}&path={path}"),
            f"{API}/artifacts/list?run_id={bobs.run}&path={path}",
            f"/ajax-api/2.0/{model}/files?artifact_file_path={path}",
            f"/api/2.0/{model}/directories?artifact_directory_path={path}",
        ):
            answer = raw(server, "GET", asked.replace(" ", "%20"))
            assert innocent(answer.text), (asked, answer.text)
            assert alices.file not in answer.text or answer.status >= 400, (asked, answer.text)
    for path in traversals(alices, bobs):
        for method in ("PUT", "DELETE"):
            answer = raw(server, method, f"{PROXY}/{path}", b"overwritten" if method == "PUT" else None)
            assert innocent(answer.text), (method, path, answer.text)
    assert {path: digest for path, digest in server.files().items() if not path.startswith(own)} == {
        path: digest for path, digest in files.items() if not path.startswith(own)
    }
    assert {path.name for path in server.folder.iterdir()} == {
        *("artifacts", "auth.ini", "mlflow.db", "server.log", "tmp", "treasure.txt")
    }
    assert (server.folder / "treasure.txt").read_text() == TREASURE


@contextmanager
def listener() -> Iterator[tuple[int, list[str]]]:
    """An inner address of the server's: its port, and what has been asked of it."""
    heard: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as waiting:
        waiting.settimeout(0.2)
        done = threading.Event()

        def listen() -> None:
            while not done.is_set():
                try:
                    connection, _ = waiting.accept()
                except TimeoutError:
                    continue
                with connection:
                    heard.append(connection.recv(1000).decode(errors="replace"))

        thread = threading.Thread(target=listen)
        thread.start()
        try:
            yield waiting.getsockname()[1], heard
        finally:
            time.sleep(0.3)
            done.set()
            thread.join()


def foreign_places(alices: Belongings, port: int, folder: Path) -> list[str]:
    """Whatever a source or a location may be, and isn't Bob's."""
    hers = f"{alices.experiment}/{alices.run}/artifacts"
    inner = f"127.0.0.1:{port}"
    places = f"""
    runs:/{alices.run}/  runs:/{alices.run}/{alices.file}  runs://x/{alices.run}/  RUNS:/{alices.run}/  runs:/{alices.run}/../../x
    mlflow-artifacts:/{hers}  mlflow-artifacts:/{hers}/  mlflow-artifacts://{inner}/{hers}  mlflow-artifacts:{hers}
    mlflow-artifacts:/x/../{hers}  mlflow-artifacts:/%2e%2e/{hers}  mlflow-artifacts:http://{inner}/x
    models:/{alices.model}/1  models:/{alices.model}@best  models:/{alices.model}/latest  models:/{alices.logged_model}
    models://x/{alices.model}/1  models:/../{hers}  models:http://{inner}
    file:///etc  file:///etc/passwd  /etc  etc  file://{folder}  {folder}  file:{folder}  file://localhost/etc
    http://{inner}/x  https://{inner}/x  http://{inner}/api/2.0/mlflow-artifacts/artifacts/{hers}
    ftp://{inner}/x  sftp://{inner}/x  hdfs://{inner}/x  dbfs://{inner}/x  dbfs:/x  databricks://{inner}
    s3://other/x  s3://{inner}/x?endpoint=http://{inner}  gs://other/x  r2://b@a/x
    wasbs://c@a.blob.core.windows.net/x  abfss://c@a.dfs.core.windows.net/x
    """
    return [*places.split(), "\x00", " "]


def test_a_version_made_from_anothers_files_gives_none_of_them(
    server: Guarded, alices: Belongings, bobs: Bobs
) -> None:
    with listener() as (port, heard):
        places = foreign_places(alices, port, server.folder)
        claims: list[dict[str, str]] = [
            *({}, {"run_id": bobs.run}, {"model_id": bobs.logged_model}),
            *({"runId": alices.run}, {"modelId": alices.logged_model}, {"run_id": "", "model_id": ""}),
        ]
        for source in places:
            for claim in claims:
                made = server.ask(
                    *("bob", "POST", f"{API}/model-versions/create"),
                    json={"name": bobs.model, "source": source, **claim},
                )
                assert innocent(made.text), (source, claim)
                if made.ok:
                    read_by_every_way(server, alices, bobs.model, made.json()["model_version"]["version"])
        # The usual client's way of copying a version is such a source too.
        assert (
            server.ask(
                "bob", "GET", f"{API}/model-versions/get-download-uri?name={alices.model}&version=1"
            ).status_code
            == 403
        )
    assert heard == []


def read_by_every_way(server: Guarded, alices: Belongings, model: str, version: str) -> None:
    place = {"name": model, "version": version}
    answers = [
        server.ask("bob", "GET", "/model-versions/get-artifact", params={**place, "path": path})
        for path in (alices.file, "MLmodel", "passwd", "treasure.txt", "")
    ]
    answers.append(server.ask("bob", "GET", f"{API}/model-versions/get-download-uri", params=place))
    for answer in answers:
        assert innocent(answer.text), (model, version, answer.text)
        assert alices.run not in answer.text, answer.text


def test_nobody_chooses_where_an_experiment_s_files_are(
    server: Guarded, alices: Belongings, bobs: Bobs
) -> None:
    with listener() as (port, heard):
        for place in foreign_places(alices, port, server.folder):
            for who in ("bob", "admin"):
                name = uuid.uuid4().hex
                asked = {"name": name, "artifact_location": place}
                camel = {"name": name, "artifactLocation": place}
                twice = json.dumps(json.dumps(asked))
                sent: list[dict[str, Any]] = [
                    *({"json": asked}, {"json": camel}),
                    {"data": twice, "headers": {"Content-Type": "application/json"}},
                    {
                        "data": json.dumps(asked),
                        "headers": {"Content-Type": "application/json; charset=utf-8"},
                    },
                    {"data": json.dumps(asked), "headers": {"Content-Type": "text/plain"}},
                ]
                for body in sent if who == "bob" else sent[:1]:
                    answer = server.ask(who, "POST", f"{API}/experiments/create", **body)
                    assert answer.status_code in (400, 403), (place, body, answer.text)
    assert heard == []
    # Experiment 0 is older than the server.
    locations = {
        row for row in server.rows()["experiments"] if row[0] and row[2] != f"mlflow-artifacts:/{row[0]}"
    }
    assert not locations, locations


def test_what_is_written_of_ones_own_leads_to_nothing_of_anothers(
    server: Guarded, alices: Belongings, bobs: Bobs
) -> None:
    """Tags, inputs, outputs, metrics, names that MLflow gives a meaning."""
    hers = f"mlflow-artifacts:/{alices.experiment}/{alices.run}/artifacts"
    rows = server.rows()

    def bob(path: str, method: str = "POST", **fields: Any) -> requests.Response:
        return server.ask("bob", method, f"{API}/{path}", json=fields)

    for key in (
        "mlflow.artifactLocation",
        "mlflow.parentRunId",
        "mlflow.sourceRun",
        "mlflow.log-model.history",
        "mlflow.user",
    ):
        for value in (hers, alices.run, "alice"):
            bob("runs/set-tag", run_id=bobs.run, key=key, value=value)
            bob("experiments/set-experiment-tag", experiment_id=bobs.experiment, key=key, value=value)
            bob("registered-models/set-tag", name=bobs.model, key=key, value=value)
    tags = [{"key": "mlflow.user", "value": "alice"}, {"key": "mlflow.artifactLocation", "value": hers}]
    bob("runs/create", experiment_id=bobs.experiment, user_id="alice", tags=tags)
    refused = [
        bob("runs/log-inputs", run_id=bobs.run, models=[{"model_id": alices.logged_model}]),
        bob("runs/outputs", run_id=bobs.run, models=[{"model_id": alices.logged_model, "step": 0}]),
        bob("runs/log-batch", run_id=bobs.run, metrics=[
            {"key": "m", "value": 1, "timestamp": 1, "step": 1, "model_id": alices.logged_model}
        ]),
        bob("runs/log-metric", run_id=bobs.run, key="m", value=1, timestamp=1, model_id=alices.logged_model),
        bob("logged-models", experiment_id=bobs.experiment, source_run_id=alices.run, name="stolen"),
        bob("registered-models/create", name=alices.model),
        bob("registered-models/rename", name=bobs.model, new_name=alices.model),
    ]  # fmt: skip
    for answer in refused:
        assert innocent(answer.text)
        assert not answer.ok, (answer.request.url, answer.request.body, answer.text)
    for path in (alices.file, "MLmodel"):
        assert innocent(server.ask("bob", "GET", f"/get-artifact?run_id={bobs.run}&path={path}").text)
    seen = bob(
        "runs/search", experiment_ids=[bobs.experiment, alices.experiment], filter=f"tags.`note` = '{SECRET}'"
    )
    assert not seen.ok or seen.json() == {}
    for table in ("model_versions", "logged_models", "inputs", "latest_metrics", "users", "role_permissions"):
        hers_before = {
            row
            for row in rows[table]
            if alices.logged_model in row or alices.model in row or alices.run in row
        }
        hers_after = {
            row
            for row in server.rows()[table]
            if alices.logged_model in row or alices.model in row or alices.run in row
        }
        assert hers_after == hers_before, table


NAMES = [
    ".",
    "..",
    "../x",
    "..%2fx",
    "a/b",
    "a\\b",
    "a:b",
    "/etc/passwd",
    "%2e%2e/x",
    "CON",
    "latest",
    "mlflow-artifacts:/1",
]
NAMES += ["<script>alert(1)</script>", "{{7*7}}", "' or 1=1 --", "$(touch /tmp/pwned)"]
NAMES += ["\x00", "a\x00b", "a" * 10_000, "\u202etxt", "", " "]


def test_names_with_tricks_are_names_or_refused(server: Guarded, alices: Belongings, bobs: Bobs) -> None:
    for name in NAMES:
        asked = [
            ("registered-models/create", {"name": name}),
            ("registered-models/alias", {"name": bobs.model, "alias": name, "version": "1"}),
            ("experiments/create", {"name": name}),
            ("runs/create", {"experiment_id": bobs.experiment, "run_name": name}),
            ("runs/set-tag", {"run_id": bobs.run, "key": name, "value": name}),
            ("logged-models", {"experiment_id": bobs.experiment, "name": name}),
        ]
        for path, fields in asked:
            answer = server.ask("bob", "POST", f"{API}/{path}", json=fields)
            assert innocent(answer.text)
            assert answer.status_code < 500, (path, name, answer.text)
            # No browser takes it for a page.
            assert "html" not in answer.headers["Content-Type"] or answer.status_code >= 400
    assert {path.name for path in server.folder.iterdir()} == {
        *("artifacts", "auth.ini", "mlflow.db", "server.log", "tmp", "treasure.txt")
    }


def test_graphql_answers_of_ones_own_alone(server: Guarded, alices: Belongings) -> None:
    run, model = f'runId: "{alices.run}"', f"name='{alices.model}'"
    experiment = f'experimentIds: ["{alices.experiment}"]'
    history = f'runIds: ["{alices.run}"], metricKey: "{NAME}-loss"'
    names = (
        "{run {info {runName artifactUri} data {params {key value} metrics {key value} tags {key value}}}}"
    )
    asked = {
        "mlflowGetExperiment": f'(input: {{experimentId: "{alices.experiment}"}}) {{experiment {{name tags {{value}}}}}}',
        "mlflowGetMetricHistoryBulkInterval": f"(input: {{{history}}}) {{metrics {{value}}}}",
        "mlflowGetRun": f"(input: {{{run}}}) {names}",
        "mlflowListArtifacts": f"(input: {{{run}}}) {{files {{path}} rootUri}}",
        "mlflowSearchModelVersions": f'(input: {{filter: "{model}"}}) {{modelVersions {{name description source}}}}',
        "mlflowSearchRuns": f"(input: {{{experiment}}}) {{runs {{info {{runName}} data {{params {{value}}}}}}}}",
    }  # fmt: skip
    fields = server.told("bob", "POST", "/graphql", query="{__schema {queryType {fields {name}}}}")
    listed = {field["name"] for field in fields["data"]["__schema"]["queryType"]["fields"]}
    assert listed - {"test"} == set(asked)
    for name, rest in asked.items():
        hers = server.ask("alice", "POST", "/graphql", json={"query": f"{{{name}{rest}}}"})
        assert any(known in hers.text for known in (NAME, "4711.25")), (name, hers.text)
        told = server.ask("bob", "POST", "/graphql", json={"query": f"{{{name}{rest}}}"})
        assert innocent(told.text), (name, told.text)
        assert NAME not in told.text, (name, told.text)


def test_a_stored_page_is_a_download(server: Guarded, bobs: Bobs) -> None:
    """A script in an artifact would act in the UI with the password of who looks at it."""
    place = f"{bobs.experiment}/{bobs.run}/artifacts/page.html"
    assert server.ask("bob", "PUT", f"{PROXY}/{place}", data=b"<script>alert(1)</script>").ok
    for url in (
        f"{PROXY}/{place}",
        f"/ajax-api/2.0/mlflow-artifacts/artifacts/{place}",
        f"/get-artifact?run_id={bobs.run}&path=page.html",
    ):
        answer = server.ask("bob", "GET", url)
        assert answer.ok
        assert answer.headers["Content-Disposition"].startswith("attachment")
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_a_body_without_end_costs_no_memory(server: Guarded, alices: Belongings) -> None:
    worker = max(
        psutil.Process(server.process.pid).children(recursive=True), key=lambda one: one.memory_info().rss
    )
    before = worker.memory_info().rss
    for method, path, who in (
        ("POST", f"{API}/runs/search", None),
        ("POST", f"{API}/runs/log-batch", "bob"),
        ("POST", "/graphql", None),
        ("POST", "/v1/traces", None),
        ("PUT", f"/static-files/..{PROXY}/x", None),
        ("PUT", f"{API}/logged-models/mlflow-artifacts/artifacts/directories", None),
    ):
        status, sent = send_without_end(server, method, path, who, 64 << 20)
        assert status in (413, 401, None), (path, status)
        assert sent < 64 << 20
    assert worker.memory_info().rss - before < 100 << 20
    assert server.ask("alice", "GET", f"{API}/runs/get?run_id={alices.run}").ok


def test_a_huge_upload_is_refused_before_the_disk_is_full(server: Guarded, bobs: Bobs) -> None:
    files = server.files()
    target = f"{PROXY}/{bobs.experiment}/{bobs.run}/artifacts/huge"
    # Its length is known: nothing of it is taken.
    declared = raw(server, "PUT", target, b"a little", {"Content-Length": str(10 << 40)})
    assert declared.status == 507
    # It isn't: as much as there is room for.
    if psutil.disk_usage(str(server.folder / "tmp")).total > TEMPORARY_BYTES:
        pytest.skip("needs root, to mount a small file system")
    status, sent = send_without_end(server, "PUT", target, "bob", 4 * TEMPORARY_BYTES)
    assert status in (507, None)
    assert sent < 4 * TEMPORARY_BYTES
    # Without a right nothing is taken either.
    status, sent = send_without_end(server, "PUT", f"{PROXY}/1/x/artifacts/huge", "bob", 4 * TEMPORARY_BYTES)
    assert status in (403, None)
    assert server.files() == files
    assert list((server.folder / "tmp").iterdir()) == []


def send_without_end(
    server: Guarded, method: str, path: str, who: str | None, most: int
) -> tuple[int | None, int]:
    """Chunks until the server answers or hangs up, or `most` bytes are sent: its status, if there is one, and the bytes sent."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.putrequest(method, path)
    connection.putheader("Transfer-Encoding", "chunked")
    connection.putheader("Content-Type", "application/json")
    if who:
        connection.putheader(
            "Authorization", "Basic " + base64.b64encode(f"{who}:{PASSWORDS[who]}".encode()).decode()
        )
    connection.endheaders()
    piece, sent = b"x" * (1 << 20), 0
    try:
        while sent < most:
            connection.send(b"%x\r\n%s\r\n" % (len(piece), piece))
            sent += len(piece)
        return connection.getresponse().status, sent
    except OSError:
        try:
            return connection.getresponse().status, sent
        except (OSError, http.client.HTTPException):
            return None, sent
    finally:
        connection.close()


def latencies(server: Guarded, alices: Belongings, number: int = 30) -> list[float]:
    """Seconds that Alice waits for the answers to a few requests, of MLflow's two kinds of routes."""
    waited = []
    with requests.Session() as session:
        session.auth = ("alice", PASSWORDS["alice"])
        for n in range(number):
            begun = time.perf_counter()
            path = f"{API}/runs/get?run_id={alices.run}" if n % 2 else f"{PROXY}/{alices.artifact}"
            assert session.get(server.uri + path, timeout=30).status_code == 200
            waited.append(time.perf_counter() - begun)
    return waited


def test_slow_clients_are_in_nobodys_way(server: Guarded, alices: Belongings) -> None:
    idle = statistics.median(latencies(server, alices))
    token = base64.b64encode(f"bob:{PASSWORDS['bob']}".encode())
    post = b"POST /api/2.0/mlflow/runs/search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100000\r\n"
    begun = [
        b"GET /api/2.0/mlflow/experiments/search HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ",
        post + b"\r\n{",
        post + b"Authorization: Basic " + token + b"\r\n\r\n{",
    ]
    slow = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(51)]
    done = threading.Event()

    def drip() -> None:
        for n, connection in enumerate(slow):
            connection.sendall(begun[n % len(begun)])
        while not done.wait(1):
            for connection in slow:
                connection.send(b"x")

    thread = threading.Thread(target=drip)
    thread.start()
    try:
        time.sleep(1)
        meanwhile = statistics.median(latencies(server, alices))
    finally:
        done.set()
        thread.join()
        for connection in slow:
            connection.close()
    print(f"median of a request: idle {idle * 1000:.1f} ms, with 51 slow clients {meanwhile * 1000:.1f} ms")
    assert meanwhile < 3 * idle + 0.05


def test_who_tries_passwords_is_in_nobodys_way(server: Guarded, alices: Belongings) -> None:
    """A wrong password costs 0.1 to 0.5 s of a core. MLflow alone spends them on the thread that all requests wait for."""
    idle = latencies(server, alices)
    ends = time.monotonic() + 4

    def guess(number: int) -> list[int]:
        statuses = []
        path = f"{PROXY}/{alices.artifact}" if number % 2 else f"{API}/runs/get?run_id={alices.run}"
        while time.monotonic() < ends:
            statuses.append(server.ask(None, "GET", path, auth=("alice", uuid.uuid4().hex)).status_code)
        return statuses

    with ThreadPoolExecutor(24) as threads:
        guesses = [threads.submit(guess, number) for number in range(24)]
        time.sleep(0.5)
        meanwhile = latencies(server, alices)
        answered = [status for guessed in guesses for status in guessed.result()]
    print(
        f"{answered.count(401)} passwords are refused, {answered.count(429)} put off; a request of Alice's takes, in ms:"
    )
    for what, waited in (("idle", idle), ("meanwhile", meanwhile)):
        print(f"{what}: median {statistics.median(waited) * 1000:.1f}, longest {max(waited) * 1000:.0f}")
    assert set(answered) == {401, 429}
    # Without the fence: the time of 24 hashes.
    assert statistics.median(meanwhile) < 3 * statistics.median(idle) + 0.5
    # The same wrong password again, as a client with an old one asks, costs nothing.
    stale = {"auth": ("alice", "her-password-of-last-year")}
    server.ask(None, "GET", f"{API}/runs/get", **stale)
    begun = time.perf_counter()
    assert all(server.ask(None, "GET", f"{API}/runs/get", **stale).status_code == 401 for _ in range(10))
    assert time.perf_counter() - begun < 1


def test_a_password_that_has_changed_is_the_old_one_no_more(server: Guarded) -> None:
    """The fence remembers passwords that it has let through, and MLflow decides."""
    carol, new = ("carol", "carol-password-1"), ("carol", "carol-password-2")
    server.told("admin", "POST", f"{API}/users/create", username="carol", password=carol[1])
    who = f"{API}/users/current"
    assert server.ask(None, "GET", who, auth=carol).ok
    server.told("admin", "PATCH", f"{API}/users/update-password", username="carol", password=new[1])
    # The server's one worker has heard of it.
    assert server.ask(None, "GET", who, auth=carol).status_code == 401
    assert server.ask(None, "GET", who, auth=new).ok


def test_many_requests_at_once_with_one_password_wait_for_one_check(server: Guarded) -> None:
    """As fifty programs of one account ask, when its password has to be checked again."""
    dora = ("dora", "dora-password-1")
    server.told("admin", "POST", f"{API}/users/create", username=dora[0], password=dora[1])
    with ThreadPoolExecutor(50) as threads:
        asked = [
            threads.submit(server.ask, None, "GET", f"{API}/users/current", auth=dora) for _ in range(50)
        ]
        assert {one.result().status_code for one in asked} == {200}


def test_no_secret_in_the_log_nor_in_the_list_of_processes(server: Guarded) -> None:
    """After all that the tests above have asked, rightly and wrongly."""
    family = [
        psutil.Process(server.process.pid),
        *psutil.Process(server.process.pid).children(recursive=True),
    ]
    said = server.log + "\n".join(" ".join(member.cmdline()) for member in family)
    tokens = [base64.b64encode(f"{who}:{word}".encode()).decode() for who, word in PASSWORDS.items()]
    stored = str(server.rows())
    for secret in (*PASSWORDS.values(), SECRET_KEY, *tokens, "carol-password-1", "her-password-of-last-year"):
        assert secret not in said
        assert secret not in stored

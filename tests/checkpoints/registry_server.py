"""A small real HTTP server that speaks as much of MLflow's REST API as a download needs, and can do wrong with it."""

from __future__ import annotations

import json
import posixpath
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

_ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts"
_ROOT = "1/models/m-1/artifacts"


class RegistryServer:
    """It has the version 1 of `mine`, whose files are those of `folder`; its tags may be changed.

    `requests` counts how often each file was asked for. A file in `cut` breaks off in the middle; one in `held` stops there until
    it is taken out. `listed` replaces the names that are listed at the top.
    """

    def __init__(self, folder: Path, tags: dict[str, str]) -> None:
        self.folder = folder
        self.tags = tags
        self.requests: Counter[str] = Counter()
        self.cut: set[str] = set()
        self.held: set[str] = set()
        self.reached_hold = threading.Event()
        self.listed: list[dict[str, Any]] | None = None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer._answer(self)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (so in its base)
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.uri = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.held.clear()
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        url = urlsplit(handler.path)
        if url.path == _ARTIFACTS:
            path = parse_qs(url.query)["path"][0].removeprefix(_ROOT).strip("/")
            _send_json(handler, {"files": self._list(path)})
        elif url.path.startswith(_ARTIFACTS):
            self._send_file(handler, unquote(url.path).removeprefix(f"{_ARTIFACTS}/{_ROOT}/"))
        elif url.path == "/health":
            _send(handler, b"OK")
        elif (answer := self._registry().get(posixpath.relpath(url.path, "/api/2.0/mlflow"))) is not None:
            _send_json(handler, answer)
        else:
            _send(handler, b"{}", status=404)

    def _registry(self) -> dict[str, Any]:
        version = {
            "name": "mine",
            "version": "1",
            "creation_timestamp": 1,
            "status": "READY",
            "run_id": "0" * 32,
            "source": "models:/m-1",
            "tags": [{"key": key, "value": value} for key, value in self.tags.items()],
        }
        model = {"name": "mine", "aliases": [{"alias": "best", "version": "1"}]}
        return {
            "registered-models/get": {"registered_model": model},
            "registered-models/search": {"registered_models": [model]},
            "model-versions/search": {"model_versions": [version]},
            "model-versions/get": {"model_version": version},
            "model-versions/get-download-uri": {"artifact_uri": f"mlflow-artifacts:/{_ROOT}"},
        }

    def _list(self, path: str) -> list[dict[str, Any]]:
        if self.listed is not None and not path:
            return self.listed
        folder = self.folder / path
        return [
            {"path": file.name, "is_dir": file.is_dir(), "file_size": file.stat().st_size}
            for file in (sorted(folder.iterdir()) if folder.is_dir() else [])
        ]

    def _send_file(self, handler: BaseHTTPRequestHandler, path: str) -> None:
        self.requests[path] += 1
        content = (self.folder / path).read_bytes()
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        half = len(content) // 2
        handler.wfile.write(content[:half])
        handler.wfile.flush()
        if path in self.held:
            self.reached_hold.set()
            while path in self.held:
                threading.Event().wait(0.05)
        if path in self.cut:
            handler.close_connection = True
            return
        handler.wfile.write(content[half:])


def _send_json(handler: BaseHTTPRequestHandler, value: Any) -> None:
    _send(handler, json.dumps(value).encode())


def _send(handler: BaseHTTPRequestHandler, body: bytes, status: int = 200) -> None:
    handler.send_response(status)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)

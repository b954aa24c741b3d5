"""The tracking server, asked with MLflow's own settings, reading alone."""

from __future__ import annotations

import base64
import importlib.metadata
import ipaddress
import os
import re
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from lossy_mlflow.errors import LossyError, UnreachableError
from lossy_mlflow.service.doctor.report import Book, Seen, State
from lossy_mlflow.service.doctor.tls import certificate

if TYPE_CHECKING:
    import requests

_WITHIN_S = 5
# Times are logged by this machine's clock: a few seconds are seen in no plot.
_SKEW_S = 5.0
_SEARCH = "/api/2.0/mlflow/experiments/search"
_PROXY = "/api/2.0/mlflow-artifacts/artifacts"
_HOW_TO_SEND_SOME = (
    "export MLFLOW_TRACKING_USERNAME=... MLFLOW_TRACKING_PASSWORD=...    or ~/.mlflow/credentials"
)
_BEHIND = ("clock", "credentials", "version", "artifacts")


def look_at_server(book: Book, uri: str) -> None:
    server = _Server(uri)
    if not book.look("server", server.address):
        book.skip(("reachable", *_BEHIND), "the address can't be read")
        return
    if uri.startswith("https://") and not book.look(
        "certificate", lambda: certificate(uri), silence=UnreachableError
    ):
        book.skip(("reachable", *_BEHIND), "there is no TLS connection")
        return
    if not book.look("reachable", server.reachable, silence=UnreachableError):
        book.skip(_BEHIND, "the server can't be reached")
        return
    book.look("clock", server.clock)
    if not book.look("credentials", server.credentials, silence=UnreachableError):
        book.skip(("version", "artifacts"), "the server answers no questions")
        return
    book.look("version", server.version)
    book.look("artifacts", server.artifacts)


class _Server:
    """What it has answered so far, which the later checks need."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._skew_s: float | None = None
        self._newest: dict[str, Any] | None = None

    def address(self) -> Seen:
        from lossy_mlflow.tracking.connection import check_address

        check_address(self._uri)
        named = os.environ.get("MLFLOW_TRACKING_URI", "")
        way = ", by way of the outbox" if named.startswith("outbox+") else ""
        return Seen(State.OK, f"{self._uri} (MLFLOW_TRACKING_URI{way})")

    def reachable(self) -> Seen:
        begin = time.time()
        reply = self._ask("/health")
        took = time.time() - begin
        if reply.is_redirect:
            target = urljoin(reply.url, reply.headers["Location"]).partition("?")[0].removesuffix("/health")
            raise LossyError(
                f"it sends requests on to {target}, and what is logged gets lost on such a way",
                f"export MLFLOW_TRACKING_URI={target}",
            )
        if not reply.ok:
            raise UnreachableError(
                f"something answers {reply.status_code} to /health: no MLflow, or a proxy without one behind it",
                "Look whether host, port and path are right, and at the log of the proxy and of mlflow server.",
            )
        from lossy_mlflow.tracking.connection import server_time

        there = server_time(reply)
        self._skew_s = None if there is None else there - (begin + took / 2)
        way = f", through the proxy {proxy}" if (proxy := _proxy_to(self._uri)) else ""
        return Seen(State.OK, f"answers in {took * 1000:.0f} ms{way}")

    def clock(self) -> Seen:
        if self._skew_s is None:
            return Seen(State.SKIPPED, "not looked at: the server's answer has no Date")
        if abs(self._skew_s) < _SKEW_S:
            return Seen(State.OK, "this machine's and the server's agree to about a second")
        relation = "ahead of" if self._skew_s < 0 else "behind"
        return Seen(
            State.WARN,
            f"this machine's clock is {abs(self._skew_s):.0f} s {relation} the server's: metrics and runs are dated wrongly",
            "Set the one that is wrong by NTP: timedatectl set-ntp true",
        )

    def credentials(self) -> Seen:
        reply = self._ask(_SEARCH, params={"max_results": "1", "order_by": "creation_time DESC"})
        sent = _sent_with(reply)
        if reply.status_code == 401:
            if not sent:
                raise LossyError(
                    "the server asks for a user and a password, and none were sent (401)",
                    _HOW_TO_SEND_SOME,
                )
            raise LossyError(
                f"the server doesn't know {sent} with that password (401); {_where_from(self._uri)}",
                "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD right, or ask who runs the server for a new one.",
            )
        if reply.status_code == 403 and "Host header" in reply.text:
            host = urlsplit(self._uri).hostname
            raise LossyError(
                f"the server answers to other names than {host} alone (403)",
                f"On the server: mlflow server --allowed-hosts {host},...    or MLFLOW_SERVER_ALLOWED_HOSTS",
            )
        if reply.status_code == 403 and sent:
            raise LossyError(
                f"{sent} is known, but may not look at experiments (403)",
                "Ask who runs the server for the right.",
            )
        if reply.status_code == 403:
            raise LossyError("who sends no credentials may not look at experiments (403)", _HOW_TO_SEND_SOME)
        self._newest = _first_experiment(reply)
        if not sent:
            return Seen(State.OK, "none sent, and none asked for: who reaches the server may do everything")
        if self._uri.startswith("http://") and not _is_local(self._uri):
            return Seen(
                State.WARN,
                f"{sent} is let in, but the password goes over the network for all to read",
                "Use the server's https:// address.",
            )
        known = self._ask("/api/2.0/mlflow/users/current").status_code == 200
        return Seen(
            State.OK,
            f"signed in as {sent}; {_where_from(self._uri)}"
            if known
            else f"{sent} is let in, though MLflow itself asks for none; {_where_from(self._uri)}",
        )

    def version(self) -> Seen:
        reply = self._ask("/version")
        found = re.match(r"(\d+)\.(\d+)", reply.text)
        if reply.status_code != 200 or not found:
            raise LossyError(
                f"what answers {reply.status_code} to /version is no MLflow server: {_words(reply)}",
                "Look whether host, port and path of MLFLOW_TRACKING_URI are right.",
            )
        ours = importlib.metadata.version("mlflow")
        theirs, here = (int(found[1]), int(found[2])), tuple(int(part) for part in ours.split(".")[:2])
        said = f"MLflow {reply.text.strip()[:40]} on the server, {ours} here"
        if theirs[0] != here[0]:
            raise LossyError(
                said, f"Both must be of one major version, here: pip install 'mlflow=={theirs[0]}.*'"
            )
        if theirs < here:
            return Seen(
                State.WARN,
                f"{said}: the older server may not know all that is asked of it",
                "Upgrade the server; or here: pip install "
                f"'mlflow=={theirs[0]}.{theirs[1]}.*', as far as lossy takes that.",
            )
        return Seen(State.OK, said)

    def artifacts(self) -> Seen:
        location = str(self._newest["artifact_location"]) if self._newest else ""
        folder = urlsplit(location).path.strip("/")
        # A folder that isn't there costs nothing to list, and makes the server ask its store.
        path = f"{folder}/lossy-doctor" if location.startswith("mlflow-artifacts:") else "lossy-doctor"
        reply = self._ask(_PROXY, params={"path": path})
        if reply.status_code == 503 and "serve-artifacts" in reply.text:
            raise LossyError(
                "the server doesn't serve artifacts: files go from here to its store, for which this machine needs keys",
                "On the server: mlflow server --serve-artifacts --artifacts-destination ...",
            )
        if reply.status_code == 403:
            return Seen(State.SKIPPED, "not looked at: there is no experiment yet that this user may look at")
        if reply.status_code != 200:
            raise LossyError(
                f"the server's artifact store doesn't answer it ({reply.status_code}: {_words(reply)})",
                "On the server: look at its log, and at the keys and the address of --artifacts-destination.",
            )
        if location and not location.startswith("mlflow-artifacts:"):
            return Seen(
                State.WARN,
                f"the server serves artifacts, but the newest experiment ({self._newest_name()}) keeps its own in {location}:"
                " this machine must reach that place itself",
                "On the server: leave out --default-artifact-root. An experiment keeps its place: make a new one.",
            )
        return Seen(State.OK, "served by the server: this machine needs no keys of its store")

    def _newest_name(self) -> str:
        return str(self._newest["name"]) if self._newest else ""

    def _ask(self, path: str, **arguments: Any) -> requests.Response:
        from lossy_mlflow.tracking.connection import ask

        return ask(self._uri, path, timeout=_WITHIN_S, allow_redirects=False, **arguments)


def _first_experiment(reply: requests.Response) -> dict[str, Any] | None:
    try:
        found = reply.json()
    except ValueError:
        found = None
    if reply.status_code != 200 or not isinstance(found, dict):
        raise LossyError(
            f"what answers {reply.status_code} to a search of experiments isn't MLflow, or isn't well: {_words(reply)}",
            "Look whether host, port and path of MLFLOW_TRACKING_URI are right, and at the server's log.",
        )
    return next(iter(found.get("experiments", [])), None)


def _sent_with(reply: requests.Response) -> str:
    """Who the request said that it came from; '' where it said nothing. An address or a .netrc may have named one."""
    kind, _, value = str(reply.request.headers.get("Authorization", "")).partition(" ")
    if kind.lower() != "basic":
        return "the bearer of the token" if kind.lower() == "bearer" else kind and "who signed the request"
    return repr(base64.b64decode(value).decode(errors="replace").partition(":")[0])


def _where_from(uri: str) -> str:
    """Where what was sent stands, by all that can be known."""
    if urlsplit(uri).username:
        return "from MLFLOW_TRACKING_URI itself"
    names = [
        name
        for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
        if os.environ.get(name)
    ]
    return f"from {' and '.join(names)}" if names else "from ~/.mlflow/credentials or ~/.netrc"


def _words(reply: requests.Response) -> str:
    """The beginning of what it says, in one line."""
    try:
        text = str(reply.json()["message"])
    except (ValueError, KeyError, TypeError):
        text = re.sub(r"<[^>]*>", " ", reply.text)
    return " ".join(text.split())[:160] or "nothing"


def _proxy_to(uri: str) -> str:
    import requests

    found: str = requests.utils.get_environ_proxies(uri).get(urlsplit(uri).scheme, "")
    return found


def _is_local(uri: str) -> bool:
    host = urlsplit(uri).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

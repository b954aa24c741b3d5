"""The server's REST API as far as delivery needs it, without importing mlflow: a sender stays small.

Credentials and certificates come from MLflow's own environment variables, else from its ~/.mlflow/credentials.
"""

from __future__ import annotations

import configparser
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

import requests

from lossy_mlflow.outbox.address import credentials_in, server_uri

_API = "/api/2.0/mlflow"
_ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts"
# The server says with these that the same request will never do; whatever else it says may pass.
_FINAL = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")
# Not a word about this request: too many, no such user, no server behind the proxy.
_SERVER_WIDE = (401, 429, 502, 503, 504)
_TRUE = ("true", "1")


class WaitingError(Exception):
    """It can't be taken now: the server is away or overloaded, refuses this user, or somebody's hand is needed.

    `everything`: nothing else for this server can be delivered now either.
    """

    def __init__(self, why: str, *, everything: bool = False) -> None:
        super().__init__(why)
        self.everything = everything


class RefusedError(Exception):
    """The server will never take it, in its own words."""


class MissingError(Exception):
    """The server doesn't know the run or the experiment."""


class ExistsError(Exception):
    """What was to be made is there already."""


class Api:
    """One tracking server. Every method raises one of the four errors above."""

    def __init__(self, uri: str, timeout: tuple[float, float] = (5, 60)) -> None:
        """`timeout`: seconds to connect, and between two pieces of an answer."""
        self._uri = server_uri(uri)
        self._timeout = timeout
        self._session = _session(self._uri, credentials_in(uri))
        self._heard = float("-inf")

    @property
    def silent_s(self) -> float:
        """For how long the server has taken nothing; infinite at first."""
        return time.monotonic() - self._heard

    def post(self, method: str, body: dict[str, Any]) -> dict[str, Any]:
        return self._json("POST", f"{_API}/{method}", json=body)

    def get(self, method: str, query: dict[str, Any]) -> dict[str, Any]:
        return self._json("GET", f"{_API}/{method}", params=query)

    def put_artifact(self, path: str, content: BinaryIO) -> None:
        """Store `content` under `path` of the server's artifact store, piece by piece."""
        self._json("PUT", f"{_ARTIFACTS}/{quote(path)}", data=content)

    def _json(self, verb: str, path: str, **arguments: Any) -> dict[str, Any]:
        try:
            # A redirect would turn a POST into a GET, and lead to a host that nobody named.
            reply = self._session.request(
                verb, self._uri + path, timeout=self._timeout, allow_redirects=False, **arguments
            )
            content = reply.json() if reply.content else {}
        except requests.exceptions.JSONDecodeError:
            content = None
        except (requests.RequestException, OSError) as error:
            raise WaitingError(in_short(error), everything=True) from error
        if reply.ok and isinstance(content, dict) and reply.status_code < 300:
            self._heard = time.monotonic()
            return content
        code = content.get("error_code", "") if isinstance(content, dict) else ""
        words = content.get("message", "") if isinstance(content, dict) else ""
        if code == "RESOURCE_ALREADY_EXISTS":
            raise ExistsError(words)
        if reply.status_code == 400 and code in _FINAL:
            raise RefusedError(words)
        if reply.status_code == 404 and code == "RESOURCE_DOES_NOT_EXIST":
            raise MissingError(words)
        why = f"the server answers {reply.status_code} {code or reply.reason}: {words}"[:500]
        raise WaitingError(why, everything=reply.status_code in _SERVER_WIDE)


def _session(uri: str, named: Mapping[str, str]) -> requests.Session:
    """`named`: the user and password that the address itself has, if any; they come first."""
    session = requests.Session()
    # The environment's proxies and certificates, read once: for every request anew it would be half the sender's work.
    session.proxies.update(requests.utils.get_environ_proxies(uri))
    session.verify = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or True
    session.trust_env = False
    username, password = _username_and_password(named)
    # In MLflow's own order.
    if username and password:
        session.auth = (username, password)
    elif token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        session.headers["Authorization"] = f"Bearer {token}"
    if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in _TRUE:
        session.verify = False
    elif certificate := os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH"):
        session.verify = certificate
    session.cert = os.environ.get("MLFLOW_TRACKING_CLIENT_CERT_PATH") or None
    return session


def _username_and_password(named: Mapping[str, str]) -> tuple[str | None, str | None]:
    file = configparser.ConfigParser(interpolation=None)
    file.read(Path("~/.mlflow/credentials").expanduser())
    section = dict(file.items("mlflow")) if file.has_section("mlflow") else {}
    names = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
    username, password = (
        named.get(name) or os.environ.get(name) or section.get(name.lower()) for name in names
    )
    return username, password


def in_short(error: BaseException) -> str:
    """The cause that a person knows ('Connection refused'), without the client's own wrapping."""
    text = str(error)
    found = re.search(r"\[Errno -?\d+\] ([^'\")]+)", text)
    if found:
        return found[1]
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    if isinstance(error, requests.exceptions.SSLError):
        return f"TLS: {text.split('SSLError(')[-1][:200]}"
    return f"{type(error).__name__}: {text[:200]}"

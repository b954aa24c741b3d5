"""The server's certificate, judged as MLflow's own requests judge it."""

from __future__ import annotations

import socket
import ssl
import time
from urllib.parse import urlsplit

from lossy_mlflow.errors import LossyError, UnreachableError
from lossy_mlflow.service.doctor.report import Seen, State

_WITHIN_S = 5
_SOON_DAYS = 14
_EXPIRED, _OTHER_NAME = 10, (62, 64)


def certificate(uri: str) -> Seen:
    """Raises UnreachableError where there is no connection at all, LossyError where the certificate is refused."""
    import requests
    from mlflow.utils.credentials import get_default_host_creds

    if requests.utils.get_environ_proxies(uri).get("https"):
        return Seen(State.SKIPPED, "not looked at: the way to the server leads through a proxy (HTTPS_PROXY)")
    parts = urlsplit(uri)
    host, port = str(parts.hostname), parts.port or 443
    # MLFLOW_TRACKING_INSECURE_TLS and _SERVER_CERT_PATH, REQUESTS_CA_BUNDLE, or what requests brings.
    verify = get_default_host_creds(uri).verify
    verify = requests.Session().merge_environment_settings(uri, {}, False, verify, None)["verify"]
    if not verify:
        return Seen(
            State.WARN,
            "it isn't looked at (MLFLOW_TRACKING_INSECURE_TLS): whoever is on the way can read and alter everything",
            "unset MLFLOW_TRACKING_INSECURE_TLS; export MLFLOW_TRACKING_SERVER_CERT_PATH=THE_SERVERS_CA.pem",
        )
    authorities = requests.utils.DEFAULT_CA_BUNDLE_PATH if verify is True else str(verify)
    try:
        context = ssl.create_default_context(cafile=authorities)
    except (OSError, ssl.SSLError) as error:
        raise LossyError(
            f"the certificates in {authorities} can't be read: {error.strerror or error}",
            "Set MLFLOW_TRACKING_SERVER_CERT_PATH (or REQUESTS_CA_BUNDLE) to a file of PEM certificates.",
        ) from None
    try:
        with (
            socket.create_connection((host, port), timeout=_WITHIN_S) as plain,
            context.wrap_socket(plain, server_hostname=host) as connection,
        ):
            found = connection.getpeercert() or {}
    except ssl.SSLCertVerificationError as error:
        raise LossyError(
            f"it is refused: {error.verify_message}", _what_to_do(error.verify_code, host)
        ) from None
    except ssl.SSLError as error:
        raise LossyError(
            f"{host}:{port} doesn't speak TLS as it should: {error.reason or error}",
            "If it is a plain server: export MLFLOW_TRACKING_URI=http://...",
        ) from None
    except OSError as error:
        raise UnreachableError(
            f"{host}:{port} doesn't answer ({error.strerror or error})",
            "Start it, or name another: export MLFLOW_TRACKING_URI=...",
        ) from None
    return _by_its_age(ssl.cert_time_to_seconds(str(found["notAfter"])))


def _by_its_age(ends: float) -> Seen:
    days, date = (ends - time.time()) / 86400, time.strftime("%Y-%m-%d", time.gmtime(ends))
    if days < _SOON_DAYS:
        return Seen(
            State.WARN, f"good, for {days:.1f} days still ({date})", "Who runs the server must renew it."
        )
    return Seen(State.OK, f"good until {date}, {days:.0f} days")


def _what_to_do(code: int, host: str) -> str:
    if code == _EXPIRED:
        return "Who runs the server must renew it; or this machine's clock is wrong: date"
    if code in _OTHER_NAME:
        return (
            f"Name the server in MLFLOW_TRACKING_URI as its certificate does; or let one be made for {host}."
        )
    return "export MLFLOW_TRACKING_SERVER_CERT_PATH=CA.pem, the certificate of whoever signed it: ask who runs the server."

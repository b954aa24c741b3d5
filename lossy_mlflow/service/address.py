"""Where a server listens: whether it can, and whether it answers there."""

from __future__ import annotations

import contextlib
import errno
import socket
import stat
from pathlib import Path
from typing import Any

from lossy_mlflow.errors import ConflictError, LossyError, NotFoundError, UsageError
from lossy_mlflow.service.settings import Serving

_ANSWER_WITHIN_S = 5
# What the kernel keeps of a socket's path.
_PATH_LENGTH = 107


def check_address(serving: Serving) -> str:
    """That a server can listen there. Raises ConflictError with who does already; UsageError for no address of this machine."""
    if serving.socket:
        return _check_socket(serving.socket)
    try:
        # A name may stand for several, of which the server takes all.
        for place in socket.getaddrinfo(
            serving.host, serving.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            _bind(*place)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConflictError(
                f"Port {serving.port} of {serving.host} is in use{_by_whom(serving.port)}.",
                f"Use that server, end it, or take another port: --port {serving.port + 1}",
            ) from None
        reason = error.strerror or str(error)
        raise UsageError(
            f"{serving.host}, port {serving.port}, is no address to listen at: {reason}.",
            "Name one of this machine: --host 127.0.0.1 --port 5000",
        ) from None
    return f"{serving.host}, port {serving.port}, is free"


def _bind(family: int, kind: int, protocol: int, _name: str, address: Any) -> None:
    try:
        probe = socket.socket(family, kind, protocol)
    except OSError:
        return  # a family that this system hasn't, which the server passes over
    with probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)


def remove_stale(path: Path) -> None:
    """Take away a Unix socket that nobody listens at any more."""
    if _is_socket(path) and not _connects(path):
        path.unlink(missing_ok=True)


def answers(serving: Serving) -> bool:
    """Whether a server of MLflow's there says that it is well."""
    with contextlib.suppress(OSError), _connected(serving) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        return b" 200 " in connection.recv(1024).partition(b"\r\n")[0]
    return False


def _connected(serving: Serving) -> socket.socket:
    if not serving.socket:
        return socket.create_connection((serving.own_host, serving.port), timeout=_ANSWER_WITHIN_S)
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(_ANSWER_WITHIN_S)
    try:
        connection.connect(str(serving.socket))
    except OSError:
        connection.close()
        raise
    return connection


def _check_socket(path: Path) -> str:
    if len(str(path).encode()) > _PATH_LENGTH:
        raise UsageError(
            f"The path of the socket has more than {_PATH_LENGTH} bytes: {path}", "Name a shorter one."
        )
    if not path.parent.is_dir():
        raise NotFoundError(f"There is no folder {path.parent} for the socket.", f"mkdir -p {path.parent}")
    if _is_socket(path):
        if _connects(path):
            raise ConflictError(
                f"A program listens at {path}.", "End it, or name another socket: --socket PATH"
            )
    elif path.exists():
        raise ConflictError(f"{path} is there, and no socket.", "Name another: --socket PATH")
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe_path = path.with_name(".lossy")
            probe.bind(str(probe_path))
        probe_path.unlink()
    except OSError as error:
        raise LossyError(
            f"No socket can be made in {path.parent}: {error.strerror}.", "Name another: --socket PATH"
        ) from None
    return f"{path} is free"


def _is_socket(path: Path) -> bool:
    try:
        return stat.S_ISSOCK(path.stat().st_mode)
    except FileNotFoundError:
        return False


def _connects(path: Path) -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_ANSWER_WITHIN_S)
        probe.connect(str(path))
        return True
    return False


def _by_whom(port: int) -> str:
    """' by python, process 123', as far as this user may know."""
    import psutil

    with contextlib.suppress(psutil.Error):
        for connection in psutil.net_connections(kind="tcp"):
            listens = connection.status == psutil.CONN_LISTEN and connection.laddr
            if listens and listens.port == port and connection.pid:
                return f" by {psutil.Process(connection.pid).name()}, process {connection.pid}"
    return ""

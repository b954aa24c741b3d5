"""A TCP proxy before a real server, which can do to a connection whatever networks and servers do."""

from __future__ import annotations

import contextlib
import email.utils
import math
import random
import re
import select
import socket
import threading
import time
from typing import Literal
from urllib.parse import urlsplit

Mode = Literal["pass", "forbid", "refuse", "stall", "reset", "cut", "error", "swallow"]

_FORBIDDEN = (
    b"HTTP/1.1 403 Forbidden\r\nContent-Type: text/plain\r\nContent-Length: 17\r\n\r\nPermission denied"
)
_ERROR = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 4\r\nConnection: close\r\n\r\noops"


class Proxy:
    """`mode` may be changed at any time and holds for what comes next.

    refuse: no connection. stall: connections are taken, nothing is answered. reset: the connection breaks at once.
    cut: the answer breaks off in the middle. error: 500 without asking the server. swallow: the server does it, the answer
    never arrives. forbid: MLflow's answer to whom a right is missing. From the request of the number `later_from` on, the
    mode is `later`. `clock_ahead_s`: what the server's clock is ahead of this machine's, as far as its answers tell.
    """

    def __init__(self, server: str, seed: int = 0) -> None:
        parts = urlsplit(server)
        assert parts.hostname
        assert parts.port
        self._server = (parts.hostname, parts.port)
        self.mode: Mode = "pass"
        self._random = random.Random(seed)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.requests = 0
        self.later: Mode = "refuse"
        self.later_from: float = math.inf
        self.clock_ahead_s = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            if self.mode == "refuse":
                _reset(client)
                return
            with socket.create_connection(self._server) as server:
                # The server closes a connection that nobody uses for 5 s: the client must hear of it, or it would wait for an
                # answer to what it sends there next.
                while server not in select.select([client, server], [], [])[0]:
                    request = _message(client)
                    if not request:
                        return
                    self.requests += 1
                    if self.requests >= self.later_from:
                        self.mode = self.later
                    if not self._answer(client, server, request):
                        return

    def _answer(self, client: socket.socket, server: socket.socket, request: bytes) -> bool:
        """One request and its answer, as `mode` has it; returns whether the connection goes on."""
        mode = self.mode
        if mode == "stall":
            # Until the client loses its patience, and closes.
            client.recv(1)
            return False
        if mode in ("refuse", "reset"):
            _reset(client)
            return False
        if mode == "forbid":
            client.sendall(_FORBIDDEN)
            return True
        if mode == "error":
            client.sendall(_ERROR)
            return False
        server.sendall(request)
        answer = _message(server)
        if mode == "swallow":
            _reset(client)
            return False
        if mode == "cut":
            client.sendall(answer[: self._random.randrange(1, len(answer))])
            _reset(client)
            return False
        client.sendall(_with_clock(answer, self.clock_ahead_s))
        return True


def _message(connection: socket.socket) -> bytes:
    """One HTTP message, whole; empty where the connection was closed."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(65536)
        if not more:
            return b""
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    headers = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
    if headers.get(b"transfer-encoding") == b"chunked":
        while not body.endswith(b"0\r\n\r\n"):
            body += connection.recv(65536)
    length = int(headers.get(b"content-length", 0))
    while len(body) < length:
        more = connection.recv(65536)
        if not more:
            return b""
        body += more
    return head + b"\r\n\r\n" + body


def _with_clock(answer: bytes, ahead_s: int) -> bytes:
    """The same answer as of a server whose clock is ahead of this machine's (or behind it, if negative)."""
    date = email.utils.formatdate(time.time() + ahead_s, usegmt=True).encode()
    return re.sub(rb"(?i)\r\ndate: [^\r]+", b"\r\ndate: " + date, answer, count=1) if ahead_s else answer


def _reset(connection: socket.socket) -> None:
    """Close so that the other end sees a reset."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    connection.close()

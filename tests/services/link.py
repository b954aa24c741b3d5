"""A network cable between two programs, that can be cut: bytes pass, or nothing does, or nobody is there."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Literal

State = Literal["whole", "silent", "refused"]


class Link:
    """Connections to `port` of this machine go on to `to`.

    silent: no byte passes, and nobody is told. refused: connections break, and new ones are refused.
    """

    def __init__(self, to: int) -> None:
        self._to = to
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        self.port = self._listener.getsockname()[1]
        self._passes = threading.Event()
        self._passes.set()
        self._refuses = False
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def set(self, state: State) -> None:
        self._refuses = state == "refused"
        if state == "silent":
            self._passes.clear()
        else:
            self._passes.set()
        if state == "refused":
            for end in list(self._open):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.close()
        self.set("refused")

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self._refuses:
                near.close()
                continue
            threading.Thread(target=self._connect, args=(near,), daemon=True).start()

    def _connect(self, near: socket.socket) -> None:
        self._passes.wait()
        try:
            far = socket.create_connection(("127.0.0.1", self._to))
        except OSError:
            near.close()
            return
        self._open |= {near, far}
        for here, there in ((near, far), (far, near)):
            threading.Thread(target=self._carry, args=(here, there), daemon=True).start()

    def _carry(self, here: socket.socket, there: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := here.recv(65536):
                self._passes.wait()
                there.sendall(data)
        # Each end closes what it wrote to; when both are through, both sockets are closed.
        for end, how in ((there, socket.SHUT_WR), (here, socket.SHUT_RD)):
            with contextlib.suppress(OSError):
                end.shutdown(how)
        if here in self._open and there in self._open:
            self._open.discard(here)
        else:
            self._open.discard(there)
            here.close()
            there.close()

"""uvicorn's event loop where several workers share a TCP port: no answer waits for the acknowledgement of its headers."""

from __future__ import annotations

import asyncio
import socket
from typing import Any


class UndelayedLoop(asyncio.SelectorEventLoop):
    """asyncio sets TCP_NODELAY on connections of a socket that it has opened. The one that uvicorn shares among its workers is of
    protocol 0, so that asyncio doesn't know it for TCP, and each answer on a connection that stays open waits 44 ms. Connections
    take the setting from the socket that they were accepted at.
    """

    async def create_server(self, *args: Any, sock: socket.socket | None = None, **options: Any) -> Any:
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return await super().create_server(*args, sock=sock, **options)

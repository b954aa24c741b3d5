"""What keeps the answers of a server's worker from waiting: for an acknowledgement, and for Python's search for garbage."""

from __future__ import annotations

import asyncio
import gc
import socket
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from starlette.types import ASGIApp


def create_app() -> ASGIApp:
    """`mlflow server --app-name lossy-open`: MLflow's own app, open to whoever reaches it, in a worker that makes no pauses."""
    from mlflow.server.fastapi_app import app

    freeze_loaded()
    return app  # type: ignore[no-any-return]


def freeze_loaded() -> None:
    """Else Python looks again and again for garbage among all that MLflow has loaded, and a worker answers nobody for 0.25 s."""
    gc.collect()
    gc.freeze()


class UndelayedLoop(asyncio.SelectorEventLoop):
    """uvicorn's event loop where several workers share a TCP port: no answer waits for the acknowledgement of its headers.

    asyncio sets TCP_NODELAY on connections of a socket that it has opened. The one that uvicorn shares among its workers is of
    protocol 0, so that asyncio doesn't know it for TCP, and each answer on a connection that stays open waits 44 ms. Connections
    take the setting from the socket that they were accepted at.
    """

    async def create_server(self, *args: Any, sock: socket.socket | None = None, **options: Any) -> Any:
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return await super().create_server(*args, sock=sock, **options)

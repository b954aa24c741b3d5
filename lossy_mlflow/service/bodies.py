"""Bodies of requests, no larger than there is room for."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

# MLflow's largest batch is 1 MB, and it reads a body whole before it asks who sends it.
_BODY_BYTES = 16 << 20
_RESERVE_BYTES = 1 << 30
_CHECK_DISK_EVERY = 64 << 20

# Nothing else is read piece by piece: MLflow takes any other body into memory before it asks who sends it.
_UPLOAD = re.compile(r"/(ajax-)?api/2\.0/mlflow-artifacts/artifacts/")


class _TooMuch(Exception):  # noqa: N818
    """Ends the reading of a body; its sender has been answered."""


async def bounded(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """The app reads no larger body than there is room for, whatever its sender says or doesn't say of its length."""
    is_upload = scope["method"] == "PUT" and _UPLOAD.match(scope["path"]) is not None
    room = _free_bytes() if is_upload else _BODY_BYTES
    received = checked = 0
    refused = False

    async def refuse() -> None:
        nonlocal refused
        refused = True
        what = (
            (507, "There is no room for it on the server.")
            if is_upload
            else (413, "The request is too large.")
        )
        await answer(send, *what, {"Connection": "close"})

    async def counted() -> Message:
        nonlocal received, checked, room
        message = await receive()
        received += len(message.get("body", b""))
        if is_upload and received - checked > _CHECK_DISK_EVERY:
            checked, room = received, received + _free_bytes()
        if received > room:
            await refuse()
            raise _TooMuch
        return message

    async def unless_refused(message: Message) -> None:
        if refused:
            return
        if message["type"] == "http.response.start":
            # The UI is of this server's own pages: no other page is ever to read what a member's browser may.
            kept = [
                (name, value)
                for name, value in message["headers"]
                if not name.lower().startswith(b"access-control-")
            ]
            message = {**message, "headers": kept}
        await send(message)

    declared = dict(scope["headers"]).get(b"content-length", b"0")
    if declared.isdigit() and int(declared) > room:
        await refuse()
        return
    try:
        await app(scope, counted, unless_refused)
    except Exception:
        if not refused:
            raise


def _free_bytes() -> int:
    """What an upload may take: it lies in the folder of temporary files, or in the artifacts' own, before it is stored."""
    from mlflow.server.constants import ARTIFACTS_DESTINATION_ENV_VAR

    folders = [
        Path(tempfile.gettempdir()),
        Path(os.environ.get(ARTIFACTS_DESTINATION_ENV_VAR, "").removeprefix("file://")),
    ]
    usages = [shutil.disk_usage(folder) for folder in folders if folder.is_absolute() and folder.exists()]
    return min(max(0, usage.free - min(_RESERVE_BYTES, usage.total // 20)) for usage in usages)


async def answer(send: Send, status: int, text: str, headers: dict[str, str]) -> None:
    """Answer a request with a line of text."""
    fields = {"Content-Type": "text/plain; charset=utf-8", "Content-Length": str(len(text)), **headers}
    encoded = [(name.lower().encode(), value.encode()) for name, value in fields.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": text.encode()})

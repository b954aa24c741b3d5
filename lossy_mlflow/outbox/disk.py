"""How an outbox's files are written: private to the user, and so that no reader ever meets half of one."""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PRIVATE_FOLDER = 0o700


def make_private_folder(path: Path) -> None:
    path.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)


def open_private(path: Path, flags: int) -> int:
    """A descriptor of the file; one that this makes is the user's alone. Raises OSError."""
    return os.open(path, flags | os.O_CREAT, 0o600)


def write_whole(path: Path, content: Mapping[str, Any], *, durable: bool = False) -> None:
    """Replace the file at `path` by `content` as JSON, at once. `durable`: it is on the disk when this returns."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with os.fdopen(open_private(aside, os.O_WRONLY | os.O_EXCL), "w") as file:
            json.dump(content, file, indent=1)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        aside.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise
    if durable:
        sync(path.parent)


def sync(path: Path) -> None:
    """Bring a file's content, or a folder's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(path: Path) -> dict[str, Any] | None:
    """None where there is no such file, or one that another program has spoilt."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None

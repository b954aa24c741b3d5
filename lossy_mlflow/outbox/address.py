"""Which server an outbox URI means, and where on this machine what goes there is kept."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

import platformdirs

from lossy_mlflow.errors import UsageError

PREFIX = "outbox+"
FOLDER_VARIABLE = "LOSSY_OUTBOX_DIR"


def server_uri(uri: str) -> str:
    """The server's plain address: without `outbox+`, without a user and a password, without a slash at its end.

    Raises UsageError for an address in which a password would be taken for a part of the path.
    """
    parts = urlsplit(uri.removeprefix(PREFIX))
    if not _is_clear(parts):
        raise UsageError(
            f"The tracking server's address after {parts.scheme}:// can't be told from its user and password.",
            "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead, or write / ? # @ in them as %2F %3F %23 %40.",
        )
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl().rstrip("/")


def _is_clear(parts: SplitResult) -> bool:
    try:
        _ = parts.port
    except ValueError:
        return False
    return "@" not in parts.path + parts.query + parts.fragment


def credentials_in(uri: str) -> dict[str, str]:
    """The user and password that a URI names, as MLflow's environment variables; they are never written to a file."""
    parts = urlsplit(uri.removeprefix(PREFIX))
    named = {"MLFLOW_TRACKING_USERNAME": parts.username, "MLFLOW_TRACKING_PASSWORD": parts.password}
    return {name: unquote(value) for name, value in named.items() if value}


def outbox_root() -> Path:
    """LOSSY_OUTBOX_DIR, else the platform's folder for state; never a temporary one, which a restart would empty."""
    named = os.environ.get(FOLDER_VARIABLE)
    # Absolute: the sender works in another folder.
    return (
        Path(named).expanduser().absolute()
        if named
        else platformdirs.user_state_path("lossy_mlflow") / "outbox"
    )


def short_name(uri: str) -> str:
    """A file name for a server: readable, and another one for each server."""
    plain = server_uri(uri)
    readable = re.sub(r"[^A-Za-z0-9.-]+", "_", urlsplit(plain).netloc)[:60]
    return f"{readable}-{hashlib.sha256(plain.encode()).hexdigest()[:12]}"

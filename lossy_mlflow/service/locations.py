"""Where the artifact addresses that a database holds lie: in the server's own place of artifacts, in a folder, or elsewhere."""

from __future__ import annotations

import posixpath
from pathlib import Path
from urllib.parse import unquote, urlsplit

_PROXIED = "mlflow-artifacts"


def path_in_store(address: str, destination: str) -> str | None:
    """The path below `destination` (a folder, or s3://BUCKET/PATH) of what `address` names; None where it lies elsewhere.

    '' is the destination itself. No path that is given leads out of it.
    """
    if (parts := urlsplit(address)).scheme == _PROXIED:
        path = unquote(parts.path)
    elif (path_below := _below(address, destination)) is not None:
        path = path_below
    else:
        return None
    inside = posixpath.normpath(path.strip("/"))
    if inside == ".." or inside.startswith(("../", "/")) or "\0" in inside:
        return None
    return "" if inside == "." else inside


def folder_of(address: str) -> Path | None:
    """The folder that an address of a disk names (file:///..., or an absolute path); None for any other address."""
    if address.startswith("/"):
        return Path(address)
    parts = urlsplit(address)
    if parts.scheme == "file" and parts.netloc in ("", "localhost") and parts.path.startswith("/"):
        return Path(unquote(parts.path))
    return None


def _below(address: str, destination: str) -> str | None:
    if destination.startswith("s3://"):
        whole, base = address, destination.rstrip("/")
    else:
        folder = folder_of(address)
        if folder is None:
            return None
        whole, base = posixpath.normpath(str(folder)), posixpath.normpath(destination)
    if whole == base:
        return ""
    return whole[len(base) + 1 :] if whole.startswith(f"{base}/") else None

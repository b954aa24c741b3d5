"""A run's files on their way: to the server, or, where it doesn't take them itself, to its store by MLflow's own client.

    python -m lossy_mlflow.outbox.upload ARTIFACT_URI FILE PATH TRACKING_URI

Only that process imports mlflow, with whatever client the store needs and the user's own credentials for it.
"""

from __future__ import annotations

import posixpath
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lossy_mlflow.outbox.api import RefusedError, WaitingError
from lossy_mlflow.outbox.destination import Destination

_LIMIT_S = 3600


def send_file(to: Destination, content: Mapping[str, Any]) -> None:
    """Send the file of an artifact's record. Raises WaitingError, also where the folder doesn't have it whole."""
    path = to.folder.files / content["file"]
    if not path.exists() and to.folder.is_superseded(content, to.delivered.verdicts):
        return
    if not path.exists() or path.stat().st_size != content["size"]:
        raise WaitingError(f"the file {path} is not there, or not whole yet: copy the folder again")
    target = urlsplit(to.run().artifact_uri)
    if target.scheme != "mlflow-artifacts" or target.netloc:
        _upload_with_mlflow(to.run().artifact_uri, path, content["path"], to.uri)
        return
    try:
        with path.open("rb") as file:
            to.api.put_artifact(f"{target.path.lstrip('/')}/{content['path']}", file)
    except RefusedError as error:
        to.refuse("artifact", {"path": content["path"]}, error)


def _upload_with_mlflow(artifact_uri: str, file: Path, path: str, tracking_uri: str) -> None:
    """Store `file` as `path` below `artifact_uri`. Raises WaitingError with the setting of the server that mends it."""
    command = [
        sys.executable,
        "-m",
        "lossy_mlflow.outbox.upload",
        artifact_uri,
        str(file),
        path,
        tracking_uri,
    ]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_LIMIT_S, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        raise WaitingError(f"storing {path} in {artifact_uri} took more than an hour") from None
    if done.returncode:
        words = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise WaitingError(
            f"the server doesn't store artifacts itself, and from here {artifact_uri} can't be written: {words[0][:300]}"
            " (start the server with --serve-artifacts, or give this user the store's credentials)"
        )


def main() -> None:
    artifact_uri, file, path, tracking_uri = sys.argv[1:]
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    repository = get_artifact_repository(artifact_uri, tracking_uri=tracking_uri)
    with tempfile.TemporaryDirectory() as folder:
        # The store takes the file's own name.
        named = Path(folder, posixpath.basename(path))
        named.symlink_to(file)
        repository.log_artifact(str(named), posixpath.dirname(path) or None)


if __name__ == "__main__":
    main()

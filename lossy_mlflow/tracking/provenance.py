"""Where a run came from: the code's commit and what was changed in it, the packages, the log."""

from __future__ import annotations

import importlib.metadata
import logging
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lossy_mlflow.tracking.connection import without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient

_DIFF_LIMIT_BYTES = 5_000_000


class RedactingFormatter(logging.Formatter):
    """Leaves the passwords of URLs out of every line, tracebacks included."""

    def format(self, record: logging.LogRecord) -> str:
        return without_password(super().format(record))


def git_commit() -> str:
    """The commit of the repository around the working folder; '' where there is none."""
    return _git("rev-parse", "HEAD").strip()


def uncommitted_difference() -> str:
    """What `git diff HEAD` prints there, cut at 5 MB."""
    return _git("diff", "HEAD")[:_DIFF_LIMIT_BYTES]


def installed_packages() -> str:
    """The installed distributions, one `name==version` a line, as pip would freeze them."""
    found = {f"{item.name}=={item.version}" for item in importlib.metadata.distributions()}
    return "\n".join(sorted(found, key=str.lower)) + "\n"


def log_text(client: MlflowClient, run_id: str, text: str, artifact: str) -> None:
    """Store `text` as the file `artifact` of the run."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, Path(artifact).name)
        file.write_text(text)
        parent = str(Path(artifact).parent)
        client.log_artifact(run_id, str(file), None if parent == "." else parent)


@contextmanager
def log_file(name: str) -> Iterator[Path]:
    """A temporary file that takes every line of this package's log (INFO and above) for the length of the block."""
    logger = logging.getLogger("lossy_mlflow")
    before = logger.level
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, name)
        handler = logging.FileHandler(file)
        handler.setLevel(logging.INFO)
        handler.setFormatter(RedactingFormatter("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(min(before or logging.WARNING, logging.INFO))
        try:
            yield file
        finally:
            logger.removeHandler(handler)
            logger.setLevel(before)
            handler.close()


def _git(*words: str) -> str:
    try:
        done = subprocess.run(["git", *words], capture_output=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace") if done.returncode == 0 else ""

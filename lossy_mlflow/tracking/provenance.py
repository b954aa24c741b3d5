"""Where a run came from: the code's commit and what was changed in it, the packages, the log."""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import subprocess
import sys
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
    log_bytes(client, run_id, text.encode(), artifact)


def log_bytes(client: MlflowClient, run_id: str, content: bytes, artifact: str) -> None:
    """Store `content` as the file `artifact` of the run."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, Path(artifact).name)
        file.write_bytes(content)
        parent = str(Path(artifact).parent)
        client.log_artifact(run_id, str(file), None if parent == "." else parent)


class _QuietFileHandler(logging.FileHandler):
    """Where its disk is full, a line is not worth a traceback on the terminal each time."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


@contextmanager
def log_file() -> Iterator[Path]:
    """A temporary file, lossy.log, that takes every line of this package's log (INFO and above) for the length of the block.

    What its disk doesn't take waits in memory, a few thousand characters of it.
    """
    logger = logging.getLogger("lossy_mlflow")
    before = logger.level
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "lossy.log")
        handler = _QuietFileHandler(file)
        handler.setLevel(logging.INFO)
        handler.setFormatter(RedactingFormatter("%(asctime)s %(levelname)s %(message)s"))
        # The file alone must not hear of a full disk, which may be the file's own; where nobody listens, Python has this handler.
        outbox, stderr = logging.getLogger("lossy_mlflow.outbox"), logging.lastResort
        shown = stderr if stderr and not outbox.hasHandlers() else logging.NullHandler()
        outbox.addHandler(shown)
        logger.addHandler(handler)
        logger.setLevel(min(before or logging.WARNING, logging.INFO))
        try:
            yield file
        finally:
            outbox.removeHandler(shown)
            logger.removeHandler(handler)
            logger.setLevel(before)
            with contextlib.suppress(OSError):
                handler.close()


def _git(*words: str) -> str:
    try:
        done = subprocess.run(["git", *words], capture_output=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace") if done.returncode == 0 else ""

"""A place for what code logs that is only tried: no run of anybody's must get it, and none be made for it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow

from lossy_mlflow.tracking.connection import tracking_to

# MLflow wants to be told that one means it. A database would take seconds to make.
_ALLOW = "MLFLOW_ALLOW_FILE_STORE"


@contextmanager
def logged_nowhere() -> Iterator[None]:
    """What is logged through MLflow's own functions within the block is gone after it, whatever run is active around it."""
    allowed = os.environ.get(_ALLOW)
    os.environ[_ALLOW] = "true"
    try:
        # A folder that is not there yet: MLflow makes its default experiment in it.
        with (
            tempfile.TemporaryDirectory() as folder,
            tracking_to(Path(folder, "runs").as_uri()),
            mlflow.start_run(experiment_id="0", nested=True),
        ):
            yield
    finally:
        if allowed is None:
            del os.environ[_ALLOW]
        else:
            os.environ[_ALLOW] = allowed

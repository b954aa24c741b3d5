"""The labels that have finished evaluations, for a shell that completes a word: at once and without mlflow, or not at all."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from lossy_mlflow.outbox.address import PREFIX
from lossy_mlflow.tracking.connection import is_server, sqlite_file

# Seconds to connect, and for each of two answers: whoever has pressed a key waits no longer.
_TIMEOUT = (1.0, 2.0)
_NEWEST = 200
_LABELS = """
    select distinct label.value from runs
    join tags kind on kind.run_uuid = runs.run_uuid and kind.key = 'kind' and kind.value = 'evaluate'
    join tags label on label.run_uuid = runs.run_uuid and label.key = 'label'
    where runs.status = 'FINISHED' and runs.lifecycle_stage = 'active'
"""


def evaluated_labels(start: str) -> list[str] | None:
    """Those that begin with `start`, sorted, of the server's newest evaluations; None where it can't be asked at once."""
    uri = (os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db").removeprefix(PREFIX)
    # Whatever it is, a word half typed is no place to tell it.
    with suppress(Exception):
        if is_server(uri):
            return _beginning(start, _of_server(uri, start))
        if file := sqlite_file(uri):
            return _beginning(start, _of_file(file))
    return None


def _beginning(start: str, labels: set[str]) -> list[str]:
    return sorted(label for label in labels if label.startswith(start))


def _of_server(uri: str, start: str) -> set[str]:
    from lossy_mlflow.outbox.api import Api

    api = Api(uri, _TIMEOUT)
    experiments: list[dict[str, Any]] = api.get("experiments/search", {"max_results": 1000})["experiments"]
    # To MLflow, _ is any character: it can't quote those that it takes for the end of a string.
    like = start.replace("'", "_")
    wanted = {
        "experiment_ids": [experiment["experiment_id"] for experiment in experiments],
        "filter": f"tags.kind = 'evaluate' and tags.label LIKE '{like}%' and attributes.status = 'FINISHED'",
        "order_by": ["attributes.start_time DESC"],
        "max_results": _NEWEST,
    }
    runs: list[dict[str, Any]] = api.post("runs/search", wanted).get("runs", [])
    return {tag["value"] for run in runs for tag in run["data"]["tags"] if tag["key"] == "label"}


def _of_file(file: Path) -> set[str]:
    # Read only: a database that isn't there must not be made.
    with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=1)) as database:
        return {label for (label,) in database.execute(_LABELS)}

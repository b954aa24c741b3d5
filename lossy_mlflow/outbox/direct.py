"""What MLflow's own client asks the server directly: an error at once where it is away, and the server's own names for things."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import requests
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE, ErrorCode

from lossy_mlflow.outbox.address import server_uri
from lossy_mlflow.outbox.api import MissingError, WaitingError, in_short
from lossy_mlflow.outbox.program import ARTIFACT_SCHEME, Outbox, read_artifact_uri
from lossy_mlflow.outbox.target import experiment_id_of, get_run
from lossy_mlflow.outbox.views import LOCAL_EXPERIMENT

_RUN_FIELDS = ("run_id", "run_uuid", "source_run_id", "mlflow.sourceRun")
_EXPERIMENT_FIELDS = ("experiment_id", "experiment_ids")


def check_server(outbox: Outbox) -> None:
    """Raises MlflowException where the server is away: MLflow's own client would try for minutes."""
    try:
        outbox.check_server()
    except WaitingError as error:
        raise away(outbox, "now", error) from None


def ask_directly(
    outbox: Outbox, call: Callable[..., Any], api: Any, json_body: str | None, *arguments: Any, **named: Any
) -> Any:
    """What `call`, of MLflow's own client, is answered, in the server's own names. Raises what `away` gives where that is so."""
    body = as_the_server_has_it(outbox, json_body)
    try:
        return call(api, body, *arguments, **named)
    except MlflowException as error:
        cause = error.__cause__ or error.__context__
        if not isinstance(cause, requests.RequestException):
            raise  # an answer, though it may be a refusal
        outbox.has_gone()
        raise away(outbox, "now", in_short(cause)) from error


def away(outbox: Outbox, what: str, why: object) -> MlflowException:
    """The error for a reader. `what`: "for" something, or "now"."""
    return MlflowException(
        f"The tracking server {server_uri(outbox.uri)} can't be asked {what}: {why}. Logging goes on"
        " without it; what reads from it must wait.",
        TEMPORARILY_UNAVAILABLE,
    )


def is_away(error: MlflowException) -> bool:
    return bool(error.error_code == ErrorCode.Name(TEMPORARILY_UNAVAILABLE))


def as_the_server_has_it(outbox: Outbox, json_body: str | None) -> str | None:
    """The body of a request to it with runs, experiments and artifacts under the server's own names for them.

    Raises MlflowException for a run that was made here and isn't delivered yet, and where the server is away.
    """
    check_server(outbox)
    return json.dumps(_translated(outbox, "", json.loads(json_body))) if json_body else json_body


def _translated(outbox: Outbox, field: str, value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _translated(outbox, key, item) for key, item in value.items()}
    if isinstance(value, list):
        return [_translated(outbox, field, item) for item in value]
    if not isinstance(value, str) or not value:
        return value
    if field in _RUN_FIELDS:
        return _run_id(outbox, value)
    if field in _EXPERIMENT_FIELDS:
        return _experiment_id(outbox, value)
    if field == "source" and value.startswith(f"{ARTIFACT_SCHEME}:"):
        return _artifact_uri(outbox, value)
    return value


def _run_id(outbox: Outbox, run_id: str) -> str:
    if outbox.server_run_id(run_id) is None:
        outbox.wait_until_delivered()
    found = outbox.server_run_id(run_id)
    if found is None:
        raise away(outbox, f"for the run {run_id}", "it waits in the outbox still")
    return found


def _experiment_id(outbox: Outbox, experiment_id: str) -> str:
    known = outbox.folder.experiment(experiment_id)
    if known is None or not experiment_id.startswith(LOCAL_EXPERIMENT):
        return experiment_id
    try:
        return outbox.ask(lambda api: experiment_id_of(api, known))
    except (WaitingError, MissingError) as error:
        raise away(outbox, f"for the experiment {known['experiment_name']!r}", error) from None


def _artifact_uri(outbox: Outbox, source: str) -> str:
    """Where the server has what a program knows by an outbox's artifact URI; another program must find it there."""
    _, run_id, path = read_artifact_uri(source)
    if not outbox.wait_until_delivered():
        raise away(outbox, f"for the artifacts of the run {run_id}", "they wait in the outbox still")
    server_id = _run_id(outbox, run_id)
    try:
        target = outbox.ask(lambda api: get_run(api, server_id))
    except (WaitingError, MissingError) as error:
        raise away(outbox, f"for the run {run_id}", error) from None
    return f"{target.artifact_uri}/{path}" if path else target.artifact_uri

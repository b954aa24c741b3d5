"""A run's values on their way: records as requests of the REST API, in batches, one that is refused apart from the others."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from lossy_mlflow.outbox.api import MissingError, RefusedError
from lossy_mlflow.outbox.destination import Destination
from lossy_mlflow.outbox.records import Kind, RunView, fold
from lossy_mlflow.outbox.target import model_outputs_of_run

# What one request may hold.
_BODY_BYTES = 800_000
BATCH = {"metrics": 1000, "params": 100, "tags": 100}
ENDED = ("FINISHED", "FAILED", "KILLED")


def send_values(to: Destination, kind: Kind, contents: Sequence[Any]) -> None:
    """Send the contents of neighbouring records of one kind. Raises WaitingError and MissingError.

    Files and deferred calls go their own way; "closed" is for whoever looks after the dead.
    """
    match kind:
        case "metrics":
            _log_batch(to, "metrics", [_metric(entry) for content in contents for entry in content])
        case "params":
            _log_batch(to, "params", [{"key": k, "value": v} for content in contents for k, v in content])
        case "tags":
            _send_tags(to, {key: value for content in contents for key, value in content})
        case "delete_tag":
            for key in contents:
                _delete_tag(to, key)
        case "state":
            _send_state(to, _merged(contents))
        case "inputs":
            for content in contents:
                _post_or_refuse(to, "runs/log-inputs", content)
        case "outputs":
            _send_outputs(to, contents)


def _send_tags(to: Destination, tags: dict[str, Any]) -> None:
    """The newest values of these tags. Another sender may have sent newer ones already: an older one must not come last."""
    sent: dict[str, Any] = {}
    while (newest := _newest(to, tags)) != sent:
        entries = [{"key": key, "value": value} for key, value in newest.items() if sent.get(key) != value]
        _log_batch(to, "tags", to.translated(entries))
        sent = newest


def _newest(to: Destination, tags: dict[str, Any]) -> dict[str, Any]:
    news = _news(to).tags
    return {key: news.get(key, value) for key, value in tags.items()}


def _send_state(to: Destination, state: dict[str, Any]) -> None:
    """The state, unless it is RUNNING and the run has ended since: its end comes by itself, after its values.

    Then, as with tags, what is newer.
    """
    if state.get("status") == "RUNNING" and _news(to).status in ENDED:
        state = {key: value for key, value in state.items() if key != "status"}
    sent: dict[str, Any] = {}
    while state != sent:
        _post_or_refuse(to, "runs/update", state)
        sent = state
        news = _news(to)
        if "status" in state and news.status not in ("", state["status"]):
            state = {**state, "status": news.status}
            if news.end_time:
                state["end_time"] = news.end_time


def _news(to: Destination) -> RunView:
    """What the records add up to that are not delivered yet, those included that were written a moment ago."""
    return fold(to.folder.own_records(to.delivered.verdicts, to.delivered.offsets))


def _log_batch(to: Destination, field: str, entries: Sequence[dict[str, Any]]) -> None:
    for piece in _pieces(entries, BATCH[field]):
        _log_piece(to, field, piece)


def _log_piece(to: Destination, field: str, piece: Sequence[dict[str, Any]]) -> None:
    body = {"run_id": to.run().run_id, field: list(piece)}
    try:
        to.api.post("runs/log-batch", body)
    except RefusedError as error:
        to.check_is_active()
        if len(piece) == 1:
            to.refuse(field, piece[0], error)
            return
        # One bad value must not take the good ones with it.
        half = len(piece) // 2
        _log_piece(to, field, piece[:half])
        _log_piece(to, field, piece[half:])


def _post_or_refuse(to: Destination, method: str, content: dict[str, Any]) -> None:
    try:
        to.api.post(method, {"run_id": to.run().run_id, **content})
    except RefusedError as error:
        to.check_is_active()
        to.refuse(method, content, error)


def _send_outputs(to: Destination, contents: Sequence[dict[str, Any]]) -> None:
    """Those that the run doesn't have: unlike all else, the server refuses them a second time."""
    there = model_outputs_of_run(to.api, to.run().run_id)
    models = [model for content in contents for model in content.get("models", [])]
    if new := [model for model in models if model.get("model_id") not in there]:
        _post_or_refuse(to, "runs/outputs", {"models": new})


def _delete_tag(to: Destination, key: str) -> None:
    try:
        to.api.post("runs/delete-tag", {"run_id": to.run().run_id, "key": key})
    except MissingError:
        # It is gone already, or the run is: then this says so.
        to.check_is_active()
    except RefusedError as error:
        to.check_is_active()
        to.refuse("delete_tag", {"key": key}, error)


def _metric(entry: Sequence[Any]) -> dict[str, Any]:
    key, value, timestamp, step, *model = entry
    metric = {"key": key, "value": _number(value), "timestamp": timestamp, "step": step}
    return metric | dict(zip(("model_id", "dataset_name", "dataset_digest"), model, strict=False))


def _number(value: Any) -> Any:
    """JSON has no NaN: protobuf's JSON has names for the three."""
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[str(value)]
    return value


def _merged(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for state in states:
        merged |= {key: value for key, value in state.items() if value is not None}
    return merged


def _pieces(entries: Sequence[dict[str, Any]], limit: int) -> Iterator[Sequence[dict[str, Any]]]:
    """Runs of entries, at most `limit` of them, and no longer than a request's body may be."""
    start, size = 0, 0
    for place, entry in enumerate(entries):
        length = len(json.dumps(entry))
        if place > start and (place - start == limit or size + length > _BODY_BYTES):
            yield entries[start:place]
            start, size = place, 0
        size += length
    if start < len(entries):
        yield entries[start:]

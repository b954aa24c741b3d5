"""Which run of the server a folder's records go to: found by its tag, or made; the same one whoever looks, however often."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lossy_mlflow.outbox.api import Api, ExistsError, MissingError, WaitingError

# A run's key, as a tag of the run: the server's own id can't be chosen, and is another one on a restored server.
KEY_TAG = "lossy.outbox_key"
# How far delivery has come, as a tag of the run: what metrics and params don't tell of, files, deferred calls and the end.
PROGRESS_TAG = "lossy.outbox_delivered"
_OWN_TAGS = (KEY_TAG, PROGRESS_TAG)


@dataclass(frozen=True, slots=True)
class Target:
    """A run of the server. `artifact_uri`: as the server names it."""

    run_id: str
    experiment_id: str
    artifact_uri: str


def experiment_id_of(api: Api, definition: Mapping[str, Any]) -> str:
    """The server's experiment for a run: by its name, made if it isn't there; by its id only where no name is known."""
    name = definition.get("experiment_name")
    if not name:
        identity = str(definition.get("experiment_id", ""))
        return str(api.get("experiments/get", {"experiment_id": identity})["experiment"]["experiment_id"])
    try:
        found = _by_name(api, name)
    except MissingError:
        body = {"name": name, "tags": definition.get("experiment_tags", [])}
        if definition.get("artifact_location"):
            body["artifact_location"] = definition["artifact_location"]
        try:
            return str(api.post("experiments/create", body)["experiment_id"])
        except ExistsError:
            # Another process has made it in the meantime, or an earlier reply was lost.
            found = _by_name(api, name)
    if found.get("lifecycle_stage") == "deleted":
        identity = found["experiment_id"]
        raise WaitingError(
            f"the experiment {name!r} is deleted: mlflow experiments restore --experiment-id {identity}"
        )
    return str(found["experiment_id"])


def _by_name(api: Api, name: str) -> dict[str, Any]:
    found: dict[str, Any] = api.get("experiments/get-by-name", {"experiment_name": name})["experiment"]
    return found


def get_run(api: Api, run_id: str) -> Target:
    """Raises MissingError for a run that the server doesn't know, WaitingError for one that somebody has deleted."""
    return _target(_run(api, run_id)["info"])


def tags_of_run(api: Api, run_id: str) -> dict[str, str]:
    return _tags(_run(api, run_id))


def data_of_run(api: Api, run_id: str) -> dict[str, Any]:
    """Its params, tags, and the newest point of each metric, deleted or not. Raises MissingError."""
    found: dict[str, Any] = _run(api, run_id).get("data", {})
    return found


def model_outputs_of_run(api: Api, run_id: str) -> set[str]:
    outputs = _run(api, run_id).get("outputs", {}).get("model_outputs", [])
    return {str(item["model_id"]) for item in outputs}


def superseded_definition(api: Api, target: Target, definition: Mapping[str, Any]) -> dict[str, Any]:
    """What a run is created with that takes what a superseded attempt on the run `target` has logged: it looks like that one.

    Its tag `same_as` names it.
    """
    found = _run(api, target.run_id)
    info = found["info"]
    tags = {key: value for key, value in _tags(found).items() if key not in _OWN_TAGS} | {
        "same_as": target.run_id
    }
    known = {key: definition[key] for key in ("experiment_name",) if key in definition}
    return known | {
        "experiment_id": target.experiment_id,
        "user_id": info.get("user_id", ""),
        "start_time": info.get("start_time"),
        "run_name": info.get("run_name", ""),
        "tags": [{"key": key, "value": value} for key, value in tags.items()],
    }


def find_run(api: Api, key: str, experiment_id: str) -> Target | None:
    """The run with this key: of several, made by senders that raced, the one with the lowest id; the others are soft-deleted.

    Deleted ones are looked at too: else a sender that comes later would take another one for the first.
    """
    body = {
        "experiment_ids": [experiment_id],
        "filter": f"tags.`{KEY_TAG}` = '{key}'",
        "run_view_type": "ALL",
        "max_results": 100,
    }
    found = [run["info"] for run in api.post("runs/search", body).get("runs", [])]
    if not found:
        return None
    lowest, *others = sorted(found, key=lambda info: str(info["run_id"]))
    for info in others:
        if info.get("lifecycle_stage") != "deleted":
            api.post("runs/delete", {"run_id": info["run_id"]})
    return _target(lowest)


def create_run(api: Api, key: str, experiment_id: str, definition: Mapping[str, Any]) -> Target:
    """A new run with the key, the original start time, and the tags that it was created with."""
    tags = [*definition.get("tags", []), {"key": KEY_TAG, "value": key}]
    body = {"experiment_id": experiment_id, "tags": tags}
    body |= {name: definition[name] for name in ("user_id", "start_time", "run_name") if definition.get(name)}
    return _target(api.post("runs/create", body)["run"]["info"])


def find_or_create_run(api: Api, key: str, experiment_id: str, definition: Mapping[str, Any]) -> Target:
    """The run with the key, made if it isn't there."""
    found = find_run(api, key, experiment_id)
    if found is None:
        create_run(api, key, experiment_id, definition)
        # Another sender may have made one at the same moment: both then agree on the lower id.
        found = find_run(api, key, experiment_id)
    if found is None:
        raise WaitingError("the server has made the run, but doesn't find it yet")
    return found


def _run(api: Api, run_id: str) -> dict[str, Any]:
    found: dict[str, Any] = api.get("runs/get", {"run_id": run_id})["run"]
    return found


def _tags(run: Mapping[str, Any]) -> dict[str, str]:
    return {tag["key"]: tag["value"] for tag in run.get("data", {}).get("tags", [])}


def _target(info: Mapping[str, Any]) -> Target:
    run_id = str(info["run_id"])
    if info.get("lifecycle_stage") == "deleted":
        raise WaitingError(f"the run is deleted: mlflow runs restore --run-id {run_id}")
    return Target(run_id, str(info["experiment_id"]), str(info["artifact_uri"]))

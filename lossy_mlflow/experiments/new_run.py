"""The run of a label that is new: its tags, its place, and who goes on where two machines started it at once."""

from __future__ import annotations

import torch
from mlflow import MlflowClient

from lossy_mlflow.data import Splits
from lossy_mlflow.errors import ConflictError
from lossy_mlflow.experiments.records import describe
from lossy_mlflow.experiments.request import Request
from lossy_mlflow.experiments.warm_start import WarmStart
from lossy_mlflow.hparams import hparams_sha256
from lossy_mlflow.tracking.connection import Connection
from lossy_mlflow.tracking.ownership import lock_domain
from lossy_mlflow.tracking.provenance import git_commit
from lossy_mlflow.tracking.runs import STARTED_OFFLINE, create_run, known_run, runs_of_label, set_tags


def run_tags(
    request: Request,
    splits: Splits,
    device: torch.device,
    taken: WarmStart | None,
) -> dict[str, str]:
    """What a run of this request is found and read by. `taken`: what it starts from, if it is new and starts from anything."""
    tags = {
        "kind": "train",
        "label": request.label,
        "hparam_set": request.hparam_set,
        "e_name": request.e_name,
        "hparams_sha256": hparams_sha256(request.tree),
        "dataset_digest": splits.digest,
        "git_commit": git_commit(),
        "device": device.type if device.type == "cuda" else f"cpu, torch threads: {torch.get_num_threads()}",
        "parent_version": taken.parent if taken else "",
        "started_from": taken.line if taken else "",
        "mlflow.note.content": describe(request.label, request.tree),
    }
    return {key: value for key, value in tags.items() if value}


def check_same_data(client: MlflowClient, run_id: str, splits: Splits) -> None:
    """Raises ConflictError where the run was begun on other images than these."""
    begun_on = client.get_run(run_id).data.tags.get("dataset_digest", splits.digest)
    if begun_on != splits.digest:
        raise ConflictError(
            f"The run {run_id} was begun on other images of {splits.name}: "
            f"their digest is {begun_on[:8]}..., here it is {splits.digest[:8]}...",
            "Give it the data that it was begun on (--data-dir), or train anew: --overwrite",
        )


def make_run(
    connection: Connection,
    request: Request,
    tags: dict[str, str],
    experiment_id: str,
    made_for_us: str | None,
) -> str:
    """Its id; `made_for_us` is the run that `mlflow run` has made. Raises ConflictError where another machine was quicker."""
    client = connection.client
    knows_of_no_other = {} if request.overwrite else {STARTED_OFFLINE: "true"}
    tags = {**tags, "owner": lock_domain(), "heartbeat": f"{connection.now():.0f}"}
    tags |= {} if connection.answers else knows_of_no_other
    run_id = made_for_us
    if run_id:
        set_tags(client, run_id, tags)
    else:
        run_id = create_run(connection, experiment_id, request.label, tags)
    is_first = connection.answers and connection.unless_away(
        lambda: _is_first(connection, request.label, run_id)
    )
    if is_first is None and knows_of_no_other:
        set_tags(client, run_id, knows_of_no_other)
    return run_id


def _is_first(connection: Connection, label: str, run_id: str) -> bool:
    """Two machines may have started the label in the same second: the earlier run goes on, the later one ends here."""
    client = connection.client
    mine = client.get_run(run_id).info
    for other in runs_of_label(client, label):
        known = known_run(other)
        earlier = (other.info.start_time, other.info.run_id) < (mine.start_time, run_id)
        if earlier and known.lives(connection.now()) and known.owner != lock_domain():
            client.set_tag(run_id, "same_as", other.info.run_id)
            client.set_terminated(run_id, "KILLED")
            raise ConflictError(
                f"{label} was started at the same moment on {known.host}, which goes on.",
                f"Wait for it, or train another copy: --e-name NAME    (its run is {other.info.run_id})",
            )
    return True

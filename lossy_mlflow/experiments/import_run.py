"""The run of kind `import` that owns a name's imported versions: what goes into it, and how."""

from __future__ import annotations

import contextlib
import hashlib
import math
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from safetensors.torch import save
from torch import Tensor

from lossy_mlflow.checkpoints.publish import Publication, Snapshot, ensure_registered_model, publish
from lossy_mlflow.checkpoints.versions import by_epoch, search_versions, versions_of_run
from lossy_mlflow.errors import ConflictError, LossyError
from lossy_mlflow.experiments.records import describe
from lossy_mlflow.experiments.settings import experiment_name
from lossy_mlflow.hparams import Hparam, diff, hparams_sha256
from lossy_mlflow.tracking.connection import Connection
from lossy_mlflow.tracking.ending import state_and_reason
from lossy_mlflow.tracking.identity import at_work
from lossy_mlflow.tracking.ownership import heartbeat, lock_domain, run_lock
from lossy_mlflow.tracking.provenance import git_commit
from lossy_mlflow.tracking.runs import (
    create_run,
    experiment_for,
    hparams_of_run,
    known_run,
    log_hparams,
    quoted,
    runs_of_label,
    set_tags,
)
from lossy_mlflow.tracking.training_state import Progress, TrainingStates

_WAIT_FOR_LOCK_S = 5
# The tag of a version that tells the file it was made of; no training sets it.
_FILE_SHA256 = "file_sha256"


@dataclass(frozen=True, slots=True)
class Incoming:
    """A file that was read, fits its set, and is to become a version of `name`. `val_loss`: nats per image, None if unknown.

    `weights` are the decoder's, `rest` the encoder's, if the file has one. `samples`: a PNG picture,
    empty where there can't be one.
    """

    file: str
    size: int
    sha256: str
    name: str
    hparam_set: str
    tree: Hparam
    epoch: int
    val_loss: float | None
    weights: Mapping[str, Tensor]
    rest: Mapping[str, Tensor]
    samples: bytes
    notes: tuple[str, ...]

    def weights_sha256(self) -> str:
        """As the version's tag of that name says it."""
        return hashlib.sha256(save(dict(self.weights))).hexdigest()


@dataclass(frozen=True, slots=True)
class PlannedItem:
    """A file, and what is in the way of its import: it is there already (`same_as` says how), or a `clash`. '' : nothing is."""

    incoming: Incoming
    same_as: str | None = None
    version: int | None = None
    clash: str = ""

    @property
    def is_new(self) -> bool:
        return self.same_as is None and not self.clash


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done for one name. `run_id`: the import run that has the name already, None if one is to be made."""

    run_id: str | None
    items: list[PlannedItem]


def plan(connection: Connection, incoming: Sequence[Incoming], overwrite: bool) -> Plan:
    """What importing these files of one name means, given what the server has of it. Changes nothing.

    Raises ConflictError where the name belongs to a training or to something that is no import, where its import has another
    tree, or where these files have several.
    """
    client, first = connection.client, incoming[0]
    for other in incoming[1:]:
        if changes := diff(first.tree, other.tree):
            raise ConflictError(f"{other.file} is of another architecture than {first.file}: {changes[0]}")
    run = _owning_import(connection, first.name, overwrite)
    versions = versions_of_run(client, run.info.run_id, first.name) if run else []
    by_file = {version.tags.get(_FILE_SHA256): version for version in versions}
    if overwrite and not all(item.sha256 in by_file for item in incoming):
        run, versions, by_file = None, [], {}
    if run and run.data.tags.get("hparams_sha256") != hparams_sha256(first.tree):
        changes = diff(hparams_of_run(client, run), first.tree)
        lines = "".join(f"\n  {change}" for change in changes)
        raise ConflictError(
            f"{first.name} was imported with other hparams (there -> here):{lines}",
            "Import it anew: --overwrite    or under another name",
        )
    return Plan(run.info.run_id if run else None, _items(incoming, versions, by_file))


def _items(
    incoming: Sequence[Incoming],
    versions: Sequence[ModelVersion],
    by_file: Mapping[str | None, ModelVersion],
) -> list[PlannedItem]:
    items: list[PlannedItem] = []
    there = by_epoch(versions)
    taken: dict[int, tuple[str, str]] = {
        epoch: (version.tags.get("weights_sha256", ""), f"version {version.version}")
        for epoch, version in there.items()
    }
    for item in incoming:
        if found := by_file.get(item.sha256):
            items.append(PlannedItem(item, "the same file", int(found.version)))
            continue
        weights = item.weights_sha256()
        if item.epoch not in taken:
            taken[item.epoch] = (weights, item.file)
            items.append(PlannedItem(item))
            continue
        same, holder = taken[item.epoch]
        if same == weights:
            version = int(there[item.epoch].version) if item.epoch in there else None
            items.append(PlannedItem(item, f"the same decoder as {holder}", version))
        else:
            clash = f"{item.file} is of epoch {item.epoch} of {item.name}, and so is {holder}, with other weights."
            items.append(PlannedItem(item, clash=clash))
    return items


def _owning_import(connection: Connection, name: str, overwrite: bool) -> Run | None:
    """The import run that the name belongs to; None where it is new, or is taken from a training by `overwrite`."""
    client = connection.client
    trainings, imports = runs_of_label(client, name), runs_of_label(client, name, "import")
    if trainings and not (imports and imports[0].info.start_time > trainings[0].info.start_time):
        newest = known_run(trainings[0])
        if newest.lives(connection.now()):
            raise at_work(
                f"{name} is being trained",
                newest,
                connection.now(),
                "Wait for it, or import under another name",
            )
        if not overwrite:
            raise ConflictError(
                f"{name} is what the run {newest.run_id} has trained: an import would move its best and last.",
                "Import under another name, or take the name over: --overwrite",
            )
        return None
    if imports:
        return imports[0]
    if not overwrite and (others := search_versions(client, f"name = {quoted(name)}")):
        raise ConflictError(
            f"{name} has {len(others)} versions that no import has made, version {others[0].version} among them.",
            "Import under another name, or take the name over: --overwrite",
        )
    return None


def publish_all(connection: Connection, planned: Plan) -> dict[int, int]:
    """Make the plan's new files versions, and return the versions of the run by epoch.

    What a crash leaves out is made when the same files are imported again.
    """
    client, first = connection.client, planned.items[0].incoming
    new = [item.incoming for item in planned.items if item.is_new]
    run_id = planned.run_id
    if new:
        experiment = experiment_for(client, experiment_name(first.tree))
        ensure_registered_model(client, first.name, describe(first.name, first.tree))
        run_id = run_id or _make_run(connection, first, experiment.experiment_id)
        with _writing(connection, run_id):
            log_hparams(client, run_id, first.tree)
            for item in new:
                _publish(connection, run_id, item)
            _keep_encoder(connection, run_id, new[-1])
    found = by_epoch(versions_of_run(client, run_id, first.name)) if run_id else {}
    return {epoch: int(version.version) for epoch, version in found.items()}


def _publish(connection: Connection, run_id: str, item: Incoming) -> None:
    client = connection.client
    # Before the version is made: whatever ends this, no version lacks its origin.
    origin = f"{item.file}, {item.size} bytes, sha256 {item.sha256}"
    client.set_tag(run_id, f"imported.epoch_{item.epoch}", origin)
    if item.val_loss is not None:
        client.log_metric(run_id, "val_loss", item.val_loss, step=item.epoch)
    file = {"file_name": item.file, "file_size": str(item.size), _FILE_SHA256: item.sha256}
    tags = {**_common_tags(item), **file, "converted": "; ".join(item.notes)}
    publication = Publication(
        item.name,
        describe(item.name, item.tree),
        item.tree,
        {key: value for key, value in tags.items() if value},
    )
    val_loss = math.nan if item.val_loss is None else item.val_loss
    snapshot = Snapshot(item.epoch, val_loss, item.weights, item.samples)
    publish(connection, run_id, publication, snapshot)


def _keep_encoder(connection: Connection, run_id: str, newest: Incoming) -> None:
    """Where `load_checkpoint_name` looks for it. The run has one, as a training's has: the newest file's."""
    if newest.rest:
        tensors = {f"model.{name}": tensor for name, tensor in newest.rest.items()}
        best = math.inf if newest.val_loss is None else newest.val_loss
        TrainingStates(connection, run_id, None).save(tensors, Progress(newest.epoch, newest.epoch, best))


def _common_tags(item: Incoming) -> dict[str, str]:
    e_name = item.name.removeprefix(f"{item.hparam_set}_") if item.name != item.hparam_set else ""
    return {
        "hparam_set": item.hparam_set,
        "e_name": e_name if e_name != item.name else "",
        "hparams_sha256": hparams_sha256(item.tree),
        "git_commit": git_commit(),
    }


def _make_run(connection: Connection, item: Incoming, experiment_id: str) -> str:
    tags = {
        "kind": "import",
        "label": item.name,
        **_common_tags(item),
        "mlflow.note.content": describe(item.name, item.tree),
    }
    return create_run(
        connection, experiment_id, item.name, {key: value for key, value in tags.items() if value}
    )


@contextmanager
def _writing(connection: Connection, run_id: str) -> Iterator[None]:
    """The run is RUNNING with a heartbeat for the length of the block, and ends as the block does.

    If the process dies, the next command of this machine that looks after dead runs ends it.
    """
    client = connection.client

    def beat() -> None:
        client.set_tag(run_id, "heartbeat", f"{connection.now():.0f}")

    with run_lock(run_id, _WAIT_FOR_LOCK_S):
        set_tags(client, run_id, {"attempt": uuid.uuid4().hex, "owner": lock_domain(), "state_reason": ""})
        beat()
        client.update_run(run_id, status="RUNNING")
        try:
            with heartbeat(beat):
                yield
        except BaseException as error:
            state, reason = state_and_reason(error)
            # A server that went away can't be told so.
            with contextlib.suppress(MlflowException, LossyError):
                client.set_tag(run_id, "state_reason", reason)
                client.set_terminated(run_id, state)
            raise
        client.set_terminated(run_id, "FINISHED")

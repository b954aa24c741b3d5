"""What resuming needs besides the decoder: one safetensors file of the run, in two slots.

A new state is written into the slot that is not in use; a tag of the run then names it, with its digest. So one of the two is
whole, whenever the process is killed, and a run never holds more than two. What an outbox delivers may lag behind the tag, which
goes before files: then the files themselves say what they are, each with a digest of its own.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from lossy_mlflow.errors import LossyError
from lossy_mlflow.tracking.connection import Connection, without_password
from lossy_mlflow.tracking.provenance import log_bytes
from lossy_mlflow.tracking.run_files import STATE_FOLDER, STATE_SLOTS, STATE_TAG, StoredState, stored_state
from lossy_mlflow.tracking.runs import artifacts_of, paths_in

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger("lossy_mlflow")


class LostStateError(LossyError):
    """A run's training state is gone or damaged: the run is, its tag, or the file that the tag names."""

    def __init__(self, what: str) -> None:
        super().__init__(
            what,
            "Train anew: the same command with --overwrite    (the registered versions stay as they are)",
        )


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a training has come. `best_epoch` 0: none yet."""

    epoch: int
    best_epoch: int
    best_val_loss: float


@dataclass(frozen=True, slots=True)
class TrainingState:
    """A state that was read: `tensors` on the CPU. `file`: the slot that it came from."""

    tensors: dict[str, Tensor]
    progress: Progress
    file: str


class TrainingStates:
    """The states that this process stores of a run. `state`: the one that it goes on from, which stays until another is whole."""

    def __init__(self, connection: Connection, run_id: str, state: TrainingState | None) -> None:
        self._connection = connection
        self._run_id = run_id
        self._in_use = state.file if state else ""

    def save(self, tensors: Mapping[str, Tensor], progress: Progress) -> None:
        """Store `tensors` (on the CPU, contiguous) and `progress` as the run's newest state.

        Raises OSError where a disk is full: then the run's newest state is the one that it was.
        """
        from safetensors.torch import save

        name = STATE_SLOTS[1] if self._in_use == STATE_SLOTS[0] else STATE_SLOTS[0]
        text = json.dumps(asdict(progress))
        # In memory, and not by save_file: of a full disk that one tells in an error of its own, without the system's number.
        content = save(dict(tensors), {"progress": text, "sha256": _digest(tensors, text)})
        self._store(content, name)
        stored = StoredState(name, hashlib.sha256(content).hexdigest(), progress.epoch)
        self._connection.client.set_tag(self._run_id, STATE_TAG, json.dumps(asdict(stored)))
        self._in_use = name

    def _store(self, content: bytes, name: str) -> None:
        if outbox := self._connection.outbox:
            # MLflow's own call doesn't say whether there was room for it.
            outbox.journal(self._run_id).keep_file(io.BytesIO(content), f"{STATE_FOLDER}/{name}")
            return
        log_bytes(self._connection.client, self._run_id, content, f"{STATE_FOLDER}/{name}")


def load_training_state(client: MlflowClient, run_id: str) -> TrainingState | None:
    """The run's newest state; None where it never had one.

    Where the one that its tag names isn't there, or is damaged, it is the newest that is whole, which is told. Raises
    LostStateError where none is.
    """
    stored = _stored(client, run_id)
    if stored is None:
        return None
    artifacts = artifacts_of(client, run_id)
    there = paths_in(artifacts, STATE_FOLDER)
    found: list[TrainingState] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in sorted(STATE_SLOTS, key=lambda slot: slot != stored.file):
            if (path := f"{STATE_FOLDER}/{name}") not in there:
                continue
            file = Path(artifacts.download_artifacts(path, folder))
            if name == stored.file and _sha256(file) == stored.sha256:
                return _read_state(file)
            if whole := _read_whole_state(file):
                found.append(whole)
    state = f"The training state of run {run_id} (epoch {stored.epoch})"
    if f"{STATE_FOLDER}/{stored.file}" in there:
        what = f"{state} is damaged: its SHA-256 is not the recorded one."
    else:
        where = without_password(client.get_run(run_id).info.artifact_uri)
        what = f"{state} is gone: there is no {STATE_FOLDER}/{stored.file} in {where}."
    if not found:
        raise LostStateError(what)
    newest = max(found, key=lambda whole: whole.progress.epoch)
    log.warning("%s The newest that is whole is taken, of epoch %d.", what, newest.progress.epoch)
    return newest


def _read_state(file: Path) -> TrainingState:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as content:
        progress = Progress(**json.loads(content.metadata()["progress"]))
        tensors = {key: content.get_tensor(key) for key in content.keys()}  # noqa: SIM118 (not a dict)
    return TrainingState(tensors, progress, file.name)


def _read_whole_state(file: Path) -> TrainingState | None:
    """None where the file is not what was written, by its own digest: it is torn or damaged, or older than such digests."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as content:
            metadata = content.metadata() or {}
        state = _read_state(file)
    except (SafetensorError, KeyError, TypeError, ValueError):
        return None
    return state if _digest(state.tensors, metadata["progress"]) == metadata.get("sha256") else None


def _digest(tensors: Mapping[str, Tensor], progress: str) -> str:
    import torch

    digest = hashlib.sha256(progress.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _stored(client: MlflowClient, run_id: str) -> StoredState | None:
    try:
        text = client.get_run(run_id).data.tags.get(STATE_TAG, "")
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise LostStateError(f"The run {run_id} is gone, and its training state with it.") from error
    stored = stored_state(text)
    if text and stored is None:
        raise LostStateError(
            f"The training state of run {run_id} can't be found: its tag {STATE_TAG} doesn't name one ({text[:60]!r})."
        )
    return stored


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()

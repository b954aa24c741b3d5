"""What resuming needs besides the decoder: one safetensors file of the run, in two slots.

A new state is written into the slot that is not in use; a tag of the run then names it, with its digest. So the tag always
names a file that is whole, whenever the process is killed, and a run never holds more than two.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from lossy_mlflow.errors import LossyError
from lossy_mlflow.tracking.connection import without_password
from lossy_mlflow.tracking.runs import artifacts_of

if TYPE_CHECKING:
    from torch import Tensor

_TAG = "training_state"
_FOLDER = "training_state"
_SLOTS = ("a.safetensors", "b.safetensors")


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
class _Stored:
    """What the tag says: which file of the folder is the newest state, its digest, and the epoch after which it was."""

    file: str
    sha256: str
    epoch: int


class TrainingStates:
    """The states that this process stores of a run. The server is asked at its making alone: a training doesn't wait for it."""

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self._client = client
        self._run_id = run_id
        self._newest = _read(client.get_run(run_id).data.tags.get(_TAG, ""))

    def save(self, tensors: Mapping[str, Tensor], progress: Progress) -> None:
        """Store `tensors` (on the CPU, contiguous) and `progress` as the run's newest state."""
        from safetensors.torch import save_file

        name = _SLOTS[1] if self._newest and self._newest.file == _SLOTS[0] else _SLOTS[0]
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, name)
            save_file(dict(tensors), file, metadata={"progress": json.dumps(asdict(progress))})
            stored = _Stored(name, _sha256(file), progress.epoch)
            self._client.log_artifact(self._run_id, str(file), _FOLDER)
        self._client.set_tag(self._run_id, _TAG, json.dumps(asdict(stored)))
        self._newest = stored


def load_training_state(client: MlflowClient, run_id: str) -> tuple[dict[str, Tensor], Progress] | None:
    """The run's newest state, on the CPU; None where it never had one. Raises LostStateError where it is not what was written."""
    from safetensors import safe_open

    stored = _stored(client, run_id)
    if stored is None:
        return None
    state = f"The training state of run {run_id} (epoch {stored.epoch})"
    path = f"{_FOLDER}/{stored.file}"
    # Asked for first: what downloading a file that is gone raises is another thing for every kind of artifact store.
    artifacts = artifacts_of(client, run_id)
    if path not in {item.path for item in artifacts.list_artifacts(_FOLDER)}:
        where = without_password(client.get_run(run_id).info.artifact_uri)
        raise LostStateError(f"{state} is gone: there is no {path} in {where}.")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(artifacts.download_artifacts(path, folder))
        if _sha256(file) != stored.sha256:
            raise LostStateError(f"{state} is damaged: its SHA-256 is not the recorded one.")
        with safe_open(file, framework="pt") as content:
            progress = Progress(**json.loads(content.metadata()["progress"]))
            return {key: content.get_tensor(key) for key in content.keys()}, progress  # noqa: SIM118 (not a dict)


def _stored(client: MlflowClient, run_id: str) -> _Stored | None:
    try:
        text = client.get_run(run_id).data.tags.get(_TAG, "")
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise LostStateError(f"The run {run_id} is gone, and its training state with it.") from error
    stored = _read(text)
    if text and stored is None:
        raise LostStateError(
            f"The training state of run {run_id} can't be found: its tag {_TAG} doesn't name one ({text[:60]!r})."
        )
    return stored


def _read(tag: str) -> _Stored | None:
    """None where the tag is not what `TrainingStates` has written: anybody can edit a tag."""
    try:
        stored = _Stored(**json.loads(tag))
    except (ValueError, TypeError):
        return None
    return stored if stored.file in _SLOTS else None


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()

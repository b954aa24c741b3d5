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

from lossy_mlflow.errors import LossyError
from lossy_mlflow.tracking.runs import artifacts_of

if TYPE_CHECKING:
    from torch import Tensor

_TAG = "training_state"
_FOLDER = "training_state"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a training has come. `best_epoch` 0: none yet."""

    epoch: int
    best_epoch: int
    best_val_loss: float


def save_training_state(
    client: MlflowClient, run_id: str, tensors: Mapping[str, Tensor], progress: Progress
) -> None:
    """Store `tensors` (on the CPU, contiguous) and `progress` as the run's newest state."""
    from safetensors.torch import save_file

    current = _named(client, run_id)
    name = "b.safetensors" if current and current["file"] == "a.safetensors" else "a.safetensors"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, name)
        save_file(dict(tensors), file, metadata={"progress": json.dumps(asdict(progress))})
        digest = _sha256(file)
        client.log_artifact(run_id, str(file), _FOLDER)
    client.set_tag(run_id, _TAG, json.dumps({"file": name, "sha256": digest, "epoch": progress.epoch}))


def load_training_state(client: MlflowClient, run_id: str) -> tuple[dict[str, Tensor], Progress] | None:
    """The run's newest state, on the CPU; None where it has none. Raises LossyError where its file is not what was written."""
    from safetensors import safe_open

    current = _named(client, run_id)
    if current is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = f"{_FOLDER}/{current['file']}"
        file = Path(artifacts_of(client, run_id).download_artifacts(path, folder))
        if _sha256(file) != current["sha256"]:
            raise LossyError(
                f"The training state of run {run_id} (epoch {current['epoch']}) is damaged: its SHA-256 is not the recorded one.",
                "Train anew with --overwrite; the registered versions are not touched by this.",
            )
        with safe_open(file, framework="pt") as content:
            progress = Progress(**json.loads(content.metadata()["progress"]))
            return {key: content.get_tensor(key) for key in content.keys()}, progress  # noqa: SIM118 (not a dict)


def _named(client: MlflowClient, run_id: str) -> dict[str, str] | None:
    text = client.get_run(run_id).data.tags.get(_TAG)
    return json.loads(text) if text else None


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()

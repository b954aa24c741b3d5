"""The training state of a run: whole whenever it is read, whatever happened while it was written."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest
import torch

from lossy_mlflow.errors import LossyError
from lossy_mlflow.tracking.training_state import Progress, load_training_state, save_training_state
from tests.conftest import Workplace


@pytest.fixture
def run_id(here: Workplace) -> str:
    client = mlflow.MlflowClient()
    return client.create_run(client.create_experiment("states")).info.run_id


def _state(value: float) -> dict[str, torch.Tensor]:
    return {"model.w": torch.full((3,), value), "optimizer.w.step": torch.tensor(value)}


def _files(here: Workplace) -> list[Path]:
    return sorted(here.folder.glob("mlruns/*/*/artifacts/training_state/*"))


def test_the_newest_state_comes_back_and_at_most_two_are_kept(here: Workplace, run_id: str) -> None:
    client = mlflow.MlflowClient()
    assert load_training_state(client, run_id) is None
    for epoch in (1, 2, 3):
        save_training_state(client, run_id, _state(epoch), Progress(epoch, 1, float("inf")))
        stored = load_training_state(client, run_id)
        assert stored is not None
        tensors, progress = stored
        assert progress == Progress(epoch, 1, float("inf"))
        assert torch.equal(tensors["model.w"], torch.full((3,), float(epoch)))
    assert len(_files(here)) == 2


def test_a_write_that_breaks_off_leaves_the_state_before_it(here: Workplace, run_id: str) -> None:
    client = mlflow.MlflowClient()
    save_training_state(client, run_id, _state(1), Progress(1, 1, 0.5))
    save_training_state(client, run_id, _state(2), Progress(2, 1, 0.5))
    # What a kill -9 in the next upload leaves: the other slot cut short, the tag as it was.
    (other,) = [path for path in _files(here) if path.name == "a.safetensors"]
    other.write_bytes(other.read_bytes()[:20])
    stored = load_training_state(client, run_id)
    assert stored is not None
    assert stored[1].epoch == 2


def test_a_damaged_state_is_an_error_and_not_a_training_from_something_else(
    here: Workplace, run_id: str
) -> None:
    client = mlflow.MlflowClient()
    save_training_state(client, run_id, _state(1), Progress(1, 1, 0.5))
    (file,) = _files(here)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(LossyError, match="damaged"):
        load_training_state(client, run_id)

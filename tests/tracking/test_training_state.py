"""The training state of a run: whole whenever it is read, whatever happened while it was written."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
import torch

from lossy_mlflow.errors import UnreachableError
from lossy_mlflow.tracking.connection import explained
from lossy_mlflow.tracking.training_state import (
    LostStateError,
    Progress,
    TrainingStates,
    load_training_state,
)
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
        TrainingStates(client, run_id).save(_state(epoch), Progress(epoch, 1, float("inf")))
        stored = load_training_state(client, run_id)
        assert stored is not None
        tensors, progress = stored
        assert progress == Progress(epoch, 1, float("inf"))
        assert torch.equal(tensors["model.w"], torch.full((3,), float(epoch)))
    assert len(_files(here)) == 2


def test_a_write_that_breaks_off_leaves_the_state_before_it(here: Workplace, run_id: str) -> None:
    client = mlflow.MlflowClient()
    TrainingStates(client, run_id).save(_state(1), Progress(1, 1, 0.5))
    TrainingStates(client, run_id).save(_state(2), Progress(2, 1, 0.5))
    # What a kill -9 in the next upload leaves: the other slot cut short, the tag as it was.
    (other,) = [path for path in _files(here) if path.name == "a.safetensors"]
    other.write_bytes(other.read_bytes()[:20])
    stored = load_training_state(client, run_id)
    assert stored is not None
    assert stored[1].epoch == 2


def _flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (_flip_a_bit, "is damaged"),
        (Path.unlink, "there is no training_state/a.safetensors in"),
        (lambda file: shutil.rmtree(file.parent), "there is no training_state/a.safetensors in"),
        (
            lambda file: shutil.rmtree(file.parent.parent.parent),
            "there is no training_state/a.safetensors in",
        ),
    ],
    ids=["a bit", "the file", "its folder", "the run's folder"],
)
def test_a_lost_state_is_an_error_and_not_a_training_from_something_else(
    here: Workplace, run_id: str, harm: Callable[[Path], None], says: str
) -> None:
    client = mlflow.MlflowClient()
    TrainingStates(client, run_id).save(_state(1), Progress(1, 1, 0.5))
    (file,) = _files(here)
    harm(file)
    with pytest.raises(LostStateError, match=says) as caught:
        load_training_state(client, run_id)
    assert run_id in caught.value.what
    assert "--overwrite" in caught.value.hint


def test_a_tag_that_somebody_has_edited_names_no_state_and_stops_no_training(run_id: str) -> None:
    client = mlflow.MlflowClient()
    TrainingStates(client, run_id).save(_state(1), Progress(1, 1, 0.5))
    whole = client.get_run(run_id).data.tags["training_state"]
    for edited in (
        "hello",
        "{",
        "7",
        "[1]",
        "{}",
        '{"file": "a.safetensors"}',
        whole.replace("a.safe", "../a.safe"),
    ):
        client.set_tag(run_id, "training_state", edited)
        with pytest.raises(LostStateError, match=f"{run_id} can't be found: its tag training_state"):
            load_training_state(client, run_id)
    TrainingStates(client, run_id).save(_state(2), Progress(2, 1, 0.5))
    stored = load_training_state(client, run_id)
    assert stored is not None
    assert stored[1].epoch == 2


def test_the_state_of_a_run_that_is_gone_is_lost_and_that_of_a_silent_server_is_not(
    here: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(LostStateError, match=f"{'0' * 32} is gone"):
        load_training_state(mlflow.MlflowClient(), "0" * 32)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UnreachableError), explained():
        load_training_state(mlflow.MlflowClient("http://127.0.0.1:9"), "0" * 32)

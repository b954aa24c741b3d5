"""The training state of a run: whole whenever it is read, whatever happened while it was written."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lossy_mlflow.errors import UnreachableError
from lossy_mlflow.tracking.connection import connect, explained
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


def _save(run_id: str, epoch: int) -> None:
    """As a process does that goes on from the newest state."""
    state = load_training_state(mlflow.MlflowClient(), run_id)
    TrainingStates(connect(), run_id, state).save(_state(epoch), Progress(epoch, 1, float("inf")))


def _files(here: Workplace) -> list[Path]:
    return sorted(here.folder.glob("mlruns/*/*/artifacts/training_state/*"))


def test_the_newest_state_comes_back_and_at_most_two_are_kept(here: Workplace, run_id: str) -> None:
    client = mlflow.MlflowClient()
    assert load_training_state(client, run_id) is None
    for epoch in (1, 2, 3):
        _save(run_id, epoch)
        stored = load_training_state(client, run_id)
        assert stored is not None
        assert stored.progress == Progress(epoch, 1, float("inf"))
        assert torch.equal(stored.tensors["model.w"], torch.full((3,), float(epoch)))
    assert len(_files(here)) == 2


def test_a_write_that_breaks_off_leaves_the_state_before_it(here: Workplace, run_id: str) -> None:
    client = mlflow.MlflowClient()
    _save(run_id, 1)
    _save(run_id, 2)
    # What a kill -9 in the next upload leaves: the other slot cut short, the tag as it was.
    (other,) = [path for path in _files(here) if path.name == "a.safetensors"]
    other.write_bytes(other.read_bytes()[:20])
    stored = load_training_state(client, run_id)
    assert stored is not None
    assert stored.progress.epoch == 2


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
    _save(run_id, 1)
    (file,) = _files(here)
    harm(file)
    with pytest.raises(LostStateError, match=says) as caught:
        load_training_state(client, run_id)
    assert run_id in caught.value.what
    assert "--overwrite" in caught.value.hint


@pytest.mark.parametrize(
    ("a", "b", "newest"),
    [(5, None, 5), (5, 4, 5), (3, 4, 4), (3, 2, 3), (None, 2, 2), (5, -6, 5), (-5, 4, 4), (5, 6, 6)],
)
def test_a_newest_state_that_is_not_there_yet_is_not_the_only_one(
    here: Workplace,
    run_id: str,
    caplog: pytest.LogCaptureFixture,
    a: int | None,
    b: int | None,
    newest: int,
) -> None:
    """The tag says epoch 6, in slot b. An outbox delivers tags before files, be it many checkpoints before; -6 is damaged."""
    client, contents = mlflow.MlflowClient(), {}
    for epoch in range(1, 7):
        _save(run_id, epoch)
        contents[epoch] = _files(here)[(epoch - 1) % 2].read_bytes()
    for file, epoch_there in zip(_files(here), (a, b), strict=True):
        file.unlink()
        if epoch_there:
            file.write_bytes(contents[abs(epoch_there)])
        if epoch_there and epoch_there < 0:
            _flip_a_bit(file)
    state = load_training_state(client, run_id)
    assert state is not None
    assert state.progress.epoch == newest
    assert torch.equal(state.tensors["model.w"], torch.full((3,), float(newest)))
    said = [f"The newest that is whole is taken, of epoch {newest}." in text for text in caplog.messages]
    assert said == ([] if newest == 6 else [True])
    # What is stored next doesn't take the place of the one that it goes on from, and is the newest then.
    TrainingStates(connect(), run_id, state).save(_state(9), Progress(9, 1, 0.5))
    assert contents[newest] in [file.read_bytes() for file in _files(here)]
    after = load_training_state(client, run_id)
    assert after is not None
    assert after.progress.epoch == 9


def test_a_state_of_an_earlier_version_has_no_digest_of_its_own(here: Workplace, run_id: str) -> None:
    """It is known by the tag's alone."""
    client = mlflow.MlflowClient()
    for epoch in (1, 2):
        _save(run_id, epoch)
    first, second = _files(here)
    tag = json.loads(client.get_run(run_id).data.tags["training_state"])
    for file in (first, second):
        with safe_open(file, framework="pt") as content:
            metadata = {"progress": content.metadata()["progress"]}
        save_file(load_file(file), file, metadata)
    tag["sha256"] = hashlib.sha256(second.read_bytes()).hexdigest()
    client.set_tag(run_id, "training_state", json.dumps(tag))
    state = load_training_state(client, run_id)
    assert state is not None
    assert state.progress.epoch == 2
    second.unlink()
    with pytest.raises(LostStateError, match="is gone"):
        load_training_state(client, run_id)


def test_a_tag_that_somebody_has_edited_names_no_state_and_stops_no_training(run_id: str) -> None:
    client = mlflow.MlflowClient()
    _save(run_id, 1)
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
    TrainingStates(connect(), run_id, None).save(_state(2), Progress(2, 1, 0.5))
    stored = load_training_state(client, run_id)
    assert stored is not None
    assert stored.progress.epoch == 2


def test_the_state_of_a_run_that_is_gone_is_lost_and_that_of_a_silent_server_is_not(
    here: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(LostStateError, match=f"{'0' * 32} is gone"):
        load_training_state(mlflow.MlflowClient(), "0" * 32)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UnreachableError), explained():
        load_training_state(mlflow.MlflowClient("http://127.0.0.1:9"), "0" * 32)

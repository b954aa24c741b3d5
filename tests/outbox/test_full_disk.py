"""Our own training while the disk of its outbox is full: it goes on, and what a later moment can save is saved."""

from __future__ import annotations

import json
import logging
import tempfile
from pathlib import Path
from typing import Any

import mlflow
import pytest

from lossy_mlflow.experiments import train
from lossy_mlflow.experiments.request import EpochDone
from lossy_mlflow.outbox.unsaved import UNSAVED_TAG
from lossy_mlflow.tracking.runs import artifacts_of
from lossy_mlflow.tracking.training_state import load_training_state
from tests.conftest import Workplace, end_senders, wait_for
from tests.outbox.conftest import OutboxPlace
from tests.services.disk import fill, resize

SETTINGS = {"model_train.epochs": 6, "checkpointing_freq": 2, "start_checkpointing": 0}
WORDS = (
    "train",
    "vae2_digits",
    "--e-name",
    "full",
    *(f"--set={key}={value}" for key, value in SETTINGS.items()),
)


def _epochs(client: mlflow.MlflowClient, label: str) -> set[str]:
    return {item.tags["epoch"] for item in client.search_model_versions(f"name = '{label}'")}


def test_what_a_disk_had_no_room_for_is_saved_when_it_has(
    here: Workplace,
    mlflow_server: str,
    small_disk: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The folder for temporary files lies there as well. Pictures alone can't be drawn again later."""
    temporary, outbox = small_disk / "temporary", small_disk / "outbox"
    temporary.mkdir()
    resize(small_disk, "2m")
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    monkeypatch.setenv("LOSSY_OUTBOX_DIR", str(outbox))
    others: list[Path] = []

    def progress(done: EpochDone) -> None:
        if done.epoch == 1:
            others.append(fill(small_disk))
        if done.epoch == 5:
            others[0].unlink()
            resize(small_disk, "100m")

    try:
        with caplog.at_level(logging.WARNING, "lossy_mlflow"):
            result = train("vae2_digits", e_name="room", overrides=SETTINGS, progress=progress)
        client = mlflow.MlflowClient(mlflow_server)
        wait_for(lambda: _epochs(client, result.label) == {"2", "4", "6"}, 60, "three versions")
        state = load_training_state(client, result.run_id)
    finally:
        end_senders(outbox)
    assert state is not None
    assert state.progress.epoch == 6
    run = client.get_run(result.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags[UNSAVED_TAG] == "2: pictures of epoch 2, pictures of epoch 4"
    assert len(client.get_metric_history(result.run_id, "val_loss")) == 6
    images = [item.path for item in artifacts_of(client, result.run_id).list_artifacts("images")]
    assert {epoch for epoch in range(7) if any(f"samples+step+{epoch}+" in path for path in images)} == {0, 6}
    # One line for each of the two folders, and no traceback of a log file that can't be written.
    assert [str(small_disk) in message for message in caplog.messages] == [True, True]
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.campaign
def test_a_training_whose_decoder_no_disk_has_room_for_goes_on_later_from_its_newest_state(
    place: OutboxPlace, small_disk: Path
) -> None:
    resize(small_disk, "5m")  # for one state and one decoder
    place.root = small_disk / "outbox"
    variables = {"LOSSY_OUTBOX_DIR": str(place.root), "MLFLOW_TRACKING_URI": place.server}
    done = place.lossy(*WORDS, **variables)
    assert done.returncode == 1
    errors = done.stderr.splitlines()
    (line,) = [line for line in errors if "No space left on device" in line]
    assert str(place.root) in line
    assert any("no disk has room for its decoder of epoch" in line for line in errors)
    assert any("its newest state that could be saved is of epoch 2" in line for line in errors)
    lost = "3: version of epoch 4, training state, version of epoch 6"
    assert errors[-1].endswith(f"is lost: {lost}")
    place.wait_until_delivered()
    (run,) = place.on_server("vae2_digits_full")
    assert run.info.status == "FAILED"
    assert run.data.tags[UNSAVED_TAG] == lost
    assert json.loads(run.data.tags["training_state"])["epoch"] == 2
    resize(small_disk, "100m")
    again = place.lossy(*WORDS, "--json", **variables)
    assert again.returncode == 0, again.stderr
    result: dict[str, Any] = json.loads(again.stdout)
    assert (result["started"], result["run_id"]) == ("resumed", run.info.run_id)
    place.wait_until_delivered()
    assert _epochs(place.client, "vae2_digits_full") == {"2", "4", "6"}
    tags = place.client.get_run(run.info.run_id).data.tags
    assert UNSAVED_TAG not in tags
    assert json.loads(tags["training_state"])["epoch"] == 6


def test_an_outbox_that_can_not_be_written_is_left_out(
    here: Workplace, monkeypatch: pytest.MonkeyPatch, mlflow_server: str, caplog: pytest.LogCaptureFixture
) -> None:
    from lossy_mlflow.tracking.connection import connected_for_logging

    (here.folder / "file").write_text("")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    monkeypatch.setenv("LOSSY_OUTBOX_DIR", str(here.folder / "file" / "outbox"))
    with caplog.at_level(logging.WARNING, "lossy_mlflow"), connected_for_logging() as connection:
        assert connection.outbox is None
        assert mlflow.get_tracking_uri() == mlflow_server
        run_id = connection.client.create_run("0").info.run_id
    assert mlflow.MlflowClient(mlflow_server).get_run(run_id).info.run_id == run_id
    (message,) = caplog.messages
    assert message.startswith(f"The outbox {here.folder}/file/outbox/")
    assert "(Not a directory)" in message


ANY_PROGRAM = """
import os, sys, time, mlflow
mlflow.set_experiment("full disk")
with mlflow.start_run(run_name=sys.argv[1]):
    mlflow.log_metric("loss", 0.5, step=1)
    mlflow.log_text("hello", "early.txt")
    if len(sys.argv) > 2:
        os.unlink(sys.argv[2])
        mlflow.flush_async_logging()
        mlflow.log_text("hello", "late.txt")
"""


@pytest.mark.parametrize("room_returns", [False, True])
def test_any_program_goes_on_with_a_disk_that_is_full_from_the_start(
    place: OutboxPlace, small_disk: Path, name: str, room_returns: bool
) -> None:
    place.root = small_disk / "outbox"
    others = fill(small_disk)
    words = [str(others)] if room_returns else []
    done = place.run(ANY_PROGRAM, name, *words, LOSSY_OUTBOX_DIR=str(place.root))
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if str(place.root) in line]
    assert "can't be made (No space left on device)" in said[0]
    assert "what is logged can't be written" in said[1]
    lost = said[-1].partition("is lost: ")[2]
    if not room_returns:
        assert (len(said), lost) == (3, "2: early.txt, 4 values")
        assert place.on_server(name) == []  # nor a run there that nobody would end
        return
    assert lost == "1: early.txt"
    place.wait_until_delivered()
    (run,) = place.on_server(name)
    assert run.info.status == "FINISHED"
    assert run.data.tags[UNSAVED_TAG] == "1: early.txt"
    assert place.points(run.info.run_id, "loss") == [(1, 0.5)]
    assert [item.path for item in place.client.list_artifacts(run.info.run_id)] == ["late.txt"]

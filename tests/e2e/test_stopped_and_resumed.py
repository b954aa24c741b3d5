"""A training that is stopped, however, says so, and goes on to the same end."""

from __future__ import annotations

import signal
import time
from typing import Any

import pytest

from tests.conftest import Workplace, wait_for

LONG = ("--set", "model_train.epochs=40", "--set", "checkpointing_freq=5", "--set", "start_checkpointing=5")


def _runs(client: Any) -> list[Any]:
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    return list(client.search_runs(ids))


def _has_state(client: Any) -> bool:
    return any("training_state" in run.data.tags for run in _runs(client))


@pytest.mark.parametrize(
    ("number", "state", "code", "within"),
    [
        (signal.SIGKILL, "FAILED", -9, 30),
        pytest.param(signal.SIGTERM, "KILLED", 143, 5, marks=pytest.mark.campaign),
        pytest.param(signal.SIGINT, "KILLED", 130, 5, marks=pytest.mark.campaign),
    ],
)
def test_the_run_says_how_it_ended_and_resumes_bit_for_bit(
    workplace: Workplace, client: Any, number: signal.Signals, state: str, code: int, within: float
) -> None:
    whole = workplace.json("train", "vae10_digits", "--e-name", "whole", *LONG)
    process = workplace.start("train", "vae10_digits", *LONG)
    wait_for(
        lambda: len(_runs(client)) == 2 and all("training_state" in r.data.tags for r in _runs(client)),
        180,
        "a state",
    )
    process.send_signal(number)
    (run_id,) = [run.info.run_id for run in _runs(client) if run.info.run_id != whole["run_id"]]
    wait_for(lambda: client.get_run(run_id).info.status != "RUNNING", within, "the end of the run")
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    stopped = client.get_run(run_id)
    assert stopped.info.status == state
    assert stopped.data.tags["state_reason"]
    if state == "KILLED":
        assert "lossy train vae10_digits --set=checkpointing_freq=5" in err
        assert "Traceback" not in err

    resumed = workplace.json("train", "vae10_digits", *LONG)
    assert resumed["started"] == "resumed"
    assert resumed["run_id"] == run_id
    history = client.get_metric_history(run_id, "val_loss")
    assert [point.step for point in history] == list(range(1, 41))
    expected = client.get_metric_history(whole["run_id"], "val_loss")
    assert [point.value for point in history] == [point.value for point in expected]
    for alias in ("best", "last"):
        one, two = (
            workplace.json("resolve", f"{label}@{alias}") for label in ("vae10_digits", "vae10_digits_whole")
        )
        assert one["weights_sha256"] == two["weights_sha256"]
        assert one["epoch"] == two["epoch"]
    pictures = [item.path for item in client.list_artifacts(run_id, "images") if item.path.endswith(".png")]
    steps = [path.split("+")[2] for path in pictures if path.startswith("images/samples+step+")]
    assert len(steps) == len(set(steps)) == 9


def test_a_label_is_trained_once_at_a_time(workplace: Workplace, client: Any) -> None:
    process = workplace.start("train", "vae10_digits", "--set", "model_train.epochs=100000")
    try:
        wait_for(lambda: bool(_runs(client)), 60, "a run")
        for words in ([], ["--overwrite"]):
            refused = workplace.lossy("train", "vae10_digits", "--set", "model_train.epochs=100000", *words)
            assert refused.returncode == 4
            assert "is being trained or imported by another process on this machine" in refused.stderr
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert len(_runs(client)) == 1


def test_a_young_heartbeat_of_another_machine_is_respected_and_an_old_one_is_not(
    workplace: Workplace, client: Any
) -> None:
    settings = ("--set", "model_train.epochs=2")
    result = workplace.json("train", "vae2_digits", *settings)
    client.update_run(result["run_id"], status="RUNNING")
    client.set_tag(result["run_id"], "owner", "otherhost:1234")
    client.set_tag(result["run_id"], "heartbeat", str(int(time.time())))
    refused = workplace.lossy("train", "vae2_digits", *settings)
    assert refused.returncode == 4
    assert "is being trained on otherhost" in refused.stderr
    client.set_tag(result["run_id"], "heartbeat", str(int(time.time()) - 10_000))
    again = workplace.json("train", "vae2_digits", *settings)
    assert again["started"] == "resumed"
    assert client.get_run(result["run_id"]).info.status == "FINISHED"


def test_a_loss_that_is_not_a_number_ends_the_run_as_failed(workplace: Workplace, client: Any) -> None:
    done = workplace.lossy(
        "train", "linear_vae10_digits", "--set", "learning_rate=1e30", "--set", "model_train.epochs=5"
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "epoch" in done.stderr
    assert "1e+30" in done.stderr
    (run,) = _runs(client)
    assert run.info.status == "FAILED"
    assert "1e+30" in run.data.tags["state_reason"]

"""Decoders go between a GPU and CPUs, trained here and measured there; what was begun on one goes on on the other."""

from __future__ import annotations

import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import Workplace, wait_for
from tests.evaluate.test_evaluate import TINY, _runs
from tests.evaluate.test_evaluation_stopped import WORK, _numbers, started_and_saved

# As far as so few steps converge on a convolutional decoder of three epochs: two seeds then differ by up to 0.7 nats.
EASY = ("--quick", "--set", "rd.max_beta=10", "--set", "rd.n_betas=8")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


def _agree(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Within the chains' noise; of which images were taken, both have the same."""
    assert one["beta"] == other["beta"]
    for here, there, se in zip(one["distortion"], other["distortion"], one["distortion_se"], strict=True):
        assert abs(here - there) < 3 * se
    for here, there in zip(one["rate"], other["rate"], strict=True):
        assert abs(here - there) < 2.0


@pytest.mark.parametrize(("name", "epochs"), [("vae10_digits", 12), ("dcvae10_digits", 3)])
def test_a_decoder_trained_on_a_gpu_is_measured_on_either(
    workplace: Workplace, name: str, epochs: int
) -> None:
    settings = ("--set", f"model_train.epochs={epochs}", "--e-name", "gpu")
    workplace.json("train", name, "--device", "cuda", *settings)
    there = workplace.json("evaluate", f"{name}_gpu", *EASY, "--device", "cuda")
    again = workplace.json("evaluate", f"{name}_gpu", *EASY, "--device", "cpu")
    assert again == there  # the same evaluation: it is there already
    here = workplace.json("evaluate", f"{name}_gpu", *EASY, "--device", "cpu", "--set", "rd.random_seed=8")
    _agree(here, there)


@pytest.mark.parametrize(
    "options",
    [
        ("--log-likelihood",),
        ("--data", "simulate"),
        ("--set", "rd.target=joint", "--set", "rd.max_beta=50"),
        ("--set", "rd.mixture_weight=0.5", "--set", "rd.bad_std=10"),
        ("--set", "rd.blur_std=1"),
        ("--set", "rd.estimator=variational", "--set", "rd.encoder_epochs=1"),
    ],
    ids=["log-likelihood", "simulate", "joint", "mixture", "blur", "variational"],
)
def test_each_kind_of_evaluation_runs_there(workplace: Workplace, options: tuple[str, ...]) -> None:
    for name in ("vae10_digits", "linear_vae10_digits"):
        found = workplace.json("evaluate", name, *TINY, "--device", "cuda", *options)
        assert all(math.isfinite(value) for value in found["rate"])


def test_distortion_of_features(workplace: Workplace) -> None:
    done = workplace.lossy("train", "cnn_digits", "--device", "cuda", "--set", "model_train.epochs=1")
    assert done.returncode == 0, done.stderr
    features = ("--set", "rd.target=features", "--set", "rd.feature_map=cnn_digits", "--set", "rd.max_beta=1")
    found = workplace.json("evaluate", "vae10_digits", *TINY, "--device", "cuda", *features)
    assert all(math.isfinite(value) for value in found["rate"])


@pytest.mark.parametrize(("first", "then"), [("cuda", "cuda"), ("cuda", "cpu"), ("cpu", "cuda")])
def test_an_evaluation_goes_on_on_another_device(
    workplace: Workplace, client: Any, saves_often: Path, first: str, then: str
) -> None:
    work = ("vae10_digits", *WORK)
    process = started_and_saved(workplace, client, *WORK, "--device", first)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    (stopped,) = _runs(client, "vae10_digits")
    assert stopped.info.status != "FINISHED"
    gone_on = workplace.json("evaluate", *work, "--device", then)
    (run,) = _runs(client, "vae10_digits")
    assert run.info.status == "FINISHED"
    client.set_tag(run.info.run_id, "evaluation_sha256", "another")
    whole = workplace.json("evaluate", *work, "--device", first)
    if first == then:
        assert _numbers(gone_on) == _numbers(whole)
    else:
        _agree(gone_on, whole)


@pytest.mark.parametrize("name", ["vae10_digits", "dcvae10_digits", "cnn_digits"])
@pytest.mark.parametrize(("first", "then"), [("cuda", "cuda"), ("cuda", "cpu"), ("cpu", "cuda")])
def test_a_training_goes_on_on_another_device(
    workplace: Workplace, client: Any, name: str, first: str, then: str
) -> None:
    """Bit for bit where it stays, convolutions too."""
    words = ("train", name, "--set", "checkpointing_freq=30", "--set", "start_checkpointing=30")
    words = (*words, "--set", "model_train.epochs=120", "--e-name")
    process = workplace.start(*words, "moved", "--device", first)

    def has_state() -> bool:
        ids = [experiment.experiment_id for experiment in client.search_experiments()]
        runs = client.search_runs(ids, f"tags.label = '{name}_moved'")
        return any("training_state" in run.data.tags for run in runs)

    wait_for(has_state, 90, "a state")
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    resumed = workplace.json(*words, "moved", "--device", then)
    assert resumed["started"] == "resumed"
    whole = workplace.json(*words, "whole", "--device", first)
    if first == then:
        assert resumed["val_loss"] == whole["val_loss"]
    else:
        assert math.isclose(resumed["val_loss"], whole["val_loss"], rel_tol=0.2)

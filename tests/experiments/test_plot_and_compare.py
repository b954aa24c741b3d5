"""`lossy plot` and `lossy compare`, on evaluations that MLflow's own client has logged into a real database."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lossy_mlflow.errors import ConflictError, LossyError, NotFoundError, UsageError
from tests.conftest import Workplace, free_port
from tests.experiments.gaussian_curves import BETAS, Gaussian, log_evaluation

A, B = Gaussian(scale=1.0, n_latent=3), Gaussian(scale=1.5, n_latent=4)
IMAGES, OTHERS = (A.draw(40, np.random.default_rng(seed)) for seed in (1, 2))

Log = Callable[..., str]


@pytest.fixture
def log(client: Any, tmp_path: Path) -> Log:
    def evaluated(label: str, decoder: Gaussian = A, images: Any = IMAGES, **changes: Any) -> str:
        return log_evaluation(client, label, decoder, images, tmp_path, **changes)

    return evaluated


def _error(kind: type[LossyError], lossy: Callable[..., str], *words: str) -> str:
    with pytest.raises(kind) as caught:
        lossy(*words)
    return f"{caught.value.what} {caught.value.hint}"


def test_a_figure_of_the_latest_evaluations(lossy: Callable[..., str], log: Log, here: Any) -> None:
    log("a")
    newest, other = log("a", doubts=["not converged from beta 4 on"]), log("b", B, OTHERS)
    shown = lossy("plot", "a", "b", "a")
    assert "curves.png has 2 curves" in shown
    assert newest in shown
    assert other in shown
    content = (here.folder / "curves.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert struct.unpack(">2I", content[16:24]) == (1680, 680)  # two panels, at 200 dots an inch
    told = json.loads(lossy("plot", "a", "b", "-o", "c.pdf", "--log", "--max-distortion", "9", "--json"))
    assert (here.folder / "c.pdf").read_bytes().startswith(b"%PDF")
    assert [curve["run_id"] for curve in told["curves"]] == [newest, other]
    assert told["same_images"] is False
    assert [path.name for path in here.folder.glob(".c.pdf*")] == []


def test_quick_ones_count_where_they_are_asked_for(lossy: Callable[..., str], log: Log) -> None:
    whole, quick = log("a"), log("a", quick=True)
    log("b", quick=True)
    for words, wanted in (((), whole), (("--quick",), quick)):
        (curve,) = json.loads(lossy("plot", "a", "--json", *words))["curves"]
        assert curve["run_id"] == wanted
    said = _error(NotFoundError, lossy, "plot", "b")
    assert "with --quick alone" in said
    assert "lossy evaluate b" in said


def test_the_shell_completes_what_has_been_evaluated(log: Log, client: Any, workplace: Workplace) -> None:
    log("vae_of_mine")
    log("vae_of_another")
    client.set_terminated(log("vae_that_failed"), "FAILED")
    assert workplace.completed("lossy plot vae") == ["vae_of_another", "vae_of_mine"]
    assert workplace.completed("lossy compare vae_of_another vae_of_m") == ["vae_of_mine"]
    assert workplace.completed("lossy plot cnn") == []
    for away in (f"http://127.0.0.1:{free_port()}", "sqlite:///another.db", "databricks"):
        assert workplace.completed("lossy plot cnn_d", MLFLOW_TRACKING_URI=away) == ["cnn_digits"]
    assert not (workplace.folder / "another.db").exists()


def test_two_decoders_on_the_same_images_are_paired(lossy: Callable[..., str], log: Log) -> None:
    log("a")
    log("b", B)
    log("c", B, OTHERS)
    paired = json.loads(lossy("compare", "a", "b", "--at", "8", "--at", "10", "--json"))
    apart = json.loads(lossy("compare", "a", "c", "--at", "8", "--at", "10", "--json"))
    assert (paired["paired"], apart["paired"]) == (True, False)
    assert [point["distortion"] for point in paired["points"]] == [8.0, 10.0]
    for point, independent in zip(paired["points"], apart["points"], strict=True):
        assert point["difference"] == pytest.approx(point["rate_b"] - point["rate_a"])
        assert abs(
            point["difference"] - (B.true_rate(point["distortion"]) - A.true_rate(point["distortion"]))
        ) < (3 * point["difference_se"] + 0.1)
        assert point["difference_se"] < 0.7 * independent["difference_se"]
    shown = lossy("compare", "a", "b")
    assert "b - a" in shown
    assert "the same 40 images, paired" in shown
    assert "b: gap at beta 3000: 0.400 +- 0.100 nats" in shown
    assert len([line for line in shown.splitlines() if line.count("+-") == 3]) == 5


def test_what_is_in_doubt_is_compared_only_where_it_is_asked_for(lossy: Callable[..., str], log: Log) -> None:
    def compared(*at: str) -> list[float]:
        return [
            point["distortion"] for point in json.loads(lossy("compare", "a", "b", *at, "--json"))["points"]
        ]

    log("a")
    log("b", B)
    steepest, *more = compared()
    told = json.loads(lossy("compare", "a", "b", "--json"))
    least, largest = (
        pick(told[side][f"{end}_distortion"] for side in "ab")
        for pick, end in ((max, "least"), (min, "largest"))
    )
    factors = np.array([steepest, *more, largest]) / [least, steepest, *more]
    assert factors == pytest.approx((largest / least) ** (1 / 6))
    doubted = float(A.distortion(IMAGES**2, BETAS[20:21]).mean())
    log("a", doubted_from=float(BETAS[20]))
    assert steepest < doubted < compared()[0] < compared()[-1]
    assert compared("--at", str(steepest)) == [steepest]
    log("a", doubted_from=float(BETAS[0]))
    assert compared()[0] == steepest
    # A likelihood's may be negative.
    log("a", replace(A, offset=-9))
    log("b", replace(B, offset=-9))
    assert compared() == pytest.approx(np.linspace(least - 9, largest - 9, 7)[1:-1])


def test_images_that_each_decoder_has_drawn_itself_are_not_the_same(
    lossy: Callable[..., str], log: Log, client: Any
) -> None:
    runs = [log("a"), log("b", B)]
    assert json.loads(lossy("compare", "a", "b", "--at", "8", "--json"))["paired"] is True
    for run_id in runs:
        client.log_param(run_id, "rd.data", "simulate")
    assert json.loads(lossy("compare", "a", "b", "--at", "8", "--json"))["paired"] is False
    assert json.loads(lossy("plot", "a", "b", "--json"))["same_images"] is False
    assert json.loads(lossy("plot", "a", "--json"))["same_images"] is True


def test_other_features_and_other_sizes_are_other_distortions(
    lossy: Callable[..., str], log: Log, client: Any
) -> None:
    for label, feature_map in (("a", "cnn/1"), ("b", "cnn/2")):
        client.set_tag(log(label, target="features"), "feature_map", feature_map)
    log("pixels")
    log("larger", n_dimensions=784)
    said = _error(ConflictError, lossy, "plot", "a", "b")
    assert "a has the distortion features of cnn/1 over 6 dimensions, that of b features of cnn/2" in said
    assert "lossy evaluate b --set rd.target=features --set rd.feature_map=cnn/1" in said
    said = _error(ConflictError, lossy, "compare", "pixels", "larger")
    assert "mse over 784 dimensions" in said
    assert "differ in size" in said


def test_the_latest_of_a_kind_that_both_have_is_taken(lossy: Callable[..., str], log: Log) -> None:
    """Or the command that a conflict advises would lead back to it, since what is evaluated is evaluated once."""
    pixels = log("a")
    joint = log("a", target="joint")
    other = log("b")
    runs = [curve["run_id"] for curve in json.loads(lossy("plot", "b", "a", "--json"))["curves"]]
    assert runs == [other, pixels]
    assert json.loads(lossy("plot", "a", "--json"))["curves"][0]["run_id"] == joint
    assert json.loads(lossy("compare", "a", "b", "--json"))["a"]["run_id"] == pixels


def test_nothing_is_extrapolated(lossy: Callable[..., str], log: Log) -> None:
    log("a")
    log("b", B)
    log("far", Gaussian(scale=1.0, n_latent=3, variance=400.0), 20 * IMAGES)
    said = _error(UsageError, lossy, "compare", "a", "b", "--at", "0.5")
    assert "a has distortions from " in said
    assert " and b has distortions from " in said
    assert "they share none" in _error(UsageError, lossy, "compare", "a", "far")


def test_what_is_not_there_is_said_with_what_is(lossy: Callable[..., str], log: Log, client: Any) -> None:
    assert "nothing is evaluated there yet" in _error(NotFoundError, lossy, "plot", "vae")
    log("vae10_digits")
    client.set_terminated(log("vae2_digits"), "FAILED")
    said = _error(NotFoundError, lossy, "plot", "vae2_digits")
    assert "one is FAILED, begun " in said
    assert "Go on with it: lossy evaluate vae2_digits, with the options that it had" in said
    said = _error(NotFoundError, lossy, "plot", "vae10_digit")
    assert "evaluated are vae10_digits." in said
    assert "lossy evaluate vae10_digit" in said
    log("joint", target="joint")
    said = _error(ConflictError, lossy, "compare", "vae10_digits", "joint")
    assert "vae10_digits has the distortion mse over 6 dimensions, that of joint joint over 6" in said


def test_another_kind_of_file_or_place_is_refused(lossy: Callable[..., str], log: Log, here: Any) -> None:
    log("a")
    assert ".pdf, .png, .svg" in _error(UsageError, lossy, "plot", "a", "-o", "a.jpeg")
    assert "can't be written" in _error(LossyError, lossy, "plot", "a", "-o", "nowhere/a.png")
    assert "smallest distortion" in _error(UsageError, lossy, "plot", "a", "--max-distortion", "0.1")
    assert list(here.folder.glob("*.png")) == []


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"rate": ["a lot"] * 60}, "rate has what is no number"),
        ({"log_z_se": [0.1]}, "differ in length"),
        ({"beta": [1.0] * 60}, "betas don't rise"),
        ({"closed_form": {"rate": [], "distortion": [], "log_z": []}}, "differ in length"),
        ({"n_dimensions": 0}, "n_dimensions is no whole number above 0"),
        ({"gap": [{"beta": 1.0, "gap": "small", "se": None}]}, "gap has what is no number"),
        ({"gap": 3}, "is damaged"),
        ({"doubts": None}, "is damaged"),
        ({"doubted_from": "soon"}, "doubted_from is no number"),
        ({"more": 1}, "is damaged"),
    ],
)
def test_a_damaged_curve_names_its_run(lossy: Callable[..., str], log: Log, changes: Any, why: str) -> None:
    run_id = log("a", **changes)
    said = _error(LossyError, lossy, "plot", "a")
    assert f"The rd_curve.json of the run {run_id} is damaged" in said
    assert why in said


def test_damaged_numbers_name_their_run(
    lossy: Callable[..., str], log: Log, client: Any, tmp_path: Path
) -> None:
    log("b", B)
    run_id = log("a", n_data=41)
    assert f"of the run {run_id} is damaged: its rate has shape (60, 40), not (60, 41)" in _error(
        LossyError, lossy, "compare", "a", "b"
    )
    run_id = log("a")
    (tmp_path / "rd_data.safetensors").write_bytes(b"\xff" * 64)
    client.log_artifact(run_id, str(tmp_path / "rd_data.safetensors"))
    assert f"of the run {run_id} is damaged." in _error(LossyError, lossy, "compare", "a", "b")

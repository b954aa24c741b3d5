"""`lossy evaluate`, as a person meets it: the run that it makes, what it prints, what it refuses."""

from __future__ import annotations

import json
import math
import platform
import re
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from lossy_mlflow.errors import ConflictError, LossyError, NotFoundError
from tests.conftest import ROOT, Workplace, wait_for
from tests.outbox.proxy import Proxy

SMALL = ("--quick", "--set", "rd.max_beta=1000", "--set", "rd.n_betas=8", "--set", "rd.anneal_steps=120")
TINY = (
    *("--quick", "--set", "rd.n_betas=2", "--set", "rd.anneal_steps=20"),
    *("--set", "rd.batch_size=4", "--set", "rd.gap_beta_indexes=[]"),
)
LISTS = ["beta", "rate", "rate_se", "distortion", "distortion_se", "log_z", "log_z_se", "ess", "acceptance"]


def _runs(client: Any, label: str) -> list[Any]:
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    return list(client.search_runs(ids, f"tags.kind = 'evaluate' and tags.label = '{label}'"))


def _artifact(client: Any, run_id: str, name: str) -> Path:
    return Path(client.download_artifacts(run_id, name))


def _inputs(client: Any, run_id: str) -> tuple[list[tuple[str, str, str]], list[str]]:
    """The run's data sets as (name, context, digest), and its models; `search_runs` leaves the models out."""
    found = client.get_run(run_id).inputs
    images = [(item.dataset.name, item.tags[0].value, item.dataset.digest) for item in found.dataset_inputs]
    return images, [item.model_id for item in found.model_inputs]


def test_a_version_has_a_curve_in_a_run_of_its_own(workplace: Workplace, client: Any) -> None:
    curve = workplace.json("evaluate", "vae10_digits@best", *SMALL, "--log-likelihood")
    (run,) = _runs(client, "vae10_digits")
    tags, version = run.data.tags, client.get_model_version_by_alias("vae10_digits", "best")
    assert run.info.status == "FINISHED"
    assert tags["model_version"] == f"vae10_digits/{version.version}"
    assert tags["weights_sha256"] == version.tags["weights_sha256"] == curve["weights_sha256"]
    assert client.get_experiment(run.info.experiment_id).name == "vaes/digits"
    assert run.data.params["rd.n_betas"] == "8"
    assert _inputs(client, run.info.run_id) == (
        [("digits-test", "test", tags["data_digest"][:8])],
        [version.source.removeprefix("models:/")],
    )

    assert {len(curve[name]) for name in LISTS} == {8}
    assert curve["beta"][0] == pytest.approx(0.03)
    assert curve["beta"][-1] == 1000.0
    assert curve["distortion"] == sorted(curve["distortion"], reverse=True)
    assert all(
        rate == pytest.approx(-log_z - beta * distortion, abs=1e-6)
        for beta, rate, distortion, log_z in zip(
            *(curve[name] for name in ("beta", "rate", "distortion", "log_z")), strict=True
        )
    )
    doubted = [float(beta) for beta in re.findall(r" from beta (\S+) on: ", " ".join(curve["doubts"]))]
    assert curve["doubted_from"] == pytest.approx(min(doubted), rel=1e-3) if doubted else True
    (gap,) = curve["gap"]
    assert gap["beta"] == 1000.0
    assert -3 * gap["se"] < gap["gap"] < 5
    assert curve["closed_form"] is None
    assert curve["log_likelihood"]["log_likelihood_iwae"] < curve["log_likelihood"]["log_likelihood_ais"] + 3

    points = client.get_metric_history(run.info.run_id, "rate")
    assert [point.step for point in points] == list(range(8))
    assert [point.value for point in points] == curve["rate"]
    assert json.loads(_artifact(client, run.info.run_id, "rd_curve.json").read_text()) == curve
    assert {"rd_table.txt", "rd_data.safetensors", "rd_curve.png", "reconstructions.png"} <= {
        item.path for item in client.list_artifacts(run.info.run_id)
    }
    assert " INFO pilot 0: " in _artifact(client, run.info.run_id, "attempts/1/lossy.log").read_text()


def test_the_same_is_evaluated_once_and_another_apart(workplace: Workplace, client: Any) -> None:
    first = workplace.lossy("evaluate", "vae10_digits", *SMALL)
    assert "evaluated: vae10_digits/" in first.stdout, first.stderr
    assert "gap at beta 1000" in first.stdout
    again = workplace.lossy("evaluate", "vae10_digits", *SMALL)
    assert "is evaluated already" in again.stdout
    assert len(_runs(client, "vae10_digits")) == 1
    other = workplace.lossy("evaluate", "vae10_digits", *SMALL, "--data", "simulate")
    assert "evaluated: " in other.stdout
    runs = _runs(client, "vae10_digits")
    assert len({run.data.tags["evaluation_sha256"] for run in runs}) == 2
    drawn, test = (_inputs(client, run.info.run_id) for run in runs)
    assert (drawn[0][0][:2], test[0][0][:2]) == (
        ("vae10_digits/1-simulate", "simulate"),
        ("digits-test", "test"),
    )
    assert drawn[1] == test[1]


def test_one_that_was_stopped_is_said_with_the_command_that_goes_on(
    lossy: Callable[..., str], client: Any
) -> None:
    words = ("vae10_digits", *TINY, "--data", "simulate")
    lossy("evaluate", *words)
    (run,) = _runs(client, "vae10_digits")
    run_id, host = run.info.run_id, platform.node()
    client.set_tag(run_id, "state_reason", "It was stopped.")
    client.set_terminated(run_id, "KILLED")
    for verb in (("plot", "vae10_digits"), ("compare", "vae10_digits", "vae10_digits", "--quick")):
        with pytest.raises(
            NotFoundError, match=rf"one is KILLED, begun .* UTC on {host}: It was stop"
        ) as said:
            lossy(*verb)
        command = said.value.hint.removeprefix("Go on with it: lossy ")
        assert "gone on with and evaluated" in lossy(*shlex.split(command))
        assert client.get_run(run_id).info.status == "FINISHED"
        client.set_tag(run_id, "state_reason", "It was stopped.")
        client.set_terminated(run_id, "KILLED")
    assert len(_runs(client, "vae10_digits")) == 1

    client.update_run(run_id, "RUNNING")
    client.set_tag(run_id, "owner", "otherhost:1234")
    client.set_tag(run_id, "heartbeat", str(int(time.time())))
    with pytest.raises(NotFoundError, match=r"one is RUNNING, begun .* UTC on otherhost") as said:
        lossy("plot", "vae10_digits")
    assert said.value.hint == f"Wait for it; if it dies, go on with it: lossy {command}"
    with pytest.raises(
        ConflictError, match=r"vae10_digits is being evaluated on otherhost \(its last heartbe"
    ):
        lossy("evaluate", *words)
    client.set_tag(run_id, "heartbeat", "1000")
    with pytest.raises(NotFoundError, match="gives no sign of life"):
        lossy("plot", "vae10_digits")


def test_a_copy_is_the_same_model_and_plain_files_are_none(
    lossy: Callable[..., str], client: Any, tmp_path: Path
) -> None:
    version = client.get_model_version_by_alias("vae10_digits", "best")
    lossy("promote", "vae10_digits@best", "--to", "production", "--because", "a trial")
    lossy("promote", "production@champion", "--to", "abroad", "--because", "another")
    run = client.create_run(client.create_experiment("by hand"))
    lossy("download", "vae10_digits@best", "-o", str(tmp_path / "decoder"))
    client.log_artifacts(run.info.run_id, str(tmp_path / "decoder"), "decoder")
    client.create_registered_model("plain")
    client.create_model_version(
        "plain", f"{run.info.artifact_uri}/decoder", run.info.run_id, tags=version.tags
    )
    models = {}
    for name in ("abroad@champion", "plain/1"):
        lossy("evaluate", name, *TINY)
        (run,) = _runs(client, name.partition("@")[0].partition("/")[0])
        assert run.info.status == "FINISHED"
        models[name] = _inputs(client, run.info.run_id)[1]
    assert models == {"abroad@champion": [version.source.removeprefix("models:/")], "plain/1": []}


def test_a_linear_decoder_is_held_against_its_closed_form(workplace: Workplace) -> None:
    curve = workplace.json(
        "evaluate", "linear_vae10_digits", "--quick", "--set", "rd.max_beta=1000", "--set", "rd.n_betas=8"
    )
    exact = curve["closed_form"]
    for beta, log_z, se, true in zip(
        curve["beta"], curve["log_z"], curve["log_z_se"], exact["log_z"], strict=True
    ):
        # The chains' own error is below 0.5 nat here, of which 16 images leave an eighth.
        assert abs(log_z - true) < 0.5 + 0.1 * se, beta
    assert exact["rate"] == sorted(exact["rate"])


def test_under_a_mixture_prior_a_rate_rises_by_what_the_bad_share_costs(workplace: Workplace) -> None:
    mixture = ("--set", "rd.mixture_weight=0.99", "--set", "rd.bad_std=10")
    plain = workplace.json("evaluate", "vae10_digits", *SMALL)
    found = workplace.json("evaluate", "vae10_digits", *SMALL, *mixture, "--log-likelihood")
    rises = [here - there for there, here in zip(found["log_z"], plain["log_z"], strict=True)]
    assert max(rises) < -math.log(0.01) + 1e-6
    # Of images that the decoder draws from a prior ten times as wide, which are hard: so few steps leave much.
    assert found["gap"][0]["gap"] > -3 * found["gap"][0]["se"]
    assert found["log_likelihood"]["log_likelihood_ais"] > -1000
    linear = workplace.json("evaluate", "linear_vae10_digits", *SMALL, *mixture, "--data", "simulate")
    exact = linear["closed_form"]
    for name in ("log_z", "rate"):
        off = [abs(one - other) for one, other in zip(linear[name], exact[name], strict=True)]
        assert max(off) < 3.0, name


def test_a_set_of_ones_own_takes_the_tuning_of_another(workplace: Workplace, client: Any) -> None:
    code = workplace.folder / "sets.py"
    code.write_text(
        """
from lossy_mlflow import Hparam, register_hparams
from lossy_mlflow.hparams.catalogue.parts import default_rd

@register_hparams
def first():
    rd = default_rd()
    rd.n_betas, rd.max_beta, rd.anneal_steps, rd.batch_size, rd.n_chains = 6, 500.0, 100, 6, 4
    rd.gap_beta_indexes = []
    return Hparam(
        group_list=["mine"], load_checkpoint_name="vae10_digits", chkt_step=-2, step_sizes_target=None, rd=rd
    )

@register_hparams
def second():
    tree = first()  # a fresh tree
    tree.step_sizes_target = "first"
    tree.rd.random_seed = 9
    return tree
"""
    )
    own = ("--user-code", str(code))
    early = workplace.lossy("evaluate", "second", *own)
    assert early.returncode == 3
    assert "lossy evaluate first" in early.stderr
    assert workplace.lossy("evaluate", "first", *own).returncode == 0
    curve = workplace.json("evaluate", "second", *own)
    (first,), (second,) = _runs(client, "first"), _runs(client, "second")
    assert second.data.tags["step_sizes_from"] == first.info.run_id
    assert client.get_experiment(second.info.experiment_id).name == "mine"
    assert curve["reference"].startswith("vae10_digits/")
    assert _artifact(client, second.info.run_id, "tuning/batch_0.safetensors").exists()


def test_a_tuning_of_a_changed_decoder_is_of_other_data(workplace: Workplace, client: Any) -> None:
    """Blurred, it has smaller masses, by which chains of the sharp one would hardly move: step sizes alone are taken.

    Of the latest evaluation by chains.
    """
    whole = (
        *("--set", "rd.max_beta=1000", "--set", "rd.n_betas=8", "--set", "rd.anneal_steps=120"),
        *("--set", "rd.batch_size=8", "--set", "rd.n_chains=8", "--set", "rd.gap_beta_indexes=[]"),
    )
    workplace.json("evaluate", "vae10_digits", *whole, "--set", "rd.blur_std=2")
    (blurred,) = _runs(client, "vae10_digits")
    assert blurred.data.tags["changed"] == "blurred by 2 pixels"
    encoders = ("--set", "rd.estimator=variational", "--set", "rd.encoder_epochs=1")
    workplace.json("evaluate", "vae10_digits", *whole, *encoders)
    assert "by encoders" in workplace.lossy("plot", "vae10_digits").stderr
    found = workplace.json("evaluate", "vae10_digits", *whole, "--set", "step_sizes_target=vae10_digits")
    assert _runs(client, "vae10_digits")[0].data.tags["step_sizes_from"] == blurred.info.run_id
    assert min(found["acceptance"]) > 0.3


def test_what_is_set_by_hand_counts_beside_quick(workplace: Workplace) -> None:
    more = ("--set", "rd.n_chains=12", "--set", "rd.n_betas=2")
    assert workplace.json("evaluate", "vae10_digits", *TINY[:1], *TINY[3:], *more)["n_chains"] == 12
    refused = workplace.lossy("evaluate", "vae10_digits", "--quick", "--set", "rd.gap_beta_indexes=[99]")
    assert refused.returncode == 2
    assert "there are 40 betas" in refused.stderr


@pytest.mark.campaign
def test_encoders_give_a_curve_above(workplace: Workplace) -> None:
    few = ("--quick", "--set", "rd.max_beta=30", "--set", "rd.n_betas=5", "--set", "rd.gap_beta_indexes=[]")
    chains = workplace.json("evaluate", "vae10_digits", *few)
    encoders = workplace.json(
        "evaluate", "vae10_digits", *few, "--set", "rd.estimator=variational", "--set", "rd.encoder_epochs=4"
    )
    bounds = zip(chains["beta"], encoders["log_z"], chains["log_z"], strict=True)
    assert all(bound < log_z + 0.5 for _, bound, log_z in bounds)
    assert encoders["ess"] == [None] * 5


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("vae10_digit",), 3, "did you mean vae10_digits"),
        (("vae10_digits", "--set", "rd.n_chain=3"), 2, "rd.n_chains"),
        (("vae10_digits", "--set", "rd.random_seed=6"), 2, "rd.pilot_seed and rd.random_seed are both 6"),
        (("vae10_digits", "--set", "rd.n_batch=100"), 2, "has 300 test images"),
        (("vae10_digits", "--set", "rd.target=features"), 2, "rd.feature_map"),
        (("vae10_digits", "--set", "rd.min_beta=50000"), 2, "there is nothing between them"),
        (("vae10_digits", "--set", "rd.gap_beta_indexes=[100]"), 2, "there are 100 betas"),
        (("vae10_digits", "--set", "rd.target=l1"), 2, "one of mse, joint, features"),
        (("vae10_digits", "--set", "rd.mixture_weight=0.5"), 2, "a mixture prior needs both"),
    ],
)
def test_what_does_not_fit_is_said(
    lossy: Callable[..., str], client: Any, words: tuple[str, ...], code: int, said: str
) -> None:
    with pytest.raises(LossyError) as refused:
        lossy("evaluate", *words)
    assert refused.value.exit_code == code
    assert said in f"{refused.value.what} {refused.value.hint}"
    assert _runs(client, "vae10_digits") == []


def test_as_an_entry_point_and_in_python(workplace: Workplace, client: Any) -> None:
    from tests.conftest import mlflow_run

    overrides = " ".join(word for word in SMALL[1:] if word != "--set")
    done = mlflow_run(
        workplace, ROOT, name="vae10_digits", quick="true", overrides=overrides, entry_point="evaluate"
    )
    assert done.returncode == 0, done.stderr
    (run,) = _runs(client, "vae10_digits")
    assert run.info.status == "FINISHED"
    assert "mlflow.project.entryPoint" in run.data.tags
    code = """
import lossy_mlflow
small = {"rd.max_beta": 1000.0, "rd.n_betas": 8, "rd.anneal_steps": 120}
result = lossy_mlflow.evaluate("vae10_digits", quick=True, overrides=small)
print(result.started, len(result.curve.rate))
"""
    assert workplace.run(sys.executable, "-c", code).stdout.split() == ["finished", "8"]
    assert math.isfinite(run.data.metrics["bdmc_gap"])


def test_it_is_evidence_for_its_weights(workplace: Workplace) -> None:
    whole = [word for word in SMALL if word != "--quick"]
    small = ("--set", "rd.batch_size=6", "--set", "rd.n_chains=4", "--set", "rd.gap_images=4")
    words = (*whole, *small, "--set", "rd.gap_beta_indexes=[-1]")
    assert workplace.lossy("evaluate", "vae10_digits", *words).returncode == 0
    lineage = workplace.json("lineage", "vae10_digits@best")
    assert len(lineage["evaluations"]) == 1
    promoted = workplace.lossy("promote", "vae10_digits@best", "--to", "production")
    assert f"evaluated in {lineage['evaluations'][0]}, gap" in promoted.stderr
    (entry,) = workplace.json("history", "production")["entries"]
    assert entry["evidence"]["evaluation"] == lineage["evaluations"][0]
    assert math.isfinite(entry["evidence"]["bdmc_gap"])
    assert workplace.json("lineage", "production@champion")["evaluations"] == lineage["evaluations"]


def test_by_a_server_it_goes_through_the_outbox(workplace: Workplace, mlflow_server: str) -> None:
    """Trained, evaluated and evaluated again, on an `mlflow server`; and evaluated with all of it delivered later."""
    workplace.environment["MLFLOW_TRACKING_URI"] = mlflow_server
    few = ("--set", "model_train.epochs=2", "--set", "checkpointing_freq=2", "--e-name", "served")
    assert workplace.lossy("train", "vae10_digits", *few).returncode == 0
    curve = workplace.json("evaluate", "vae10_digits_served", *SMALL)
    again = workplace.lossy("evaluate", "vae10_digits_served", *SMALL)
    assert "is evaluated already" in again.stdout, again.stderr
    client = MlflowClient(mlflow_server)
    (run,) = _runs(client, "vae10_digits_served")
    assert run.info.status == "FINISHED"
    assert [point.value for point in client.get_metric_history(run.info.run_id, "rate")] == curve["rate"]
    assert json.loads(_artifact(client, run.info.run_id, "rd_curve.json").read_text()) == curve
    images, models = _inputs(client, run.info.run_id)
    version = client.get_model_version("vae10_digits_served", "1")
    assert models == [version.source.removeprefix("models:/")]
    assert workplace.completed("lossy plot vae10_digits_s") == ["vae10_digits_served"]

    proxy = Proxy(mlflow_server)
    late = {"MLFLOW_TRACKING_URI": proxy.uri, "LOSSY_OUTBOX_DELAY": "600"}
    process = workplace.start("evaluate", "vae10_digits_served", *SMALL, "--data", "train", env=late)
    wait_for(lambda: len(_runs(client, "vae10_digits_served")) == 2, 60, "a run")
    proxy.mode = "refuse"
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    assert "waits on this machine" in out
    (run,) = [run for run in _runs(client, "vae10_digits_served") if run.info.status != "FINISHED"]
    assert _inputs(client, run.info.run_id) == ([], [])
    proxy.mode = "pass"
    folder = workplace.folder.parent / "home" / "state" / "lossy_mlflow" / "outbox"
    assert workplace.lossy("outbox", "send", str(folder), "--to", proxy.uri).returncode == 0
    assert client.get_run(run.info.run_id).info.status == "FINISHED"
    (image,), again = _inputs(client, run.info.run_id)
    assert (image[:2], again) == (("digits-train", "train"), models)
    assert image[2] != images[0][2]
    proxy.close()

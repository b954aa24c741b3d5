"""The main job, as a person meets it: the command line, a plain MLflow client, MLflow's own loader."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from tests.conftest import Workplace

SHORT = ("--set", "model_train.epochs=4", "--set", "checkpointing_freq=2", "--set", "start_checkpointing=2")


def test_a_set_becomes_a_run_with_params_metrics_pictures_data_and_a_decoder(
    workplace: Workplace, client: Any
) -> None:
    done = workplace.lossy("train", "vae10_digits", *SHORT)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "vae10_digits trained" in done.stdout
    for line in (
        "See it in the UI    mlflow ui",
        "Load it in Python   python -c",
        "Train another       lossy train vae10_digits",
    ):
        assert line in done.stdout

    result = workplace.json("train", "vae10_digits", *SHORT)
    assert result["started"] == "finished"
    run = client.get_run(result["run_id"])
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "vae10_digits"
    assert client.get_experiment(run.info.experiment_id).name == "vaes/digits"
    shown = workplace.json("hparams", "show", "vae10_digits", *SHORT)
    assert run.data.params.keys() == shown.keys()
    assert run.data.params["model_train.z_size"] == "10"
    assert run.data.params["model_train.epochs"] == "4"
    for metric in ("train_loss", "val_loss", "epoch_seconds", "images_per_second"):
        assert [point.step for point in client.get_metric_history(result["run_id"], metric)] == [1, 2, 3, 4]
    assert {item.dataset.name for item in run.inputs.dataset_inputs} == {
        "digits-training",
        "digits-validation",
    }

    top = {item.path for item in client.list_artifacts(result["run_id"])}
    assert {
        "hparams.json",
        "images",
        "training_state",
        "attempts",
        "samples.png",
        "reconstructions.png",
    } <= top
    pictures = [
        item.path for item in client.list_artifacts(result["run_id"], "images") if item.path.endswith(".png")
    ]
    for key in ("samples", "reconstructions"):
        steps = sorted(int(path.split("+")[2]) for path in pictures if path.startswith(f"images/{key}+step+"))
        assert steps == [0, 2, 4]

    versions = client.search_model_versions("name = 'vae10_digits'")
    assert {version.tags["epoch"] for version in versions} >= {"2", "4"}
    for version in versions:
        wanted = {"val_loss", "hparam_set", "hparams_sha256", "weights_sha256", "dataset_digest"}
        assert wanted <= version.tags.keys()
    aliases = client.get_registered_model("vae10_digits").aliases
    losses = {version.version: float(version.tags["val_loss"]) for version in versions}
    epochs = {version.version: int(version.tags["epoch"]) for version in versions}
    assert losses[aliases["best"]] == min(losses.values())
    assert epochs[aliases["last"]] == 4


def test_the_decoder_is_loaded_by_name_and_by_mlflow_alone(workplace: Workplace) -> None:
    result = workplace.json("train", "vae10_digits", *SHORT)
    reference = workplace.lossy("resolve", "vae10_digits@best")
    assert reference.stdout == f"models:/vae10_digits/{result['best_version']}\n"
    assert workplace.lossy("resolve", "vae10_digits").stdout == reference.stdout
    rows = workplace.json("checkpoints", "vae10_digits")
    assert [row["version"] for row in rows] == sorted((row["version"] for row in rows), reverse=True)
    assert rows[0].keys() >= {"version", "epoch", "val_loss", "aliases", "run_id", "created"}

    code = """
import json, sys
import mlflow, numpy as np
z = np.linspace(-1, 1, 30, dtype=np.float32).reshape(3, 10)
plain = mlflow.pyfunc.load_model("models:/vae10_digits@best").predict(z)
import lossy_mlflow, torch
decoder = lossy_mlflow.load_decoder("vae10_digits@best")
with torch.no_grad():
    x_mean, x_logvar = decoder.decode(torch.from_numpy(z))
print(json.dumps([plain.shape, bool(np.array_equal(plain, x_mean.numpy())), float(x_mean.min()), float(x_mean.max())]))
"""
    done = workplace.run(sys.executable, "-c", code, env={"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"})
    assert done.returncode == 0, done.stderr
    shape, same, low, high = json.loads(done.stdout)
    assert shape == [3, 64]
    assert same
    assert 0 <= low < high <= 1


def test_training_by_name_is_idempotent_as_make_is(workplace: Workplace, client: Any) -> None:
    first = workplace.json("train", "vae2_digits", *SHORT)
    assert first["started"] == "new"
    assert workplace.json("train", "vae2_digits", *SHORT)["run_id"] == first["run_id"]

    refused = workplace.lossy("train", "vae2_digits", *SHORT, "--set", "learning_rate=0.5")
    assert refused.returncode == 4
    assert "learning_rate" in refused.stderr
    assert "0.5" in refused.stderr
    assert "--overwrite" in refused.stderr

    beside = workplace.json(
        "train", "vae2_digits", "--e-name", "it's a try", *SHORT, "--set", "learning_rate=0.002"
    )
    assert beside["label"] == "vae2_digits_it's a try"
    assert workplace.json("resolve", "vae2_digits_it's a try@best")["run_id"] == beside["run_id"]

    anew = workplace.json("train", "vae2_digits", "--overwrite", *SHORT, "--set", "learning_rate=0.002")
    assert anew["run_id"] != first["run_id"]
    assert client.get_run(first["run_id"]).info.lifecycle_stage == "deleted"
    aliases = client.get_registered_model("vae2_digits").aliases
    for alias in ("best", "last"):
        assert client.get_model_version("vae2_digits", aliases[alias]).run_id == anew["run_id"]


@pytest.mark.campaign
def test_a_promoted_decoder_keeps_its_run_when_its_label_is_overwritten(
    workplace: Workplace, client: Any
) -> None:
    first = workplace.json("train", "vae2_digits", *SHORT)
    client.set_registered_model_alias("vae2_digits", "champion", first["best_version"])
    anew = workplace.json("train", "vae2_digits", "--overwrite", *SHORT)
    run = client.get_run(first["run_id"])
    assert run.info.lifecycle_stage == "active"
    assert run.data.tags["superseded_by"] == anew["run_id"]


@pytest.mark.campaign
def test_the_same_name_and_seed_give_the_same_numbers(workplace: Workplace) -> None:
    one = workplace.json("train", "vae2_digits", *SHORT)
    two = workplace.json("train", "vae2_digits", *SHORT, "--e-name", "again")
    other = workplace.json("train", "vae2_digits", *SHORT, "--e-name", "other", "--set", "random_seed=7")
    assert one["val_loss"] == two["val_loss"]
    assert one["val_loss"] != other["val_loss"]
    weights = [
        workplace.json("resolve", f"{label}@last")["weights_sha256"]
        for label in ("vae2_digits", "vae2_digits_again")
    ]
    assert weights[0] == weights[1]


@pytest.mark.campaign
def test_a_training_starts_from_another_labels_model(workplace: Workplace, client: Any) -> None:
    parent = workplace.json("train", "vae2_digits", *SHORT)
    child = workplace.lossy(
        "train", "vae2_digits", "--e-name", "child", *SHORT, "--set", "load_checkpoint_name=vae2_digits",
        "--set", "chkt_step=4", "--json",
    )  # fmt: skip
    assert child.returncode == 0, child.stderr
    result = json.loads(child.stdout)
    taken = (
        f"vae2_digits/{parent['last_version']} (epoch 4): the decoder whole, 8 of 8 tensors of the encoder"
    )
    assert result["started_from"].startswith(taken)
    version = client.get_model_version("vae2_digits_child", str(result["last_version"]))
    assert version.tags["parent_version"] == f"vae2_digits/{parent['last_version']}"
    first = client.get_metric_history(result["run_id"], "train_loss")[0].value
    assert first < client.get_metric_history(parent["run_id"], "train_loss")[0].value

    missing = workplace.lossy(
        "train", "vae2_digits", "--e-name", "x", "--set", "load_checkpoint_name=vae3_digits"
    )
    assert missing.returncode == 3
    assert "did you mean vae2_digits" in missing.stderr
    unfit = workplace.lossy("train", "vae10_digits", "--set", "load_checkpoint_name=vae2_digits")
    assert unfit.returncode == 4
    assert "doesn't fit" in unfit.stderr

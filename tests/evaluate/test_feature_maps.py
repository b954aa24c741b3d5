"""A classifier trained by name like any other, and distortion by its features."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import pytest

from tests.conftest import Workplace

SMALL = {"n_betas": 6, "anneal_steps": 100, "max_beta": 1.0, "batch_size": 8, "n_chains": 4, "gap_images": 6}
FEW = ("--quick", *(f"--set=rd.{key}={value}" for key, value in SMALL.items()))
BY_FEATURES = ("--set", "rd.target=features", "--set", "rd.feature_map=cnn_digits")
TRAINED = ("--set", "model_train.epochs=8", "--set", "checkpointing_freq=8")

ASK = """
import json, mlflow, numpy as np, torch, lossy_mlflow
from lossy_mlflow.data import data_folder, load_splits
model = lossy_mlflow.load_decoder("cnn_digits@best")
splits = load_splits("digits", data_folder(None), 6, labels=True)
with torch.no_grad():
    ours = model.features(splits.test[:20])
    right = (model.logits(splits.test).argmax(1) == splits.test_labels).float().mean().item()
    loss = model.loss(torch.cat([splits.val, splits.val_labels.unsqueeze(1)], 1), None)[0].item()
theirs = mlflow.pyfunc.load_model("models:/cnn_digits@best").predict(splits.test[:20].numpy())
print(json.dumps([float(np.abs(ours.numpy() - theirs).max()), right, loss, list(theirs.shape)]))
"""


@pytest.fixture
def classified(workplace: Workplace) -> Workplace:
    done = workplace.lossy("train", "cnn_digits", *TRAINED)
    assert done.returncode == 0, done.stderr
    return workplace


def test_a_classifier_is_trained_published_and_measured_by(classified: Workplace, client: Any) -> None:
    difference, right, loss, shape = json.loads(
        classified.run(sys.executable, "-c", ASK).stdout.splitlines()[-1]
    )
    assert (difference, shape) == (0.0, [20, 800])
    # One in ten by chance; 8 epochs give 0.9.
    assert right > 0.7
    version = client.get_model_version_by_alias("cnn_digits", "best")
    assert loss == pytest.approx(float(version.tags["val_loss"]), abs=1e-4)
    accuracy = client.get_metric_history(version.run_id, "train_accuracy")
    assert accuracy[0].value < accuracy[-1].value <= 1
    assert "map of features" in client.get_registered_model("cnn_digits").description

    curve = classified.json("evaluate", "vae10_digits", *FEW, *BY_FEATURES)
    assert (curve["target"], curve["n_dimensions"]) == ("features", 800)
    assert np.diff(curve["distortion"]).max() < 0 < np.diff(curve["rate"]).min()
    (gap,) = curve["gap"]
    assert -3 * gap["se"] < gap["gap"] < 5
    (run,) = client.search_runs(
        [experiment.experiment_id for experiment in client.search_experiments()], "tags.kind = 'evaluate'"
    )
    assert run.data.tags["feature_map"] == f"cnn_digits/{version.version}"

    refused = classified.lossy("evaluate", "cnn_digits", *FEW)
    assert refused.returncode == 2
    assert "is no decoder but a map of features: it has no rate." in refused.stderr


@pytest.mark.campaign
def test_another_map_of_the_same_name_is_another_evaluation(classified: Workplace) -> None:
    curve = classified.json("evaluate", "vae10_digits", *FEW, *BY_FEATURES)
    again = classified.lossy("train", "cnn_digits", *TRAINED, "--set", "random_seed=7", "--overwrite")
    assert again.returncode == 0, again.stderr
    other = classified.json("evaluate", "vae10_digits", *FEW, *BY_FEATURES)
    assert other["data_digest"] != curve["data_digest"]
    assert other["rate"] != curve["rate"]

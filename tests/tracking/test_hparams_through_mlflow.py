"""Any tree goes through MLflow's params, in a real database, and comes back as it was."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest
from hypothesis import HealthCheck, given, settings

from lossy_mlflow.hparams import Hparam, freeze, hparams_sha256
from lossy_mlflow.tracking.runs import hparams_of_run, log_hparams, runs_of_label, set_tags
from tests.conftest import Workplace
from tests.hparams.strategies import trees


@pytest.fixture
def experiment(here: Workplace) -> str:
    return mlflow.MlflowClient().create_experiment("round trip")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(trees)
def test_any_tree_comes_back_from_its_run(experiment: str, tree: Hparam) -> None:
    client = mlflow.MlflowClient()
    run_id = client.create_run(experiment).info.run_id
    set_tags(client, run_id, {"hparams_sha256": hparams_sha256(tree)})
    log_hparams(client, run_id, tree)
    log_hparams(client, run_id, tree)  # as a resumed run does
    assert hparams_of_run(client, client.get_run(run_id)) == freeze(tree)


def test_a_tree_of_300_fields_and_of_long_values(experiment: str) -> None:
    tree = Hparam(**{f"field{i}": i for i in range(300)}, long="é" * 7000)
    client = mlflow.MlflowClient()
    run_id = client.create_run(experiment).info.run_id
    set_tags(client, run_id, {"hparams_sha256": hparams_sha256(tree)})
    log_hparams(client, run_id, tree)
    run = client.get_run(run_id)
    assert len(run.data.params) == 301
    assert run.data.params["long"].startswith("sha256:")
    assert hparams_of_run(client, run) == freeze(tree)


@pytest.mark.parametrize("label", ["plain", "it's", 'a "b"', "a%b_", "a\\b", "$(x)", "ü"])
def test_a_run_is_found_by_any_label(experiment: str, label: str) -> None:
    client = mlflow.MlflowClient()
    client.create_run(experiment, tags={"kind": "train", "label": label + "2"})
    wanted = client.create_run(experiment, tags={"kind": "train", "label": label})
    client.create_run(experiment, tags={"kind": "train", "label": label, "same_as": "x"})
    client.create_run(experiment, tags={"kind": "evaluate", "label": label})
    assert [run.info.run_id for run in runs_of_label(client, label)] == [wanted.info.run_id]


def test_the_artifact_of_a_tree_is_read_as_it_is_written(experiment: str, tmp_path: Path) -> None:
    client = mlflow.MlflowClient()
    run_id = client.create_run(experiment).info.run_id
    log_hparams(client, run_id, Hparam(a=1.0, b=Hparam(), c="1"))
    text = Path(client.download_artifacts(run_id, "hparams.json", str(tmp_path))).read_text()
    assert text == '{\n "a": "1.0",\n "b": "{}",\n "c": "\\"1\\""\n}'

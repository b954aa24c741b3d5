"""The library in a person's own program, beside their own MLflow code."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import mlflow
import numpy as np
import pytest
import torch
from torch import nn

import lossy_mlflow
from lossy_mlflow.checkpoints.flavor import files_sha256
from lossy_mlflow.checkpoints.load import local_copy
from lossy_mlflow.errors import ConflictError, LossyError, NotFoundError, UsageError
from lossy_mlflow.experiments import EpochDone
from lossy_mlflow.tracking.runs import search_all_runs
from tests.conftest import ROOT, Workplace

SHORT = {"model_train.epochs": 2, "checkpointing_freq": 1, "start_checkpointing": 1}


def test_train_and_load_by_name(here: Workplace) -> None:
    heard: list[EpochDone] = []
    result = lossy_mlflow.train("vae2_digits", overrides=SHORT, progress=heard.append)
    assert [(done.epoch, done.epochs) for done in heard] == [(1, 2), (2, 2)]
    assert heard[-1].val_loss == result.val_loss
    decoder = lossy_mlflow.load_decoder("vae2_digits@best")
    assert not decoder.training
    z = torch.zeros(3, 2, requires_grad=True)
    x_mean, x_logvar = decoder.decode(z)  # type: ignore[operator]
    assert x_mean.shape == (3, 64)
    assert x_logvar.numel() == 1
    x_mean.sum().backward()
    assert z.grad is not None
    assert z.grad.abs().sum() > 0


def test_an_error_is_of_a_class_that_a_program_can_catch(here: Workplace) -> None:
    with pytest.raises(NotFoundError, match="vae2_digits"):
        lossy_mlflow.train("vae2_digit")
    with pytest.raises(UsageError):
        lossy_mlflow.train("vae2_digits", overrides={"learning_rate": "fast"})
    with pytest.raises(NotFoundError):
        lossy_mlflow.load_decoder("nothing@best")


def test_a_stopped_attempt_that_another_machine_has_superseded_stores_nothing(here: Workplace) -> None:
    client = mlflow.MlflowClient()
    run_ids = []

    def taken_up_elsewhere_then_stopped(done: EpochDone) -> None:
        if done.epoch == 3:
            run_id = search_all_runs(client, "tags.label = 'vae2_digits'")[0].info.run_id
            run_ids.append(run_id)
            client.set_tag(run_id, "attempt", "another's")
            client.set_tag(run_id, "owner", "elsewhere:1")
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(ConflictError, match="taken up on elsewhere"):
        lossy_mlflow.train(
            "vae2_digits",
            overrides={"model_train.epochs": 9, "checkpointing_freq": 2, "start_checkpointing": 2},
            progress=taken_up_elsewhere_then_stopped,
        )
    run = client.get_run(run_ids[0])
    assert run.info.status == "RUNNING"
    assert json.loads(run.data.tags["training_state"])["epoch"] == 2


def test_other_mlflow_code_in_the_process_still_works(here: Workplace) -> None:
    """A model that draws figures and logs its own metrics, autologging, and a run of the caller's own around it all."""

    @lossy_mlflow.register_model("chatty")
    class Chatty(nn.Module):
        def __init__(self, hparams: lossy_mlflow.Hparam) -> None:
            super().__init__()
            self.net = nn.Linear(hparams.model_train.z_size, hparams.dataset.input_vector_length)
            self.x_logvar = torch.zeros(())
            self.batches = 0

        def decode(self, z: torch.Tensor) -> torch.Tensor:
            return self.net(z)

        def loss(
            self, batch: torch.Tensor, generator: torch.Generator
        ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            self.batches += 1
            if self.batches == 1:
                figure, axes = plt.subplots()
                axes.plot([1, 2])
                mlflow.log_figure(figure, "mine.png")
                mlflow.log_metric("my_metric", 7.0)
                mlflow.log_param("my_param", "1.50")
            z = torch.randn(len(batch), 2, generator=generator)
            return (self.decode(z) - batch).square().sum(1).mean(), {}

    @lossy_mlflow.register_hparams
    def chatty_digits() -> lossy_mlflow.Hparam:
        """A model that logs things of its own."""
        from lossy_mlflow.hparams.catalogue.digits import vae2_digits

        tree = vae2_digits()
        tree.model_name = "chatty"
        return tree

    mlflow.autolog(silent=True)
    try:
        mlflow.set_experiment("mine")
        with mlflow.start_run() as outer:
            result = lossy_mlflow.train("chatty_digits", overrides=SHORT)
            active = mlflow.active_run()
            assert active is not None
            assert active.info.run_id == outer.info.run_id
            mlflow.log_metric("after", 1.0)
    finally:
        mlflow.autolog(disable=True)
    client = mlflow.MlflowClient()
    run = client.get_run(result.run_id)
    assert run.data.metrics["my_metric"] == 7.0
    assert "mine.png" in {item.path for item in client.list_artifacts(result.run_id)}
    assert client.get_run(outer.info.run_id).data.metrics == {"after": 1.0}
    assert client.get_run(outer.info.run_id).info.status == "FINISHED"
    # A param of the user's own doesn't change which tree the run is of.
    assert lossy_mlflow.train("chatty_digits", overrides=SHORT).started == "finished"
    with pytest.raises(ConflictError, match="learning_rate"):
        lossy_mlflow.train("chatty_digits", overrides=SHORT | {"learning_rate": 0.5})
    assert mlflow.pyfunc.load_model("models:/chatty_digits@last").predict(
        np.zeros((1, 2), np.float32)
    ).shape == (1, 64)


def test_a_model_that_raises_ends_its_run_as_failed_with_the_reason(here: Workplace) -> None:
    @lossy_mlflow.register_model("broken")
    class Broken(nn.Module):
        def __init__(self, _hparams: lossy_mlflow.Hparam) -> None:
            super().__init__()
            self.net = nn.Linear(2, 64)
            self.x_logvar = torch.zeros(())
            self.batches = 0

        def decode(self, z: torch.Tensor) -> torch.Tensor:
            return self.net(z)

        def loss(
            self, batch: torch.Tensor, _generator: torch.Generator
        ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            self.batches += 1
            if self.batches > 5:
                raise RuntimeError("no such luck at http://me:secret@host/x")
            return (self.net(batch[:, :2]) - batch).square().sum(1).mean(), {}

    @lossy_mlflow.register_hparams
    def broken_digits() -> lossy_mlflow.Hparam:
        """A model that raises."""
        from lossy_mlflow.hparams.catalogue.digits import vae2_digits

        tree = vae2_digits()
        tree.model_name = "broken"
        return tree

    with pytest.raises(RuntimeError, match="no such luck"):
        lossy_mlflow.train("broken_digits")
    client = mlflow.MlflowClient()
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    (run,) = client.search_runs(ids)
    assert run.info.status == "FAILED"
    assert "no such luck" in run.data.tags["state_reason"]
    assert "secret" not in run.data.tags["state_reason"]
    assert mlflow.active_run() is None


def test_the_cache_takes_only_what_was_published(here: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    lossy_mlflow.train("vae2_digits", overrides=SHORT)
    from lossy_mlflow.checkpoints import resolve

    checkpoint = resolve("vae2_digits@best")
    entry = local_copy(checkpoint)
    assert entry.name == checkpoint.files_sha256 == files_sha256(entry)
    cached = entry.stat().st_mtime_ns
    lossy_mlflow.load_decoder("vae2_digits@best")
    assert entry.stat().st_mtime_ns == cached

    monkeypatch.setenv("LOSSY_CACHE_DIR", str(here.folder / "other_cache"))
    (stored,) = (
        path for path in here.folder.glob("mlruns/*/models/*/artifacts") if files_sha256(path) == entry.name
    )
    weights = stored / "data" / "decoder" / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(LossyError, match="not what was published"):
        lossy_mlflow.load_decoder("vae2_digits@best")
    assert not list((here.folder / "other_cache" / "decoders").iterdir())


@pytest.mark.campaign
def test_two_processes_may_fill_the_cache_at_once(here: Workplace) -> None:
    lossy_mlflow.train("vae2_digits", overrides=SHORT)
    code = (
        "from lossy_mlflow.checkpoints import resolve\nfrom lossy_mlflow.checkpoints.load import local_copy\n"
        "print(local_copy(resolve('vae2_digits')))"
    )
    environment = here.environment | {"LOSSY_CACHE_DIR": str(here.folder / "shared_cache")}
    loading = [
        subprocess.Popen(
            [sys.executable, "-c", code], cwd=here.folder, env=environment, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    found = {process.communicate(timeout=120)[0].strip() for process in loading}
    assert len(found) == 1
    (entry,) = found
    assert files_sha256(Path(entry)) == Path(entry).name
    assert [path.name for path in Path(entry).parent.iterdir()] == [Path(entry).name]


def test_the_example_of_a_model_of_ones_own(workplace: Workplace) -> None:
    file = workplace.folder / "my_models.py"
    shutil.copy(ROOT / "docs" / "examples" / "my_models.py", file)
    words = ("--user-code", str(file))
    listed = workplace.json("hparams", "list", *words)
    assert "wide_vae_digits" in {row["hparam_set"] for row in listed}
    assert "wide_vae" in {row["model_name"] for row in workplace.json("models", "list", *words)}
    result = workplace.json("train", "wide_vae_digits", *words, "--set", "model_train.epochs=3")
    assert result["val_loss"] < 60
    code = "import lossy_mlflow; print(type(lossy_mlflow.load_decoder('wide_vae_digits@best')).__name__)"
    loaded = workplace.run(sys.executable, "-c", code, env={"LOSSY_USER_CODE": str(file)})
    assert loaded.stdout == "Decoder\n", loaded.stderr
    unknown = workplace.run(sys.executable, "-c", code)
    assert "--user-code" in unknown.stderr

"""What is published can be loaded again, whatever has become of the files and tags beside it; what is gone is named."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
import torch
from torch import nn

import lossy_mlflow
from lossy_mlflow.checkpoints.flavor import FILES, SAMPLES
from lossy_mlflow.checkpoints.publish import Publication, Snapshot, publish
from lossy_mlflow.checkpoints.retire import retire_earlier_runs, runs_if_label_is_its_own
from lossy_mlflow.checkpoints.verify import verify, versions_to_verify
from lossy_mlflow.errors import LossyError, NotFoundError, UsageError
from lossy_mlflow.hparams import Hparam, get_hparams
from lossy_mlflow.models import build_model, decoder_of
from lossy_mlflow.tracking.connection import connect
from tests.conftest import Workplace


@pytest.fixture
def run_id(here: Workplace) -> str:
    client = mlflow.MlflowClient()
    client.create_registered_model("mine")
    return client.create_run(client.create_experiment("mine")).info.run_id


def _snapshot(tree: Hparam, epoch: int, val_loss: float) -> Snapshot:
    return Snapshot(epoch, val_loss, decoder_of(build_model(tree)).state_dict())


def _publish(run_id: str, epoch: int = 1, val_loss: float = 1.0) -> int:
    """The number of the new version."""
    tree = get_hparams("vae2_digits")
    publish(connect(), run_id, Publication("mine", "", tree, {}), _snapshot(tree, epoch, val_loss))
    return max(int(item.version) for item in mlflow.MlflowClient().search_model_versions("name = 'mine'"))


def _stored(here: Workplace) -> Path:
    (weights,) = here.folder.glob("mlruns/*/models/*/artifacts/data/decoder/weights.safetensors")
    return weights.parent.parent.parent


def test_a_decoder_has_all_its_files_and_no_others(here: Workplace, run_id: str) -> None:
    _publish(run_id)
    stored = _stored(here)
    assert {path.relative_to(stored).as_posix() for path in stored.rglob("*") if path.is_file()} == FILES


def test_a_picture_is_one_of_the_versions_files_and_stands_in_its_description(
    here: Workplace, run_id: str
) -> None:
    tree, client = get_hparams("vae2_digits"), mlflow.MlflowClient()
    snapshot = replace(_snapshot(tree, 1, 1.0), samples=b"a picture")
    publish(connect(), run_id, Publication("mine", "", tree, {}), snapshot)
    version = client.get_model_version("mine", "1")
    model = client.get_logged_model(version.source.removeprefix("models:/"))
    assert (_stored(here) / SAMPLES).read_bytes() == b"a picture"
    for description in (version.description, model.tags["mlflow.note.content"]):
        assert description.startswith("Epoch 1, val_loss 1.0000.\n")
        assert f"/{model.model_id}/artifacts/files?artifact_file_path={SAMPLES})" in description
    assert {row.state for row in verify(versions_to_verify("mine"))} == {"ok"}
    (_stored(here) / SAMPLES).write_bytes(b"another one")
    assert {row.state for row in verify(versions_to_verify("mine"))} == {"damaged"}


def test_files_that_are_gone_are_named_with_the_place_where_they_were(here: Workplace, run_id: str) -> None:
    _publish(run_id)
    stored = _stored(here)
    for file, which in [
        ("data/decoder/weights.safetensors", "data/decoder/weights.safetensors"),
        ("MLmodel", "MLmodel, data/decoder/weights.safetensors"),
        ("", "all of them"),
    ]:
        (stored / file).unlink() if file else shutil.rmtree(stored)
        with pytest.raises(NotFoundError, match=f"Files of models:/mine/1 are gone, {which}: ") as caught:
            lossy_mlflow.load_decoder("mine")
        assert str(stored) in caught.value.what
        assert "lossy checkpoints mine" in caught.value.hint


def test_a_file_that_is_altered_is_not_called_gone(here: Workplace, run_id: str) -> None:
    _publish(run_id)
    with (_stored(here) / "conda.yaml").open("a") as file:
        file.write("#")
    with pytest.raises(LossyError, match="not what was published"):
        lossy_mlflow.load_decoder("mine")


def test_a_device_that_is_not_there_is_said_and_no_file_is_blamed(run_id: str) -> None:
    _publish(run_id)
    with pytest.raises(UsageError, match="no device 'foo'"):
        lossy_mlflow.load_decoder("mine", device="foo")
    if torch.cuda.is_available():
        loaded = lossy_mlflow.load_decoder("mine", device="cuda")
        assert next(loaded.parameters()).device.type == "cuda"
    else:
        with pytest.raises(UsageError, match="no GPU"):
            lossy_mlflow.load_decoder("mine", device="cuda")
        assert next(lossy_mlflow.load_decoder("mine", device="auto").parameters()).device.type == "cpu"


def test_torchs_generator_is_as_it_was_after_publishing_and_loading(run_id: str) -> None:
    tree = get_hparams("vae2_digits")
    snapshot = _snapshot(tree, 1, 1.0)
    before = torch.get_rng_state()
    publish(connect(), run_id, Publication("mine", "", tree, {}), snapshot)
    lossy_mlflow.load_decoder("mine")
    assert torch.equal(torch.get_rng_state(), before)


class Grows(nn.Module):
    """Its buffer has another shape after the first batch."""

    seen: torch.Tensor

    def __init__(self, hparams: Hparam) -> None:
        super().__init__()
        self.net = nn.Linear(hparams.model_train.z_size, hparams.dataset.input_vector_length)
        self.register_buffer("seen", torch.zeros(0), persistent=not hparams.model_train.forgets)

    def decode(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.net(z), torch.zeros(())

    def loss(
        self, batch: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        if self.training:
            self.seen = torch.cat([self.seen, batch.detach().mean()[None]])
        z = torch.randn(len(batch), self.net.in_features, generator=generator)
        return (self.net(z) - batch).square().sum(1).mean(), {}


def test_a_decoder_that_could_not_be_loaded_again_is_refused_before_anything_of_it_is_stored(
    here: Workplace,
) -> None:
    @lossy_mlflow.register_model("grows")
    def grows(hparams: Hparam) -> nn.Module:
        return Grows(hparams)

    @lossy_mlflow.register_hparams
    def growing() -> Hparam:
        """Its decoder's buffer grows."""
        from lossy_mlflow.hparams.catalogue.digits import vae2_digits

        tree = vae2_digits()
        tree.model_name = "grows"
        tree.model_train.forgets = False
        tree.model_train.epochs = 2
        return tree

    with pytest.raises(UsageError, match=r"seen: trained \(\d+,\), built anew \(0,\)") as caught:
        lossy_mlflow.train("growing")
    assert "persistent=False" in caught.value.hint
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("vaes/digits").experiment_id])
    assert run.info.status == "FAILED"
    # At once, not in the epoch of the first version.
    assert "val_loss" not in run.data.metrics
    assert "seen: trained" in run.data.tags["state_reason"]
    assert not client.search_model_versions("name = 'growing'")
    assert not client.search_logged_models([run.info.experiment_id])
    # The way on that the hint gives.
    lossy_mlflow.train("growing", overrides={"model_train.forgets": True}, overwrite=True)
    assert isinstance(lossy_mlflow.load_decoder("growing"), Grows)


def test_a_version_whose_tags_say_no_number_is_not_the_best_and_stops_nothing(run_id: str) -> None:
    client = mlflow.MlflowClient()
    lowest, unknown = _publish(run_id, 1, 1.0), _publish(run_id, 2, 2.0)
    client.set_model_version_tag("mine", str(lowest), "val_loss", "lower")
    client.set_model_version_tag("mine", str(unknown), "epoch", "two")
    newest = _publish(run_id, 3, 3.0)
    assert client.get_registered_model("mine").aliases == {"best": newest, "last": newest}


def test_a_run_with_a_promoted_version_stays_whatever_its_epoch_tag_says(run_id: str) -> None:
    client = mlflow.MlflowClient()
    for key, value in {"label": "mine", "kind": "train", "mlflow.user": "me"}.items():
        client.set_tag(run_id, key, value)
    client.set_registered_model_alias("mine", "champion", str(_publish(run_id)))
    client.set_model_version_tag("mine", "1", "epoch", "first")
    experiment = client.get_run(run_id).info.experiment_id
    later = client.create_run(
        experiment, tags={"label": "mine", "kind": "train", "mlflow.user": "me"}
    ).info.run_id
    client.set_terminated(run_id)
    runs = runs_if_label_is_its_own(connect(), "mine", client.get_run(later))
    assert runs
    retire_earlier_runs(connect(), "mine", runs)
    assert client.get_run(run_id).info.lifecycle_stage == "active"
    assert client.get_run(run_id).data.tags["superseded_by"] == later

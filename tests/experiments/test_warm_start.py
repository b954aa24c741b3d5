"""Starting from another label's model, whatever is left of the run that has made it."""

from __future__ import annotations

import shutil
from typing import Any

import mlflow
import mlflow.cli
import pytest

from lossy_mlflow.checkpoints.publish import Publication, Snapshot, publish
from lossy_mlflow.errors import UsageError
from lossy_mlflow.experiments.warm_start import warm_start
from lossy_mlflow.hparams import apply_overrides, get_hparams
from lossy_mlflow.models import build_model, decoder_of
from lossy_mlflow.tracking.connection import connect
from lossy_mlflow.tracking.training_state import Progress, TrainingStates
from lossy_mlflow.training import make_optimizer, state_tensors
from tests.conftest import Workplace


@pytest.fixture
def parent(here: Workplace) -> str:
    """The run that has made `parent/1`: with a decoder of epoch 3, and an encoder in its state of epoch 5."""
    client = mlflow.MlflowClient()
    client.create_registered_model("parent")
    run_id = client.create_run(client.create_experiment("parents")).info.run_id
    tree = get_hparams("vae2_digits")
    model = build_model(tree)
    snapshot = Snapshot(3, 1.0, decoder_of(model).state_dict())
    publish(connect(), run_id, Publication("parent", "", tree, {}), snapshot)
    states = TrainingStates(connect(), run_id, None)
    states.save(state_tensors(model, make_optimizer(model, 0.1)), Progress(5, 3, 1.0))
    return run_id


def _taken(source: str = "parent", **overrides: Any) -> str:
    child = apply_overrides(get_hparams("vae2_digits"), {"load_checkpoint_name": source, **overrides})
    taken = warm_start(connect(), child, build_model(child))
    assert taken is not None
    assert taken.parent == "parent/1"
    return taken.line


def test_the_decoder_is_taken_whole_whatever_has_become_of_the_encoder(
    here: Workplace, parent: str, caplog: pytest.LogCaptureFixture
) -> None:
    decoder = "parent/1 (epoch 3): the decoder whole"
    assert _taken() == f"{decoder}, 8 of 8 tensors of the encoder (as after epoch 5 of its run)"
    assert not caplog.messages

    (file,) = here.folder.glob(f"mlruns/*/{parent}/artifacts/training_state/*")
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    lost = f"{decoder}, no encoder: The training state of run {parent} (epoch 5) is"
    assert _taken().startswith(f"{lost} damaged")
    shutil.rmtree(file.parent)
    assert _taken().startswith(f"{lost} gone: there is no training_state/a.safetensors in")
    client = mlflow.MlflowClient()
    client.delete_run(parent)
    assert _taken().startswith(f"{lost} gone")
    words = ["gc", "--backend-store-uri", mlflow.get_tracking_uri(), "--run-ids", parent]
    mlflow.cli.cli.main(words, standalone_mode=False)
    assert _taken() == f"{decoder}, no encoder: The run {parent} is gone, and its training state with it."
    # It is said before the training as well, each time that there is none.
    assert [message.partition(":")[0] for message in caplog.messages] == ["parent/1 gives no encoder"] * 4


def test_a_reference_to_one_version_is_taken_as_it_is(parent: str) -> None:
    mlflow.MlflowClient().set_registered_model_alias("parent", "champion", "1")
    for source in ("parent@champion", "parent/1", "models:/parent@champion"):
        assert _taken(source).startswith("parent/1 (epoch 3)")
        assert _taken(source, chkt_step=-2).startswith("parent/1 (epoch 3)")
        with pytest.raises(UsageError, match="chkt_step 3"):
            _taken(source, chkt_step=3)
    assert _taken(chkt_step=3).startswith("parent/1 (epoch 3)")

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import save_file

from lossy_mlflow.checkpoints.flavor import files_sha256, save_model, weights_sha256
from lossy_mlflow.hparams import get_hparams
from lossy_mlflow.models import build_model, decoder_of
from lossy_mlflow.training import seeded
from tests.checkpoints.registry_server import RegistryServer
from tests.conftest import Workplace


@pytest.fixture(scope="session")
def saved_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder of vae2_digits as `save_model` writes it. Made once: MLflow takes a second for it."""
    folder = tmp_path_factory.mktemp("saved")
    tree = get_hparams("vae2_digits")
    with seeded(1):
        save_file(decoder_of(build_model(tree)).state_dict(), folder / "weights.safetensors")
    save_model(folder / "model", folder / "weights.safetensors", tree, run_id="1234" * 8)
    return folder / "model"


@pytest.fixture
def registry(saved_model: Path, here: Workplace, monkeypatch: pytest.MonkeyPatch) -> Iterator[RegistryServer]:
    """A server with that decoder as version 1 of `mine`, which the test's own process takes for its tracking server."""
    folder = here.folder.parent / "store"
    shutil.copytree(saved_model, folder)
    tags = {"files_sha256": files_sha256(folder), "weights_sha256": weights_sha256(folder)}
    server = RegistryServer(folder, tags)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    yield server
    server.close()

"""A decoder's folder: what is written is read back, and what doesn't fit is said."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lossy_mlflow.checkpoints.flavor import files_sha256, load_model, save_model
from lossy_mlflow.errors import ConflictError, LossyError
from lossy_mlflow.hparams import get_hparams
from lossy_mlflow.models import build_model, decoder_of
from lossy_mlflow.training import seeded


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tree = get_hparams("dcvae10_digits")
    with seeded(1):
        decoder = decoder_of(build_model(tree))
    save_file(decoder.state_dict(), tmp_path / "weights.safetensors")
    save_model(tmp_path / "model", tmp_path / "weights.safetensors", tree)
    return tmp_path / "model"


def test_what_is_written_is_read_back_in_evaluation_mode(folder: Path) -> None:
    decoder, tree = load_model(folder)
    assert tree == get_hparams("dcvae10_digits")
    assert not decoder.training
    with seeded(1):
        original = decoder_of(build_model(tree)).eval()
    z = torch.randn(4, 10)
    assert torch.equal(decoder.decode(z)[0], original.decode(z)[0])  # type: ignore[operator]


def test_there_is_no_pickle_in_it(folder: Path) -> None:
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} <= {
        "",
        ".safetensors",
        ".json",
        ".yaml",
        ".txt",
    }


def test_the_digest_sees_every_byte_and_every_name(folder: Path) -> None:
    before = files_sha256(folder)
    (folder / "registered_model_meta").write_text("MLflow's own")
    assert files_sha256(folder) == before
    hparams = folder / "data" / "decoder" / "hparams.json"
    text = hparams.read_text()
    hparams.write_text(text + " ")
    assert files_sha256(folder) != before
    hparams.write_text(text)
    hparams.rename(hparams.with_name("other.json"))
    assert files_sha256(folder) != before


def test_weights_of_another_architecture_name_the_first_that_differ(folder: Path) -> None:
    weights = folder / "data" / "decoder" / "weights.safetensors"
    save_file({"net.0.weight": torch.zeros(3, 3), "odd": torch.zeros(1)}, weights)
    with pytest.raises(ConflictError) as caught:
        load_model(folder)
    assert "net.0.bias: stored nothing" in caught.value.what
    assert "net.0.weight: stored (3, 3)" in caught.value.what


def test_a_newer_format_asks_for_an_upgrade(folder: Path) -> None:
    described = folder / "MLmodel"
    described.write_text(described.read_text().replace("format: 1", "format: 2"))
    with pytest.raises(LossyError, match="format 2") as caught:
        load_model(folder)
    assert "pip install -U" in caught.value.hint


def test_a_file_that_is_no_safetensors_is_refused(folder: Path) -> None:
    (folder / "data" / "decoder" / "weights.safetensors").write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(LossyError, match="weights"):
        load_model(folder)

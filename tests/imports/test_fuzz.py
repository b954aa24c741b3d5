"""Bytes that were flipped or cut, in every format: an error of ours, or the right tensors; never anything else."""

from __future__ import annotations

import contextlib
import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save as save_safetensors

from lossy_mlflow.checkpoints.foreign.archive import find_checkpoint, open_archive
from lossy_mlflow.checkpoints.foreign.fit import fitted
from lossy_mlflow.checkpoints.foreign.gan_settings import parse_gan_settings
from lossy_mlflow.checkpoints.foreign.read import read_checkpoint
from lossy_mlflow.errors import LossyError
from lossy_mlflow.hparams import get_hparams
from lossy_mlflow.models import build_model, decoder_of
from tests.imports.published import TheirMlp, save_gan

TREE = get_hparams("vae2_digits", {"model_train.hidden_sizes": [3]})
WEIGHTS = {name: tensor.clone() for name, tensor in decoder_of(build_model(TREE)).state_dict().items()}


def _torch(content: Any, new_zip: bool) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=new_zip)
    return file.getvalue()


def _numpy() -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **{name: tensor.numpy() for name, tensor in WEIGHTS.items()})
    return file.getvalue()


CHECKPOINT = {
    "state_dict": WEIGHTS,
    "optimizer": {"lr": 1.0},
    "global_epoch": 3,
    "test_loss_list": [np.float64(2.0)],
}
FORMATS = {
    "torch": _torch(CHECKPOINT, True),
    "torch before 1.6": _torch(CHECKPOINT, False),
    "safetensors": save_safetensors(WEIGHTS),
    "numpy": _numpy(),
}


def _imports(content: bytes) -> None:
    """The file's decoder whole and finite, or an error of ours."""
    with contextlib.suppress(LossyError):
        found = fitted(read_checkpoint(content, "it").tensors, TREE, "it")
        assert {name: tensor.shape for name, tensor in found.weights.items()} == {
            name: tensor.shape for name, tensor in WEIGHTS.items()
        }
        assert all(tensor.isfinite().all() for tensor in found.weights.values())


@pytest.mark.parametrize("kind", FORMATS)
def test_whole_bytes(kind: str) -> None:
    found = fitted(read_checkpoint(FORMATS[kind], "it").tensors, TREE, "it")
    assert all(torch.equal(found.weights[name], tensor) for name, tensor in WEIGHTS.items())


@pytest.mark.parametrize("kind", FORMATS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_flipped_and_cut_bytes(kind: str, data: st.DataObject) -> None:
    content = bytearray(FORMATS[kind])
    for _ in range(data.draw(st.integers(1, 4))):
        # Half of them where the structure is: at the beginning and at the end.
        place = data.draw(st.integers(0, 400) | st.integers(-400, -1) | st.integers(0, len(content) - 1))
        content[place % len(content)] ^= 1 << data.draw(st.integers(0, 7))
    _imports(bytes(content[: data.draw(st.just(len(content)) | st.integers(0, len(content)))]))


@settings(max_examples=100, deadline=None)
@given(
    start=st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02", b"\x93NUMPY\x01\x00", b"\x40" + bytes(7) + b"{"]),
    rest=st.binary(),
)
def test_bytes_of_nothing(start: bytes, rest: bytes) -> None:
    _imports(start + rest)


WORDS = ["--dataset", "mnist", "--nz", "5", "--g_type", "dcgan", "--ngf", "--imageSize=28", "-1", "x"]


@settings(max_examples=100, deadline=None)
@given(text=st.text() | st.lists(st.sampled_from(WORDS)).map(" ".join))
def test_any_settings(text: str) -> None:
    try:
        found = parse_gan_settings(text)
    except LossyError:
        return
    get_hparams(found.hparam_set, found.overrides)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("archive")
    weights = TheirMlp(1, z=2, width=3, n_pixels=4).state_dict()
    save_gan(
        folder,
        "mnist",
        "0x1",
        1,
        "--dataset mnist --imageSize 2 --g_type sheldon_mlp2 --nz 2 --ngf 3",
        weights,
    )
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        for path in sorted(folder.rglob("*")):
            packed.write(path, path.relative_to(folder))
    return file.getvalue()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_an_archive_with_flipped_bytes(archive: bytes, tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(archive)
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    file = tmp_path / "archive.zip"
    file.write_bytes(content[: data.draw(st.just(len(content)) | st.integers(0, len(content)))])
    with contextlib.suppress(LossyError), open_archive(file) as files:
        for path in files.paths():
            with contextlib.suppress(LossyError):
                if (found := find_checkpoint(files, path)) and found.settings:
                    tree = get_hparams(found.settings.hparam_set, found.settings.overrides)
                    fitted(read_checkpoint(files.read(path), path).tensors, tree, path)

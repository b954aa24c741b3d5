"""A decoder's folder: what is written is read back, and what doesn't fit is said."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

import lossy_mlflow
from lossy_mlflow.checkpoints.flavor import FILES, files_sha256, load_model, save_model
from lossy_mlflow.errors import ConflictError, LossyError, NotFoundError
from lossy_mlflow.hparams import Hparam, get_hparams
from lossy_mlflow.hparams.tree import thaw
from lossy_mlflow.models import build_model, decoder_of
from lossy_mlflow.training import seeded

HPARAMS, WEIGHTS = "data/decoder/hparams.json", "data/decoder/weights.safetensors"


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


def _edit(file: Path, *changes: tuple[str, str]) -> None:
    text = file.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    file.write_text(text)


def _without_digests(folder: Path) -> None:
    """As somebody leaves it who makes a folder by hand."""
    text = (folder / "MLmodel").read_text()
    start = text.index("    sha256:")
    (folder / "MLmodel").write_text(text[:start] + text[text.index("  python_function:") :])


def test_weights_of_another_architecture_name_the_first_that_differ(folder: Path) -> None:
    save_file({"net.0.weight": torch.zeros(3, 3), "odd": torch.zeros(1)}, folder / WEIGHTS)
    with pytest.raises(LossyError, match=r"weights.safetensors is damaged: its digest is"):
        load_model(folder)
    _without_digests(folder)
    with pytest.raises(ConflictError) as caught:
        load_model(folder)
    assert "net.0.bias: stored nothing" in caught.value.what
    assert "net.0.weight: stored (3, 3)" in caught.value.what
    (folder / WEIGHTS).write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(LossyError, match="weights"):
        load_model(folder)


def test_a_newer_format_says_who_wrote_it_and_asks_for_an_upgrade(folder: Path) -> None:
    _edit(
        folder / "MLmodel",
        ("format: 1", "format: 99"),
        ("written_by: lossy-mlflow 0.1.0", "written_by: lossy-mlflow 7.0.0"),
        ("utc_time_created: ", f"run_id: '{'1234' * 8}'\nutc_time_created: '2031-02-03 04:05:06.000000' #"),
    )
    with pytest.raises(LossyError, match="format 99") as caught:
        load_model(folder)
    assert f"by lossy-mlflow 7.0.0 on 2031-02-03 04:05 UTC in the run {'1234' * 8}" in caught.value.what
    assert "pip install -U" in caught.value.hint


def _saved(folder: Path, tree: Hparam, decoder: nn.Module) -> Path:
    save_file(decoder.state_dict(), folder / "its.safetensors")
    save_model(folder / "its", folder / "its.safetensors", tree, run_id="1234" * 8)
    return folder / "its"


def test_a_model_that_is_not_registered_says_where_its_code_is(tmp_path: Path) -> None:
    tree = thaw(get_hparams("vae2_digits"))
    tree.model_name = "theirs"
    with pytest.raises(NotFoundError, match=r"the model 'theirs', which isn't registered here") as caught:
        load_model(_saved(tmp_path, tree, nn.Linear(2, 64)))
    assert "written by lossy-mlflow 0.1.0 on " in caught.value.what
    assert f" in the run {'1234' * 8}" in caught.value.what
    assert "--user-code FILE, or export LOSSY_USER_CODE=FILE" in caught.value.hint
    assert f"mlflow artifacts download --run-id {'1234' * 8} --artifact-path attempts" in caught.value.hint


def test_what_names_a_gpu_loads_on_a_cpu(tmp_path: Path, folder: Path) -> None:
    tree = thaw(get_hparams("dcvae10_digits"))
    tree.device, tree.cuda, tree.model_train.device = "cuda:3", True, "cuda"
    decoder, _ = load_model(folder)
    metadata = {"device": "cuda:3", "map_location": "cuda:3"}
    save_file(decoder.state_dict(), tmp_path / "its.safetensors", metadata)
    save_model(tmp_path / "its", tmp_path / "its.safetensors", tree)
    loaded, told = load_model(tmp_path / "its")
    assert told.device == "cuda:3"
    assert {tensor.device.type for tensor in loaded.state_dict().values()} == {"cpu"}
    z = torch.randn(4, 10)
    assert torch.equal(loaded.decode(z)[0], decoder.decode(z)[0])  # type: ignore[operator]


class Shifted(nn.Module):
    """What is drawn when it is built, and never stored, is a part of it."""

    shift: torch.Tensor

    def __init__(self, hparams: Hparam) -> None:
        super().__init__()
        self.net = nn.Linear(hparams.model_train.z_size, hparams.dataset.input_vector_length)
        self.register_buffer("shift", torch.randn(()), persistent=False)
        self.x_logvar = torch.zeros(())

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        return self.net(z) + self.shift


@pytest.mark.parametrize("ours", [True, False])
def test_what_is_not_stored_is_drawn_again_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ours: bool
) -> None:
    """Of models of ours only an outline is built: what is missing in it is found out."""
    tree = thaw(get_hparams("vae2_digits"))
    tree.model_name, tree.random_seed = "shifted", 3
    if ours:
        monkeypatch.setattr("lossy_mlflow.models.registry._BUILT_IN", {"shifted": __name__})
        monkeypatch.setitem(globals(), "shifted", Shifted)
    else:
        lossy_mlflow.register_model("shifted")(Shifted)
    with seeded(3):
        original = Shifted(tree)
    before = torch.get_rng_state()
    loaded, _ = load_model(_saved(tmp_path, tree, original))
    z = torch.ones(2, 2)
    assert torch.equal(loaded.decode(z), original.decode(z))  # type: ignore[operator]
    assert torch.equal(torch.get_rng_state(), before)


def test_a_file_that_is_cut_short_after_loading_harms_nobody(folder: Path) -> None:
    """Safetensors maps files into memory."""
    decoder, _ = load_model(folder)
    z = torch.ones(2, 10)
    before = decoder.decode(z)[0]  # type: ignore[operator]
    (folder / WEIGHTS).write_bytes(b"")
    assert torch.equal(decoder.decode(z)[0], before)  # type: ignore[operator]
    assert all(parameter.requires_grad for parameter in decoder.parameters())


def _flip(content: bytes, where: float, bit: int) -> bytes:
    at = min(int(where * len(content)), len(content) - 1)
    return content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]


def _cut(content: bytes, where: float, bit: int) -> bytes:
    return content[: int(where * len(content))]


def _doubled(content: bytes, where: float, bit: int) -> bytes:
    at = int(where * len(content))
    return content[:at] + content[at : at + 2**bit] + content[at:]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["MLmodel", "MLmodel", HPARAMS, WEIGHTS]),
    st.sampled_from([_flip, _cut, _doubled]),
    st.floats(0, 1),
    st.integers(0, 7),
)
def test_a_damaged_folder_is_refused_or_is_the_right_decoder(
    saved_model: Path,
    tmp_path: Path,
    name: str,
    damage: Callable[[bytes, float, int], bytes],
    where: float,
    bit: int,
) -> None:
    shutil.rmtree(tmp_path / "copy", ignore_errors=True)
    shutil.copytree(saved_model, tmp_path / "copy")
    file = tmp_path / "copy" / name
    file.write_bytes(damage(file.read_bytes(), where, bit))
    try:
        decoder, _ = load_model(tmp_path / "copy")
    except LossyError:
        return
    right = load_file(saved_model / WEIGHTS)
    assert decoder.state_dict().keys() == right.keys()
    assert all(torch.equal(tensor, right[key]) for key, tensor in decoder.state_dict().items())


def test_mlflows_own_api_takes_no_damaged_file_either(folder: Path) -> None:
    z = np.zeros((1, 10), np.float32)
    assert mlflow.pyfunc.load_model(str(folder)).predict(z).shape == (1, 64)
    for name in (WEIGHTS, HPARAMS):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(_flip(content, 0.9, 0))
        with pytest.raises(LossyError, match="is damaged"):
            mlflow.pyfunc.load_model(str(folder))
        (folder / name).write_bytes(content)


@pytest.mark.parametrize("name", sorted(FILES))
def test_the_digest_sees_a_bit_of_any_file(folder: Path, name: str) -> None:
    before = files_sha256(folder)
    (folder / name).write_bytes(_flip((folder / name).read_bytes(), 0.5, 3))
    assert files_sha256(folder) != before

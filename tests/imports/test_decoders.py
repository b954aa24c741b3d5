"""Each published decoder, by its own code's rules and by ours: the same images."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lossy_mlflow.checkpoints.foreign.fit import fitted
from lossy_mlflow.checkpoints.foreign.gan_settings import parse_gan_settings
from lossy_mlflow.checkpoints.foreign.published import UnrecognisedError, architecture_of
from lossy_mlflow.checkpoints.foreign.read import read_checkpoint
from lossy_mlflow.errors import ConflictError, UsageError
from lossy_mlflow.hparams import Hparam, get_hparams
from lossy_mlflow.models import build_model, decode, decoder_of
from tests.imports.published import TheirAae, TheirDcgan, TheirLinearVae, TheirMlp, TheirVae, vae_checkpoint


def decoded(tensors: Any, tree: Hparam, z: Tensor) -> tuple[Tensor, Tensor]:
    decoder = decoder_of(build_model(tree))
    decoder.load_state_dict(fitted(tensors, tree, "it").weights)
    with torch.no_grad():
        return decode(decoder.eval(), z)


def assert_same(theirs: Tensor, ours: Tensor) -> None:
    torch.testing.assert_close(ours, theirs.detach(), rtol=0, atol=1e-5)


def test_the_deep_vae() -> None:
    theirs, z = TheirVae(), torch.randn(9, 4)
    file = io.BytesIO()
    torch.save(vae_checkpoint(theirs, 3, [1.0]), file)
    tensors = read_checkpoint(file.getvalue(), "it").tensors
    tree = get_hparams("icml_vae10_rd", architecture_of(tensors).sizes)
    x_mean, x_logvar = decoded(tensors, tree, z)
    assert_same(theirs.decode(z)[0], x_mean)
    assert_same(theirs.decode(z)[1], x_logvar)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_linear_vae_has_variance_1(dtype: torch.dtype) -> None:
    theirs, z = TheirLinearVae(), torch.randn(9, 100)
    tensors = theirs.to(dtype).state_dict()
    x_mean, x_logvar = decoded(tensors, get_hparams("icml_linear_vae100"), z)
    assert_same(theirs.decode(z.to(dtype))[0].float(), x_mean)
    assert x_mean.dtype == torch.float32
    assert x_logvar.tolist() == 0
    notes = fitted(tensors, get_hparams("icml_linear_vae100"), "it").notes
    assert notes == (("float64 became float32",) if dtype == torch.float64 else ())


@pytest.mark.parametrize(
    ("g_type", "n_hidden"), [("sheldon_mlp", 3), ("sheldon_mlp3", 2), ("sheldon_mlp2", 1)]
)
def test_the_fully_connected_generators(g_type: str, n_hidden: int) -> None:
    theirs, z = TheirMlp(n_hidden), torch.randn(9, 5)
    found = parse_gan_settings(
        f"--dataset mnist --imageSize 28 --g_type {g_type} --nz 5 --ngf 8 --netG --netD ''"
    )
    x_mean, x_logvar = decoded(theirs.state_dict(), get_hparams(found.hparam_set, found.overrides), z)
    assert_same(theirs.decode(z), x_mean)
    assert x_logvar.item() == pytest.approx(np.log(0.03))


@pytest.mark.parametrize("spectral", [False, True])
@pytest.mark.parametrize("norm", ["bn", "in", "none"])
@pytest.mark.parametrize(("side", "channels", "n_convs"), [(28, 1, 3), (32, 3, 4), (8, 1, 2)])
def test_the_dcgans(side: int, channels: int, n_convs: int, norm: str, spectral: bool) -> None:
    torch.manual_seed(1)
    theirs, z = TheirDcgan(side, channels, norm, n_convs, spectral), torch.randn(9, 5)
    data = {1: "mnist", 3: "cifar10"}[channels]
    line = (
        f"--dataset={data} --imageSize {side} --nz 5 --ngf 4 --ng_conv {n_convs} --spectral_g {int(spectral)}"
    )
    line += f" --g_nm {'None' if norm == 'none' else norm}"
    found = parse_gan_settings(line)
    tree = get_hparams(found.hparam_set, found.overrides)
    tensors = dict(theirs.state_dict())
    assert_same(theirs.decode(z), decoded(tensors, tree, z)[0])
    # As torch before 1.1, and before 0.4.1, stored it: first with the quotient, then without.
    if spectral:
        quotients = {
            name.removesuffix("_orig"): theirs.get_submodule(
                name.removesuffix(".weight_orig")
            ).weight.detach()
            for name in tensors
            if name.endswith("weight_orig")
        }
        without_v = {name: tensor for name, tensor in tensors.items() if not name.endswith("weight_v")}
        assert_same(theirs.decode(z), decoded(without_v | quotients, tree, z)[0])
    old = {n: t for n, t in tensors.items() if not n.endswith(("num_batches_tracked", "weight_v"))}
    if spectral:
        for name, u in tensors.items():
            if name.endswith("weight_u"):
                weight = tensors[name.replace("_u", "_orig")].transpose(0, 1).flatten(1)
                v = torch.nn.functional.normalize(weight.T @ u, dim=0)
                theirs.get_buffer(name.replace("_u", "_v")).copy_(v)
    assert_same(theirs.decode(z), decoded(old, tree, z)[0])


def test_the_autoencoders_decoder() -> None:
    theirs, z = TheirAae(), torch.randn(9, 3)
    file = io.BytesIO()
    np.savez(file, **theirs.arrays, **{"encoder_h1/w_dense:0": np.zeros(3)})
    tensors = read_checkpoint(file.getvalue(), "it").tensors
    found = architecture_of(tensors)
    assert found.sizes == {"model_train.z_size": 3, "model_train.hidden_sizes": [7, 7, 7]}
    assert_same(theirs.decode(z), decoded(tensors, get_hparams("icml_aae2", found.sizes), z)[0])


def test_ones_own_tensors_by_the_decoders_names_and_by_the_whole_models() -> None:
    tree, z = get_hparams("dcvae10_digits"), torch.randn(3, 10)
    model = build_model(tree).eval()
    for tensors in (model.state_dict(), decoder_of(model).state_dict()):
        assert_same(decode(decoder_of(model), z)[0], decoded(tensors, tree, z)[0])


def test_what_does_not_fit_is_shown_with_both_shapes() -> None:
    tensors = TheirVae(z=3, width=6).state_dict()
    tree = get_hparams("icml_vae10_rd", {"model_train.z_size": 4, "model_train.hidden_sizes": [6, 6, 6]})
    with pytest.raises(ConflictError) as refused:
        fitted(tensors, tree, "it")
    assert "decoder.net.0.weight: in the file (6, 3), in the model (6, 4)" in refused.value.what
    assert "encoder.6.bias: in the file (6,), in the model (8,)" in refused.value.what
    del tensors["de2.bias"]
    with pytest.raises(ConflictError, match=r"decoder.net.2.bias: in the file nothing, in the model \(6,\)"):
        fitted(tensors, get_hparams("icml_vae10_rd", architecture_of(tensors).sizes), "it")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e300])
def test_weights_that_are_no_numbers_are_refused(bad: float) -> None:
    theirs = TheirLinearVae().double()
    theirs.dec_mean.bias.data[3] = bad
    with pytest.raises(
        UsageError, match=r"decoder.net.bias in it has 1 of 784 numbers that are NaN or infinite as float32"
    ):
        fitted(theirs.state_dict(), get_hparams("icml_linear_vae100"), "it")


def test_a_decoder_that_makes_no_images_is_refused() -> None:
    theirs = TheirDcgan(32, 3, "bn", 3)
    tensors = dict(theirs.state_dict())
    tensors["main.0.running_var"] = -torch.ones(16)
    overrides = {"model_train.z_size": 5, "model_train.n_filters": 4}
    with pytest.raises(UsageError, match="makes images of NaN or infinite numbers"):
        fitted(tensors, get_hparams("icml_CIFAR10_dcgan5_SN", overrides), "it")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("--nz 5", r"--dataset \(nothing\)"),
        ("--dataset lsun", "--dataset lsun"),
        ("--dataset mnist --g_type resnet", "--g_type resnet"),
        ("--dataset mnist --g_nm ln", "--g_nm ln"),
        ("--dataset mnist --nz many", "--nz 'many'"),
        ("--dataset mnist --nz 99999999", "--nz '99999999'"),
    ],
)
def test_settings_of_nothing_that_is_known_say_why(line: str, says: str) -> None:
    with pytest.raises(UnrecognisedError, match=says):
        parse_gan_settings(line)

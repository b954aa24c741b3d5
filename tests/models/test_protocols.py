"""The two ways to give a decoder's output, and the two places where it can be."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lossy_mlflow.errors import UsageError
from lossy_mlflow.models import Autoencoder, Decoder, Trainable, build_model, decode, decoder_of


class MeanAlone(nn.Module):
    def __init__(self, x_logvar: object) -> None:
        super().__init__()
        if x_logvar is not None:
            self.x_logvar = x_logvar

    def decode(self, z):
        return 2 * z


class Both(nn.Module):
    def decode(self, z):
        return 2 * z, torch.tensor(-1.0)


@pytest.mark.parametrize(
    "decoder",
    [Both(), MeanAlone(torch.tensor(-1.0)), MeanAlone(-1.0), MeanAlone(nn.Parameter(torch.tensor(-1.0)))],
    ids=["pair", "tensor", "number", "parameter"],
)
def test_mean_and_log_variance_however_they_are_given(decoder):
    z = torch.ones(3, 2)
    x_mean, x_logvar = decode(decoder, z)
    assert torch.equal(x_mean, 2 * z)
    assert x_logvar.shape == ()
    assert x_logvar.dtype == torch.float32
    assert x_logvar.item() == -1


def test_a_learned_log_variance_stays_differentiable():
    decoder = MeanAlone(nn.Parameter(torch.tensor(-1.0)))
    decode(decoder, torch.ones(3, 2))[1].backward()
    assert decoder.x_logvar.grad.item() == 1


def test_a_vector_of_log_variances_is_kept():
    x_logvar = torch.tensor([-1.0, -2.0])
    assert torch.equal(decode(MeanAlone(x_logvar), torch.ones(3, 2))[1], x_logvar)


def test_a_mean_without_a_variance_is_refused():
    with pytest.raises(UsageError, match="MeanAlone gives the mean alone, and has no attribute `x_logvar`"):
        decode(MeanAlone(None), torch.ones(3, 2))


def test_a_whole_model_is_no_decoder(tree):
    model = build_model(tree())
    with pytest.raises(UsageError, match=r"Pass decoder_of\(model\)"):
        decode(model, torch.ones(1, 3))
    assert decoder_of(model) is model.decoder


@pytest.mark.parametrize("name", ["linear_vae", "deep_vae", "dcgan_vae"])
def test_the_built_in_models_keep_the_protocols(name, tree):
    model = build_model(tree(name))
    assert isinstance(model, Trainable)
    assert isinstance(model, Autoencoder)
    assert isinstance(decoder_of(model), Decoder)
    assert not isinstance(decoder_of(model), Trainable)

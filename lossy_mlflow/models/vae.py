"""The VAE (Kingma and Welling 2014), p(x|z) = N(f(z), e^s I), around any two networks."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lossy_mlflow.hparams import Hparam
from lossy_mlflow.models.fields import flag, positive_number
from lossy_mlflow.models.gaussian import kl_from_standard, log_density, sample


class GaussianDecoder(nn.Module):
    """p(x|z) = N(net(z), exp(x_logvar) I). net maps (batch, z_size) to (batch, input_vector_length)."""

    x_logvar: Tensor

    def __init__(self, net: nn.Module, x_var: float, learned: bool) -> None:
        super().__init__()
        self.net = net
        x_logvar = torch.tensor(math.log(x_var))
        if learned:
            self.x_logvar = nn.Parameter(x_logvar)
        else:
            # A buffer, so that it is stored with the weights all the same.
            self.register_buffer("x_logvar", x_logvar)

    def decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """(x_mean (batch, input_vector_length), x_logvar ()) for z (batch, z_size)."""
        return self.net(z), self.x_logvar


class Vae(nn.Module):
    """An encoder for training, a decoder to keep.

    `encoder` maps (batch, input_vector_length) to (batch, 2 z_size).
    """

    def __init__(self, encoder: nn.Module, decoder: GaussianDecoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(z_mean, z_logvar), each (batch, z_size), of q(z|x)."""
        z_mean, z_logvar = self.encoder(x).chunk(2, dim=1)
        return z_mean, z_logvar

    def loss(self, batch: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The negative ELBO, nats per image: one sample of z for the likelihood, the exact divergence."""
        z_mean, z_logvar = self.encode(batch)
        x_mean, x_logvar = self.decoder.decode(sample(z_mean, z_logvar, generator))
        misfit = -log_density(batch, x_mean, x_logvar).mean()
        kl = kl_from_standard(z_mean, z_logvar).mean()
        return misfit + kl, {"negative_log_likelihood": misfit, "kl": kl}


def gaussian_decoder(net: nn.Module, tree: Hparam) -> GaussianDecoder:
    """`net` with a variance that starts at `model_train.x_var`, learned if `model_train.x_var_learned`."""
    x_var = positive_number(tree, "model_train.x_var")
    return GaussianDecoder(net, x_var, learned=flag(tree, "model_train.x_var_learned"))

"""A model and an hparam set of one's own, in one file: lossy train wide_vae_digits --user-code docs/examples/my_models.py"""

import torch
from torch import Tensor, nn

from lossy_mlflow import Hparam, get_hparams, register_hparams, register_model
from lossy_mlflow.hparams.catalogue.digits import vae10_digits


class Decoder(nn.Module):
    """p(x|z). What is registered, shared and evaluated is this part alone."""

    def __init__(self, z_size: int, width: int, n_pixels: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(z_size, width), nn.SiLU(), nn.Linear(width, n_pixels), nn.Sigmoid()
        )
        self.x_logvar = nn.Parameter(torch.tensor(-3.5))

    def decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """For z (batch, z_size), x_mean (batch, n_pixels) and the natural logarithm of its variance."""
        return self.net(z), self.x_logvar


class WideVae(nn.Module):
    """One wide hidden layer on each side, SiLU instead of tanh."""

    def __init__(self, z_size: int, width: int, n_pixels: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(n_pixels, width), nn.SiLU(), nn.Linear(width, 2 * z_size))
        self.decoder = Decoder(z_size, width, n_pixels)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of q(z|x). With it come reconstructions and the IWAE bound."""
        mean, logvar = self.encoder(x).chunk(2, dim=1)
        return mean, logvar

    def loss(self, batch: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The negative ELBO in nats per image. All noise comes from `generator`, so that a run can be repeated."""
        mean, logvar = self.encode(batch)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        x_mean, x_logvar = self.decoder.decode(mean + noise * torch.exp(0.5 * logvar))
        log_2pi = 1.8378770664093453
        nll = 0.5 * ((batch - x_mean) ** 2 / x_logvar.exp() + x_logvar + log_2pi).sum(1).mean()
        kl = 0.5 * (mean**2 + logvar.exp() - logvar - 1).sum(1).mean()
        return nll + kl, {"negative_log_likelihood": nll, "kl": kl}


@register_model("wide_vae")
def wide_vae(hparams: Hparam) -> nn.Module:
    """What `model_name = "wide_vae"` stands for. Fields are the set's own; one that is not defined reads as None."""
    return WideVae(hparams.model_train.z_size, hparams.model_train.width, hparams.dataset.input_vector_length)


@register_hparams
def wide_vae_digits() -> Hparam:
    """Our wide VAE on scikit-learn's digits."""
    hparams = vae10_digits()
    hparams.model_name = "wide_vae"
    hparams.model_train.width = 800
    hparams.model_train.epochs = 20
    return hparams


if __name__ == "__main__":
    print(get_hparams("wide_vae_digits"))

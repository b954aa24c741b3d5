"""The linear VAE. Its optimum is probabilistic PCA: likelihood and rate have a closed form."""

from __future__ import annotations

from torch import nn

from lossy_mlflow.hparams import Hparam
from lossy_mlflow.models.fields import image_shape, whole_number
from lossy_mlflow.models.vae import Vae, gaussian_decoder


def linear_vae(tree: Hparam) -> Vae:
    """x_mean = W z + b, without a sigmoid; z_mean and z_logvar are linear in x."""
    n_pixels, z_size = image_shape(tree).size, whole_number(tree, "model_train.z_size")
    return Vae(nn.Linear(n_pixels, 2 * z_size), gaussian_decoder(nn.Linear(z_size, n_pixels), tree))

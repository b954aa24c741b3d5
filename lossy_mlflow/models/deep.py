"""The deep VAE of Huang, Makhzani, Cao and Grosse 2020: fully connected, tanh, a sigmoid on the mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import nn

from lossy_mlflow.hparams import Hparam
from lossy_mlflow.models.fields import image_shape, whole_number, whole_numbers
from lossy_mlflow.models.vae import Vae, gaussian_decoder


def deep_vae(tree: Hparam) -> Vae:
    """The encoder has the layers that `model_train.hidden_sizes` lists, the decoder the reverse."""
    n_pixels, z_size = image_shape(tree).size, whole_number(tree, "model_train.z_size")
    hidden = whole_numbers(tree, "model_train.hidden_sizes")
    decoder = nn.Sequential(*linear_layers([z_size, *reversed(hidden), n_pixels], nn.Tanh), nn.Sigmoid())
    encoder = nn.Sequential(*linear_layers([n_pixels, *hidden, 2 * z_size], nn.Tanh))
    return Vae(encoder, gaussian_decoder(decoder, tree))


def linear_layers(sizes: Sequence[int], activation: Callable[[], nn.Module]) -> list[nn.Module]:
    """Linear layers from size to size, with the activation between them."""
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(sizes):
        layers += [nn.Linear(n_in, n_out), activation()]
    return layers[:-1]

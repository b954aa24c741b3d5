"""The DCGAN-based VAE: the generator of Radford, Metz and Chintala 2016, and its mirror image."""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from lossy_mlflow.errors import UsageError
from lossy_mlflow.hparams import Hparam
from lossy_mlflow.models.fields import ImageShape, image_shape, whole_number
from lossy_mlflow.models.vae import Vae, gaussian_decoder

# Pixels of an image's side: the side of the smallest feature map, and how often it is doubled.
_STAGES = {8: (2, 2), 28: (7, 2), 32: (4, 3)}
_CHANNELS = (1, 3)


def dcgan_vae(tree: Hparam) -> Vae:
    """`model_train.n_filters` channels next to the image, doubled with each halving of its side."""
    shape, z_size = image_shape(tree), whole_number(tree, "model_train.z_size")
    if shape.height != shape.width or shape.height not in _STAGES or shape.channels not in _CHANNELS:
        raise UsageError(
            f"dcgan_vae can't make images of dataset.input_dims {list(tree.dataset.input_dims)}.",
            f"It makes square ones of {', '.join(map(str, _STAGES))} pixels with 1 or 3 channels.",
        )
    side, doublings = _STAGES[shape.height]
    n_filters = whole_number(tree, "model_train.n_filters")
    # From the image inwards.
    channels = [n_filters * 2**stage for stage in range(doublings)]
    encoder = _encoder(shape, channels, side, z_size)
    return Vae(encoder, gaussian_decoder(_decoder(shape, channels, side, z_size), tree))


def _encoder(shape: ImageShape, channels: list[int], side: int, z_size: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Unflatten(1, (shape.channels, shape.height, shape.width))]
    # As in DCGAN, the layer that sees the image has no batch norm.
    layers += [nn.Conv2d(shape.channels, channels[0], kernel_size=4, stride=2, padding=1), nn.LeakyReLU(0.2)]
    for n_in, n_out in pairwise(channels):
        layers += [
            nn.Conv2d(n_in, n_out, kernel_size=4, stride=2, padding=1),
            nn.BatchNorm2d(n_out),
            nn.LeakyReLU(0.2),
        ]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels[-1] * side**2, 2 * z_size))


def _decoder(shape: ImageShape, channels: list[int], side: int, z_size: int) -> nn.Sequential:
    inner = channels[-1]
    layers: list[nn.Module] = [
        nn.Linear(z_size, inner * side**2),
        nn.Unflatten(1, (inner, side, side)),
        nn.BatchNorm2d(inner),
        nn.ReLU(),
    ]
    for n_in, n_out in pairwise(reversed(channels)):
        layers += [
            nn.ConvTranspose2d(n_in, n_out, kernel_size=4, stride=2, padding=1),
            nn.BatchNorm2d(n_out),
            nn.ReLU(),
        ]
    last = nn.ConvTranspose2d(channels[0], shape.channels, kernel_size=4, stride=2, padding=1)
    return nn.Sequential(*layers, last, nn.Sigmoid(), nn.Flatten())

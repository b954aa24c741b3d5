"""Decoders without a loss, which other code has trained: generators of GANs, and the decoder of an adversarial autoencoder.

Their variance is `model_train.x_var`: nothing in them says one.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from lossy_mlflow.hparams import Hparam
from lossy_mlflow.models.deep import linear_layers
from lossy_mlflow.models.fields import field, image_shape, unfit_field, whole_number, whole_numbers
from lossy_mlflow.models.vae import GaussianDecoder, gaussian_decoder

NORMS = ("bn", "in", "none")


def mlp_generator(tree: Hparam) -> GaussianDecoder:
    """Fully connected: tanh between the layers of `model_train.hidden_sizes`, from z outwards, a sigmoid at the end."""
    return _fully_connected(tree, nn.Tanh)


def aae_decoder(tree: Hparam) -> GaussianDecoder:
    """The same with ReLU, as the decoder of Makhzani et al. 2015 has it."""
    return _fully_connected(tree, nn.ReLU)


def dcgan_generator(tree: Hparam) -> GaussianDecoder:
    """The generator of Radford, Metz and Chintala 2016, for square images.

    `model_train.n_filters` channels feed the last convolution, twice as many each one before it; there are `n_convs`, each
    preceded by `norm` (bn: batch, in: instance, none) and ReLU. An image that comes out larger than it should be is cropped.
    """
    shape, z_size = image_shape(tree), whole_number(tree, "model_train.z_size")
    if shape.height != shape.width:
        raise unfit_field(tree, "dataset.input_dims", (list,), "a square image, [channels, side, side]")
    n_filters, n_convs = (
        whole_number(tree, "model_train.n_filters"),
        whole_number(tree, "model_train.n_convs"),
    )
    # With more of them, the first ones would begin with less than a pixel.
    most = (shape.height - 1).bit_length()
    if n_convs > most:
        raise unfit_field(
            tree, "model_train.n_convs", (int,), f"at most {most} for images of {shape.height} pixels"
        )
    norm = field(tree, "model_train.norm")
    if norm not in NORMS:
        raise unfit_field(tree, "model_train.norm", (str,), f"one of {', '.join(NORMS)}")
    net = _Dcgan(z_size, n_filters, n_convs, norm, shape.channels, shape.height)
    return gaussian_decoder(net, tree)


def _fully_connected(tree: Hparam, activation: Callable[[], nn.Module]) -> GaussianDecoder:
    z_size, n_pixels = whole_number(tree, "model_train.z_size"), image_shape(tree).size
    sizes = [z_size, *whole_numbers(tree, "model_train.hidden_sizes"), n_pixels]
    return gaussian_decoder(nn.Sequential(*linear_layers(sizes, activation), nn.Sigmoid()), tree)


class _Dcgan(nn.Module):
    """z (batch, z_size) to images in [0, 1], (batch, channels * side * side)."""

    def __init__(
        self, z_size: int, n_filters: int, n_convs: int, norm: str, channels: int, side: int
    ) -> None:
        super().__init__()
        self._side = side
        # Halved, rounded up, for each convolution that doubles it.
        first_side = -(-side // 2**n_convs)
        widths = [n_filters * 2**step for step in reversed(range(n_convs))]
        self._first_shape = (widths[0], first_side, first_side)
        self.proj = nn.Linear(z_size, widths[0] * first_side**2, bias=False)
        layers: list[nn.Module] = []
        for n_in, n_out in zip(widths, [*widths[1:], channels], strict=True):
            layers += [
                *_norm(norm, n_in),
                nn.ReLU(),
                # A bias is what a norm after it takes away; the last one, which none follows, has none either.
                nn.ConvTranspose2d(n_in, n_out, kernel_size=4, stride=2, padding=1, bias=norm == "none"),
            ]
        self.main = nn.Sequential(*layers, nn.Tanh())

    def forward(self, z: Tensor) -> Tensor:
        images: Tensor = self.main(self.proj(z).unflatten(1, self._first_shape))
        return (images[:, :, : self._side, : self._side].flatten(1) + 1) / 2


def _norm(name: str, channels: int) -> list[nn.Module]:
    if name == "bn":
        return [nn.BatchNorm2d(channels)]
    return [nn.InstanceNorm2d(channels)] if name == "in" else []

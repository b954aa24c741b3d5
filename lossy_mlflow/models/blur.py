"""Decoders that are changed after training, to see what it does to their curves: blurred, or with another variance."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from lossy_mlflow.models.fields import ImageShape
from lossy_mlflow.models.protocols import decode, tensor_of
from lossy_mlflow.models.vae import GaussianDecoder

_KERNEL = 5
_MARGIN = _KERNEL // 2


class ChangedDecoder(nn.Module):
    """`decoder` with its mean passed through `on_mean`, and another log variance where one is given."""

    def __init__(
        self, decoder: nn.Module, on_mean: Callable[[Tensor], Tensor], x_logvar: Tensor | None = None
    ) -> None:
        super().__init__()
        self.decoder = decoder
        self._on_mean, self._x_logvar = on_mean, x_logvar

    def decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """(x_mean (batch, input_vector_length), x_logvar) for z (batch, z_size)."""
        x_mean, x_logvar = decode(self.decoder, z)
        return self._on_mean(x_mean), x_logvar if self._x_logvar is None else self._x_logvar.to(x_mean)


def blurred(decoder: nn.Module, shape: ImageShape, blur_std: float) -> nn.Module:
    """The decoder whose mean passes a Gaussian kernel of 5 x 5 pixels and std `blur_std`, its margins reflected.

    Huang et al. 2020, section 6.4. A blur is linear: a decoder of ours gets it as one more layer, any other as a function.
    """
    layer = _blur_layer(decoder, shape, blur_std)
    if isinstance(decoder, GaussianDecoder):
        layers = list(decoder.net) if isinstance(decoder.net, nn.Sequential) else [decoder.net]
        return _like(decoder, nn.Sequential(*layers, layer), decoder.x_logvar)
    return ChangedDecoder(decoder, layer)


def with_variance(decoder: nn.Module, x_var: float) -> nn.Module:
    """The decoder with the variance `x_var` of every pixel."""
    logvar = torch.tensor(math.log(x_var))
    if isinstance(decoder, GaussianDecoder):
        return _like(decoder, decoder.net, logvar)
    return ChangedDecoder(decoder, nn.Identity(), logvar)


def _like(decoder: GaussianDecoder, net: nn.Module, x_logvar: Tensor) -> GaussianDecoder:
    changed = GaussianDecoder(net, x_var=1.0, learned=False)
    changed.x_logvar = x_logvar.detach().clone().to(decoder.x_logvar)
    return changed.eval()


def _blur_layer(decoder: nn.Module, shape: ImageShape, blur_std: float) -> nn.Linear:
    """What the blur does to each pixel alone are the columns of its matrix."""
    pixels = torch.eye(shape.size, dtype=torch.float64).view(-1, shape.channels, shape.height, shape.width)
    layer = nn.Linear(shape.size, shape.size, bias=False)
    layer.weight = nn.Parameter(
        blur(pixels, blur_std).flatten(1).t().to(tensor_of(decoder)), requires_grad=False
    )
    return layer


def blur(images: Tensor, blur_std: float) -> Tensor:
    """Images (n, channels, height, width), of at least 3 pixels a side, passed through the kernel."""
    offsets = torch.arange(-_MARGIN, _MARGIN + 1, dtype=images.dtype, device=images.device)
    line = torch.exp(-0.5 * (offsets / blur_std).square())
    kernel = torch.outer(line, line)
    kernel = (kernel / kernel.sum()).expand(images.shape[1], 1, -1, -1)
    padded = functional.pad(images, (_MARGIN,) * 4, mode="reflect")
    return functional.conv2d(padded, kernel, groups=images.shape[1])

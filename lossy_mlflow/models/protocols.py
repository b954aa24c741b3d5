"""What the rest of the package asks of a model. Nothing has to be inherited: having the method is enough.

Shapes: a batch of images is (batch, input_vector_length), float32 in [0, 1]; z is (batch, z_size). A
variance is given by its natural logarithm.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from lossy_mlflow.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


@runtime_checkable
class Decoder(Protocol):
    """p(x|z): what is registered, evaluated and shared."""

    def decode(self, z: Tensor) -> tuple[Tensor, Tensor] | Tensor:
        """(x_mean, x_logvar), differentiable in z; or x_mean alone, with an attribute `x_logvar`.

        x_mean is (batch, input_vector_length) on the data's scale, x_logvar a scalar or a vector
        (input_vector_length,).
        """
        ...


@runtime_checkable
class Trainable(Protocol):
    """A model that knows its own loss."""

    def loss(self, batch: Tensor, generator: torch.Generator) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The mean loss over the batch, a scalar (for a VAE in nats per image), and means of its parts.

        All noise comes from `generator`, which lives on the batch's device: so a run is repeatable, and
        validation has fixed noise.
        """
        ...


@runtime_checkable
class Autoencoder(Protocol):
    """A model with an approximate posterior q(z|x), a diagonal Gaussian."""

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(z_mean, z_logvar), each (batch, z_size)."""
        ...


@runtime_checkable
class FeatureMap(Protocol):
    """A network whose features measure distortion."""

    def features(self, x: Tensor) -> Tensor:
        """(batch, n_features), differentiable in x."""
        ...


def decoder_of(model: nn.Module) -> nn.Module:
    """The part that is registered: `model.decoder` where there is one, else the model itself.

    Raises UsageError where that part has no `decode(z)`.
    """
    decoder: nn.Module = getattr(model, "decoder", model)
    if not isinstance(decoder, Decoder):
        raise UsageError(
            f"{type(model).__name__} has no decode(z), and no attribute `decoder` that has one.",
            "Give it a method decode(z) -> (x_mean, x_logvar).",
        )
    return decoder


def decode(decoder: nn.Module, z: Tensor) -> tuple[Tensor, Tensor]:
    """(x_mean, x_logvar) of a decoder, whichever of the two ways it gives them.

    Raises UsageError where it gives the mean alone and has no attribute `x_logvar`.
    """
    import torch

    if not isinstance(decoder, Decoder):
        raise UsageError(
            f"{type(decoder).__name__} has no decode(z).", "Is it a whole model? Pass decoder_of(model)."
        )
    given = decoder.decode(z)
    if not isinstance(given, torch.Tensor):
        return given
    x_logvar = getattr(decoder, "x_logvar", None)
    if x_logvar is None:
        raise UsageError(
            f"decode(z) of {type(decoder).__name__} gives the mean alone, and has no attribute `x_logvar`.",
            "Return (x_mean, x_logvar), or set self.x_logvar to the natural logarithm of the variance.",
        )
    return given, torch.as_tensor(x_logvar, dtype=given.dtype, device=given.device)

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
    """A model that knows its own loss. Where its attribute `needs_labels` is true, the last column of a batch is the labels."""

    def loss(self, batch: Tensor, generator: torch.Generator) -> tuple[Tensor, Mapping[str, Tensor | float]]:
        """The mean loss over the batch, a scalar (for a VAE in nats per image), and means of its parts.

        A part that is a float is taken as it is; where `.item()` made it, a GPU was waited for at every step.

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
    """A network whose features measure distortion. It can be trained and registered as a decoder can."""

    def features(self, x: Tensor) -> Tensor:
        """(batch, n_features), differentiable in x."""
        ...


def decoder_of(model: nn.Module) -> nn.Module:
    """The part that is registered: `model.decoder` where there is one, else the model itself, which may be a FeatureMap.

    Raises UsageError where that part has neither `decode(z)` nor `features(x)`.
    """
    decoder: nn.Module = getattr(model, "decoder", model)
    if not isinstance(decoder, Decoder | FeatureMap):
        raise UsageError(
            f"{type(model).__name__} has no decode(z), and no attribute `decoder` that has one.",
            "Give it a method decode(z) -> (x_mean, x_logvar), or features(x): see docs/models.md",
        )
    return decoder


def needs_labels(model: nn.Module) -> bool:
    """Whether its loss wants each image's label: its attribute `needs_labels`."""
    return bool(getattr(model, "needs_labels", False))


def tensor_of(module: nn.Module) -> Tensor:
    """A tensor of the dtype and on the device that it computes in; float32 on the CPU where it has no weights."""
    import torch

    weights = module.state_dict().values()
    return next((tensor for tensor in weights if tensor.is_floating_point()), torch.zeros(()))


def decode(decoder: nn.Module, z: Tensor) -> tuple[Tensor, Tensor]:
    """(x_mean, x_logvar) of a decoder, whichever of the two ways it gives them.

    Raises UsageError where it gives neither: the mean alone without an attribute `x_logvar`, or something else.
    """
    import torch

    if not isinstance(decoder, Decoder):
        raise UsageError(
            f"{type(decoder).__name__} has no decode(z).", "Is it a whole model? Pass decoder_of(model)."
        )
    given: object = decoder.decode(z)
    if isinstance(given, torch.Tensor):
        given = given, getattr(decoder, "x_logvar", None)
    if not isinstance(given, tuple | list) or len(given) != 2 or not isinstance(given[0], torch.Tensor):
        raise UsageError(
            f"decode(z) of {type(decoder).__name__} gives a {type(given).__name__}, not (x_mean, x_logvar).",
            "Return these two, or x_mean alone, and set self.x_logvar: see docs/models.md",
        )
    x_mean, x_logvar = given
    if x_logvar is None:
        raise UsageError(
            f"decode(z) of {type(decoder).__name__} gives the mean alone, and has no attribute `x_logvar`.",
            "Return (x_mean, x_logvar), or set self.x_logvar to the natural logarithm of the variance.",
        )
    return x_mean, torch.as_tensor(x_logvar, dtype=x_mean.dtype, device=x_mean.device)

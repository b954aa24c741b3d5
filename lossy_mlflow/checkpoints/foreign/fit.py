"""From foreign tensors to the weights of a decoder of ours, or the reason why they are none."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lossy_mlflow.checkpoints.foreign.published import in_our_names
from lossy_mlflow.checkpoints.rebuild import differences
from lossy_mlflow.errors import ConflictError, UsageError
from lossy_mlflow.hparams import Hparam
from lossy_mlflow.user_code import explained_user_code

if TYPE_CHECKING:
    from torch import Tensor, nn

_WHOLE = "decoder."
_LOGVAR = "x_logvar"


@dataclass(frozen=True, slots=True)
class Fitted:
    """A decoder's weights, contiguous and in the model's own types; `notes`: what was changed on the way.

    `decoder`: the module with these weights, in evaluation mode, on the CPU.
    `rest`: the other tensors of the model, an encoder's, by its names; empty where the file has the decoder alone.
    """

    decoder: nn.Module
    weights: Mapping[str, Tensor]
    rest: Mapping[str, Tensor]
    notes: tuple[str, ...]


def fitted(tensors: Mapping[str, Tensor], tree: Hparam, what: str) -> Fitted:
    """The weights of the decoder that `tree` describes, from tensors under its names, its whole model's, or the published ones.

    Raises ConflictError where names or shapes differ; UsageError where a weight is NaN or infinite, or the decoder with
    these weights makes no images: nobody could use it. As `build_model` does, where the model can't be built.
    """
    import torch

    from lossy_mlflow.models import build_model, decoder_of
    from lossy_mlflow.training import seeded

    with seeded(tree.random_seed or 0):
        model = build_model(tree)
    decoder = decoder_of(model)
    given = in_our_names(tree.model_name, tensors)
    is_whole = decoder is not model and any(name.startswith(_WHOLE) for name in given)
    target, prefix = (model, _WHOLE) if is_whole else (decoder, "")
    given = _with_logvar(given, decoder, prefix)
    if off := differences(target, given, "in the file", "in the model"):
        raise ConflictError(
            f"{what} doesn't fit the model {tree.model_name!r}: {off}",
            "Name the set of the architecture that it was trained with: lossy hparams list",
        )
    notes: dict[str, None] = {}
    converted = {}
    for name, wanted in target.state_dict().items():
        tensor = given[name]
        if tensor.is_floating_point() != wanted.is_floating_point():
            raise ConflictError(
                f"{name} in {what} is {_type(tensor)}, in the model {_type(wanted)}.",
                "Save it as that.",
            )
        if tensor.dtype != wanted.dtype and tensor.is_floating_point():
            notes[f"{_type(tensor)} became {_type(wanted)}"] = None
        converted[name] = tensor.to(wanted.dtype).contiguous().clone()
        if n_bad := int((~torch.isfinite(converted[name])).sum()):
            raise UsageError(
                f"{name} in {what} has {n_bad} of {tensor.numel()} numbers that are NaN or infinite as {_type(wanted)}.",
                "A decoder with these makes no images. Take an earlier checkpoint of that training.",
            )
    weights = {name: converted[prefix + name] for name in decoder.state_dict()}
    decoder.load_state_dict(weights)
    _refuse_without_images(decoder.eval(), tree, what)
    rest = (
        {name: tensor for name, tensor in converted.items() if not name.startswith(prefix)}
        if is_whole
        else {}
    )
    return Fitted(decoder, weights, rest, tuple(notes))


def _with_logvar(given: Mapping[str, Tensor], decoder: nn.Module, prefix: str) -> dict[str, Tensor]:
    """The same with the decoder's own variance where it is fixed and the file has none; and with one of shape (1,) as ()."""
    name, own = prefix + _LOGVAR, decoder.state_dict().get(_LOGVAR)
    tensors = dict(given)
    if own is None:
        return tensors
    if name not in tensors and _LOGVAR in dict(decoder.named_buffers()):
        tensors[name] = own
    elif name in tensors and tensors[name].numel() == own.numel() == 1:
        tensors[name] = tensors[name].reshape(own.shape)
    return tensors


def _refuse_without_images(decoder: nn.Module, tree: Hparam, what: str) -> None:
    import torch

    from lossy_mlflow.models import Decoder, decode

    if not isinstance(decoder, Decoder):
        return  # a map of features: its tensors are finite, and fit
    z = torch.linspace(-1, 1, 2 * tree.model_train.z_size).reshape(2, -1)
    with explained_user_code(f"The decoder in {what} fails"), torch.no_grad():
        x_mean, x_logvar = decode(decoder, z)
    wanted = (2, tree.dataset.input_vector_length)
    if tuple(x_mean.shape) != wanted or not all(map(_all_finite, (x_mean, x_logvar))):
        sizes = f"shape {tuple(x_mean.shape)}" if tuple(x_mean.shape) != wanted else "NaN or infinite numbers"
        raise UsageError(
            f"The decoder in {what} makes images of {sizes}; they must be {math.prod(wanted[1:])} finite numbers for each z.",
            "Is it the set of the architecture that it was trained with? lossy hparams list",
        )


def _all_finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")

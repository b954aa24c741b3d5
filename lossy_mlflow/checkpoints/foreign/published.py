"""The tensors of the code of Huang et al. 2020, of the GANs it took, and of its TensorFlow autoencoders, by the names of ours.

Pure. A layer's number there counts from 1; ours count the activations between them as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lossy_mlflow.errors import LossyError

if TYPE_CHECKING:
    from torch import Tensor

    Tensors = Mapping[str, Tensor]

_PARTS = ("weight", "bias")
_AAE_WEIGHT, _AAE_BIAS = "decoder_h{}/w_dense:0", "decoder_h{}/b_dense:0"


class UnrecognisedError(LossyError):
    """A file that is sound, and nothing that is known here."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """A model of ours, and what its tensors say of its sizes: overrides of a tree's fields."""

    model_name: str
    sizes: Mapping[str, Any]


def architecture_of(tensors: Tensors) -> Architecture:
    """What decoder these names are of: a VAE's checkpoint, or an autoencoder's arrays. Raises UnrecognisedError."""
    if any(name.startswith("Guassian_Kernal") for name in tensors):
        raise UnrecognisedError(
            "it is the blurred VAE, which has no weights of its own: they are those of icml_vae10_rd"
        )
    if "de_mean.weight" in tensors:
        numbers = range(1, _count(tensors, "de{}.weight") + 1)
        # (out, in) of each layer, from z outwards.
        widths = [_shape(tensors, f"de{number}.weight") for number in numbers]
        _, last = _shape(tensors, "de_mean.weight")
        sizes = [*(n_in for _, n_in in widths), last]
        hidden = {"model_train.hidden_sizes": sizes[:0:-1]}
        return Architecture("deep_vae", {"model_train.z_size": sizes[0], **hidden})
    if "dec_mean.weight" in tensors:
        _, z_size = _shape(tensors, "dec_mean.weight")
        return Architecture("linear_vae", {"model_train.z_size": z_size})
    if n_layers := _count(tensors, _AAE_WEIGHT):
        # (in, out) of each layer.
        shapes = [_shape(tensors, _AAE_WEIGHT.format(number + 1)) for number in range(n_layers)]
        hidden = {"model_train.hidden_sizes": [n_out for _, n_out in shapes[:-1]]}
        return Architecture("aae_decoder", {"model_train.z_size": shapes[0][0], **hidden})
    shown = ", ".join(sorted(tensors)[:3])
    raise UnrecognisedError(f"no decoder that is known here has tensors of these names: {shown}")


def in_our_names(model_name: str, tensors: Tensors) -> dict[str, Tensor]:
    """The tensors under the names, and in the layout, of our model; as they are where their names aren't the published ones.

    Of a VAE the whole model's names are given, `encoder.` and `decoder.`.
    """
    translate = _TRANSLATIONS.get(model_name)
    return translate(tensors) if translate else dict(tensors)


def _deep_vae(tensors: Tensors) -> dict[str, Tensor]:
    if "de_mean.weight" not in tensors:
        return dict(tensors)
    names = {"x_logvar": "decoder.x_logvar"}
    n_encoder, n_decoder = _count(tensors, "en{}.weight"), _count(tensors, "de{}.weight")
    for part in _PARTS:
        names |= {f"en{i + 1}.{part}": f"encoder.{2 * i}.{part}" for i in range(n_encoder)}
        names |= {f"de{i + 1}.{part}": f"decoder.net.{2 * i}.{part}" for i in range(n_decoder)}
        names[f"de_mean.{part}"] = f"decoder.net.{2 * n_decoder}.{part}"
    return _renamed(tensors, names)


def _linear_vae(tensors: Tensors) -> dict[str, Tensor]:
    import torch

    if "dec_mean.weight" not in tensors:
        return dict(tensors)
    names = {f"enc.{part}": f"encoder.{part}" for part in _PARTS}
    names |= {f"dec_mean.{part}": f"decoder.net.{part}" for part in _PARTS}
    # Its variance is 1, whatever the tensor of that name says.
    return _renamed(tensors, {**names, "x_logvar": "decoder.x_logvar"}) | {
        "decoder.x_logvar": torch.zeros(())
    }


def _mlp_generator(tensors: Tensors) -> dict[str, Tensor]:
    if "out.weight" not in tensors:
        return dict(tensors)
    n_hidden = _count(tensors, "de{}.weight")
    names: dict[str, str] = {}
    for part in _PARTS:
        names |= {f"de{i + 1}.{part}": f"net.{2 * i}.{part}" for i in range(n_hidden)}
        names[f"out.{part}"] = f"net.{2 * n_hidden}.{part}"
    return _renamed(tensors, names)


def _dcgan_generator(tensors: Tensors) -> dict[str, Tensor]:
    import torch

    if "proj.weight" not in tensors:
        return dict(tensors)
    folded = {f"net.{name}": tensor for name, tensor in _without_spectral_norm(tensors).items()}
    for name in tensors:
        if name.endswith(".running_mean"):
            # Torch before 0.4.1 didn't count, and nothing depends on it.
            folded.setdefault(f"net.{name.removesuffix('running_mean')}num_batches_tracked", torch.tensor(0))
    return folded


def _without_spectral_norm(tensors: Tensors) -> dict[str, Tensor]:
    """With each transposed convolution's weight divided by its largest singular value, as torch's spectral_norm does it."""
    plain = {
        name: tensor
        for name, tensor in tensors.items()
        if not name.endswith((".weight_orig", ".weight_u", ".weight_v"))
    }
    for name in tensors:
        if not name.endswith(".weight_orig"):
            continue
        layer = name.removesuffix("_orig")
        weight, u = tensors[name], tensors.get(f"{layer}_u")
        if u is None or weight.ndim != 4 or u.shape != weight.shape[1:2]:
            # Left as it is, for the comparison with the model to name it.
            plain[name] = weight
            continue
        matrix = weight.double().transpose(0, 1).flatten(1)
        u = u.double()
        v = tensors.get(f"{layer}_v")
        if v is None and layer in tensors:
            # Torch before 1.1 stored the quotient itself, and decoded with it.
            continue
        if v is None or v.shape != matrix.shape[1:]:
            v = matrix.T @ u
            v = v / v.norm().clamp_min(1e-12)
        plain[layer] = (weight.double() / (u @ matrix @ v.double())).to(weight.dtype)
    return plain


def _aae_decoder(tensors: Tensors) -> dict[str, Tensor]:
    n_layers = _count(tensors, _AAE_WEIGHT)
    if not n_layers:
        return dict(tensors)
    names: dict[str, str] = {}
    for i in range(n_layers):
        names[_AAE_WEIGHT.format(i + 1)] = f"net.{2 * i}.weight"
        names[_AAE_BIAS.format(i + 1)] = f"net.{2 * i}.bias"
    # TensorFlow has (in, out), torch (out, in); of the rest of the autoencoder nothing is asked.
    return {
        names[name]: tensor.T if tensor.ndim == 2 else tensor
        for name, tensor in tensors.items()
        if name in names
    }


_TRANSLATIONS: dict[str, Callable[[Tensors], dict[str, Tensor]]] = {
    "deep_vae": _deep_vae,
    "linear_vae": _linear_vae,
    "mlp_generator": _mlp_generator,
    "dcgan_generator": _dcgan_generator,
    "aae_decoder": _aae_decoder,
}


def _renamed(tensors: Tensors, names: Mapping[str, str]) -> dict[str, Tensor]:
    return {names.get(name, name): tensor for name, tensor in tensors.items()}


def _count(tensors: Tensors, pattern: str) -> int:
    """How many of the names of the pattern there are, numbered from 1 without a gap."""
    number = 0
    while pattern.format(number + 1) in tensors:
        number += 1
    return number


def _shape(tensors: Tensors, name: str) -> tuple[int, int]:
    shape = tuple(tensors[name].shape)
    if len(shape) != 2:
        raise UnrecognisedError(f"its tensor {name} has {len(shape)} dimensions, a layer's weights have 2")
    return shape

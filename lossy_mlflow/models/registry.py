"""Models by name. A name stands for a builder: a function that makes the model an hparam tree describes."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from lossy_mlflow.errors import ConflictError, NotFoundError, UsageError, did_you_mean
from lossy_mlflow.hparams import Hparam
from lossy_mlflow.models.fields import field
from lossy_mlflow.models.protocols import decoder_of
from lossy_mlflow.user_code import explained_user_code

if TYPE_CHECKING:
    from torch import nn

    BuilderT = TypeVar("BuilderT", bound=Callable[[Hparam], nn.Module])

# Each is the function of that name in a module that imports torch, and so is loaded when it is built.
_BUILT_IN = {
    "linear_vae": "lossy_mlflow.models.linear",
    "deep_vae": "lossy_mlflow.models.deep",
    "dcgan_vae": "lossy_mlflow.models.dcgan",
    "mlp_generator": "lossy_mlflow.models.generators",
    "dcgan_generator": "lossy_mlflow.models.generators",
    "aae_decoder": "lossy_mlflow.models.generators",
    "cnn_classifier": "lossy_mlflow.models.cnn",
}
# Decoders alone, which have no loss: others have trained them.
_COME_TRAINED = {"mlp_generator", "dcgan_generator", "aae_decoder"}
# The fields of ours that say how large a model is.
_SIZES = ("model_train.z_size", "model_train.hidden_sizes", "model_train.n_filters", "model_train.channels")
_registered: dict[str, Callable[[Hparam], nn.Module]] = {}


def register_model(name: str) -> Callable[[BuilderT], BuilderT]:
    """Decorator: trees whose `model_name` is `name` are built by the function (or class) below.

    It takes the tree and returns a torch.nn.Module: a `Trainable` with a `decoder`, or a `Decoder` or `FeatureMap` itself.
    Its weights are drawn from torch's global generator, which whoever builds it has seeded.

    Registering the same function again, as a notebook cell does, replaces it. Raises ConflictError where
    the name is another's.
    """
    if not isinstance(name, str):
        raise UsageError("register_model needs the model's name.", 'Write @register_model("my_vae")')

    def register(builder: BuilderT) -> BuilderT:
        holder = _identity(_registered[name]) if name in _registered else _BUILT_IN.get(name)
        if holder not in (None, _identity(builder)):
            raise ConflictError(
                f"The model name {name!r} is taken by {holder}.",
                f'Give yours another name: @register_model("my_{name}")',
            )
        _registered[name] = builder
        return builder

    return register


def model_names() -> list[str]:
    """The names of all models that can be built, sorted."""
    return sorted(_BUILT_IN.keys() | _registered.keys())


def comes_trained(model_name: str | None) -> bool:
    """Whether it is one of the package's that can't be trained here, but imported."""
    return model_name in _COME_TRAINED


def build_model(tree: Hparam) -> nn.Module:
    """The model that `tree.model_name` names, built for `tree`, on the CPU, with fresh weights.

    Raises NotFoundError for an unknown name, UsageError for fields that don't fit the model or this machine's memory,
    LossyError where a builder of the user's own fails.
    """
    name = tree.model_name
    if name in _BUILT_IN:
        _outline(name, tree)  # finds out whether there is memory for it
        model = _builder(name)(tree)
    elif name in _registered:
        with explained_user_code(f"The model {name!r} can't be built"):
            model = _registered[name](tree)
    else:
        raise _unknown(name)
    return _checked(name, model)


def build_outline(tree: Hparam) -> nn.Module | None:
    """The same model with shapes and no numbers, on torch's device "meta", which takes no time; None where it isn't one of ours.

    Raises UsageError as `build_model` does.
    """
    name = tree.model_name
    if not isinstance(name, str) or name not in _BUILT_IN:
        return None
    return _checked(name, _outline(name, tree))


def _builder(name: str) -> Callable[[Hparam], nn.Module]:
    builder: Callable[[Hparam], nn.Module] = getattr(importlib.import_module(_BUILT_IN[name]), name)
    return builder


def _outline(name: str, tree: Hparam) -> nn.Module:
    """Raises UsageError where the weights take more memory than there is: the system might lend it, and kill who uses it."""
    import psutil
    import torch

    builder = _builder(name)
    total = psutil.virtual_memory().total
    try:
        with torch.device("meta"):
            outline = builder(tree)
    except (RuntimeError, TypeError):  # a size that torch can't count
        wanted = "more bytes than can be counted"
    else:
        n_bytes = sum(tensor.nbytes for tensor in outline.state_dict().values())
        if n_bytes <= total:
            return outline
        wanted = _gigabytes(n_bytes)
    sizes = ", ".join(f"{key}={value}" for key in _SIZES if (value := field(tree, key)) is not None)
    raise UsageError(
        f"The weights of {tree.model_name} with {sizes} take {wanted}; this machine has {_gigabytes(total)}.",
        "Take smaller sizes.",
    )


def _gigabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:,.0f} GB"


def _identity(builder: Callable[[Hparam], nn.Module]) -> str:
    return f"{builder.__module__}.{builder.__qualname__}"


def _unknown(name: object) -> NotFoundError:
    if name is None:
        what = "The hparam model_name is undefined."
    else:
        near = did_you_mean(str(name), model_names())
        what = f"There is no model {name!r}" + (f"; {near}" if near else ".")
    choice = ", ".join(model_names())
    return NotFoundError(
        what, f"Set model_name to one of {choice}; a model of your own: --user-code FILE, or LOSSY_USER_CODE"
    )


def _checked(name: str, model: object) -> nn.Module:
    from torch import nn

    if not isinstance(model, nn.Module):
        raise UsageError(
            f"The builder of {name!r} made {type(model).__name__}, not a torch.nn.Module.",
            "Let the function below @register_model return the model.",
        )
    decoder_of(model)
    return model

"""Models by name. A name stands for a builder: a function (or class) that makes the model an hparam tree
describes.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from lossy_mlflow.errors import ConflictError, NotFoundError, UsageError, did_you_mean
from lossy_mlflow.hparams import Hparam
from lossy_mlflow.models.protocols import decoder_of

if TYPE_CHECKING:
    from torch import nn

    BuilderT = TypeVar("BuilderT", bound=Callable[[Hparam], nn.Module])

# Their modules import torch, so each is loaded when it is first built.
_BUILT_IN = {
    "linear_vae": "lossy_mlflow.models.linear",
    "deep_vae": "lossy_mlflow.models.deep",
    "dcgan_vae": "lossy_mlflow.models.dcgan",
}
_builders: dict[str, Callable[[Hparam], nn.Module]] = {}


def register_model(name: str) -> Callable[[BuilderT], BuilderT]:
    """Decorator: hparam trees whose `model_name` is `name` are built by the function (or class) below.

    It takes the tree and returns a torch.nn.Module: a `Trainable` with a `decoder`, or a `Decoder` itself.
    Its weights are drawn from torch's global generator, which whoever builds it has seeded. Registering the
    same function again, as a notebook cell does, replaces it. Raises ConflictError where the name is
    another's.
    """
    if not isinstance(name, str):
        raise UsageError("register_model needs the model's name.", 'Write @register_model("my_vae")')

    def register(builder: BuilderT) -> BuilderT:
        home = _home(name)
        if home is not None and home not in (builder.__module__, _identity(builder)):
            raise ConflictError(
                f"The model name {name!r} is taken by {home}.",
                f'Give yours another name: @register_model("my_{name}")',
            )
        _builders[name] = builder
        return builder

    return register


def model_names() -> list[str]:
    """The names of all registered models, sorted."""
    return sorted(_BUILT_IN.keys() | _builders.keys())


def build_model(tree: Hparam) -> nn.Module:
    """The model that `tree.model_name` names, built for `tree`, on the CPU, with fresh weights.

    Raises NotFoundError for an unknown name, UsageError for fields that don't fit the model.
    """
    name = tree.model_name
    if name in _BUILT_IN and name not in _builders:
        importlib.import_module(_BUILT_IN[name])
    if name not in _builders:
        near = did_you_mean(str(name), model_names())
        raise NotFoundError(
            f"There is no model {name!r}."
            + (f" Did you mean {near.removeprefix('did you mean ')}" if near else ""),
            f"Set model_name to one of {', '.join(model_names())}; a model of your own: --user-code FILE",
        )
    model = _builders[name](tree)
    decoder_of(model)
    return model


def _home(name: str) -> str | None:
    """Who has the name: module.function; for a built-in one that isn't loaded yet, its module."""
    return _identity(_builders[name]) if name in _builders else _BUILT_IN.get(name)


def _identity(builder: Callable[[Hparam], nn.Module]) -> str:
    return f"{builder.__module__}.{builder.__qualname__}"

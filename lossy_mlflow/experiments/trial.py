"""Whether a model can do what a training will ask of it, found on a few images before a run exists."""

from __future__ import annotations

import math
import posixpath
import random
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from numbers import Real

import numpy as np
import torch
from torch import Tensor, nn

from lossy_mlflow.errors import UsageError
from lossy_mlflow.experiments.nowhere import logged_nowhere
from lossy_mlflow.hparams import Hparam
from lossy_mlflow.models import Autoencoder, Decoder, FeatureMap, Trainable, build_model, decode, decoder_of
from lossy_mlflow.models.fields import whole_number
from lossy_mlflow.training import (
    Settings,
    derived_seed,
    generator_for,
    make_optimizer,
    not_finite,
    seeded,
    state_tensors,
)
from lossy_mlflow.user_code import explained_user_code

# As a batch has them, so that what needs several (batch norm) has several; no more, so that it takes no time.
_MOST_IMAGES = 100
_SEE = "What a model must have: docs/models.md"
# What MLflow takes for a metric's key, which is train_ and the term's name.
_TERM_NAME = re.compile(r"[\w.\- :/]{1,200}")


def check_model(
    model: nn.Module, tree: Hparam, images: Tensor, settings: Settings, device: torch.device
) -> None:
    """Raises UsageError where the model isn't what training needs, LossyError where its own code fails; both say what it did.

    On some of `images` (n, input_vector_length, and a column of labels where it needs them), on `device`, it tries a step of
    training, a validation, an encoding, and a decoding of z, or the features. It tries them on a second model of the same
    builder: `model` and all random numbers stay as they were, whatever a model keeps outside of its tensors. (A deep copy isn't
    one: what closes over the first would change the first.)
    """
    who = f"The model {tree.model_name!r}"
    check_parts(model, tree)
    with _random_numbers_kept(), logged_nowhere(), seeded(derived_seed(settings.seed, "trial"), device):
        with seeded(settings.seed):
            other = build_model(tree)
        if _share_tensors(model, other):
            # The builder gives the same module each time: a trial would train it.
            return
        other.to(device)
        batch = images[: min(settings.batch_size, _MOST_IMAGES)].to(device)
        noise = generator_for(settings.seed, "trial", 0, device)
        loss, terms = _try_step(who, other.train(), batch, noise, settings)
        other.eval()
        with torch.no_grad():
            _try_loss(who, other, batch, noise)
            pictures = batch[:, : tree.dataset.input_vector_length]
            part = decoder_of(other)
            if isinstance(part, FeatureMap) and not isinstance(part, Decoder):
                _try_features(who, part, pictures)
            else:
                _try_decoder(who, other, tree, noise)
            if isinstance(other, Autoencoder):
                _try_encoder(who, other, tree, pictures)
    # Weights that come from elsewhere may do better than these.
    if not math.isfinite(loss) and not tree.load_checkpoint_name:
        larger = _larger_variance(tree)
        raise UsageError(
            f"{who} has a loss of {loss} on {len(batch)} images before any training{not_finite(terms)}.",
            "Look at how it computes these" + (f", or try {larger}" if larger else "."),
        )


def remedies(tree: Hparam) -> str:
    """What may help where a loss has become NaN or infinite in training."""
    smaller = f"a smaller learning rate: --overwrite --set learning_rate={tree.learning_rate / 10:g}"
    larger = _larger_variance(tree)
    return f"Try {smaller}" + (f"    or {larger}" if larger else "")


def _larger_variance(tree: Hparam) -> str:
    x_var = tree.model_train.x_var
    return f"a larger variance: --set model_train.x_var=VALUE (it is {x_var!r})" if x_var else ""


def check_parts(model: nn.Module, tree: Hparam) -> None:
    """Raises UsageError where the model lacks what can be seen without trying it."""
    who = f"The model {tree.model_name!r}"
    if not isinstance(model, Trainable):
        raise UsageError(
            f"{who} can't be trained: it has no loss(batch, generator).",
            f"Give it one that returns (loss, {{name: term}}). {_SEE}",
        )
    if isinstance(decoder_of(model), Decoder):
        whole_number(tree, "model_train.z_size")
    if tree.n_iwae_samples and not isinstance(model, Autoencoder):
        raise UsageError(
            f"{who} has no encode(x): its IWAE bound can't be had.",
            "Set n_iwae_samples to 0, or give it a method encode(x) -> (z_mean, z_logvar).",
        )
    parameters = list(model.parameters())
    if any(isinstance(parameter, nn.parameter.UninitializedParameter) for parameter in parameters):
        raise UsageError(
            f"{who} has lazy layers, whose sizes aren't known yet.",
            "Give their sizes, or let its builder run a batch through it.",
        )
    if not parameters:
        raise UsageError(
            f"{who} has no parameters: there is nothing to train.",
            f"Make its layers attributes of the module, lists of them an nn.ModuleList. {_SEE}",
        )
    if not any(parameter.requires_grad for parameter in parameters):
        raise UsageError(
            f"{who} has parameters with requires_grad=False only: there is nothing to train.",
            "Let those that it should learn require gradients.",
        )


def _share_tensors(model: nn.Module, other: nn.Module) -> bool:
    own = {id(tensor) for tensor in chain(model.parameters(), model.buffers())}
    return any(id(tensor) in own for tensor in chain(other.parameters(), other.buffers()))


@contextmanager
def _random_numbers_kept() -> Iterator[None]:
    """Python's and numpy's global generators are put back: a model may draw from them, though it shouldn't."""
    pythons, numpys = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(pythons)
        np.random.set_state(numpys)


def _try_step(
    who: str, model: nn.Module, batch: Tensor, noise: torch.Generator, settings: Settings
) -> tuple[float, dict[str, float]]:
    """One step of training: its loss and terms."""
    optimizer = make_optimizer(model, settings.learning_rate)
    loss, terms = _try_loss(who, model, batch, noise)
    if not loss.requires_grad:
        raise UsageError(
            f"{who} has a loss that depends on none of its parameters: nothing can be learned from it.",
            f"Compute it from them without detach(), item() and torch.no_grad(). {_SEE}",
        )
    with explained_user_code(f"{who} fails in a first step of training"):
        torch.autograd.backward(loss)
        optimizer.step()
    with explained_user_code(f"{who} can't be stored"):
        state_tensors(model, optimizer)
    return loss.item(), {name: torch.as_tensor(value).item() for name, value in terms.items()}


def _try_loss(
    who: str, model: nn.Module, batch: Tensor, noise: torch.Generator
) -> tuple[Tensor, Mapping[str, Tensor | float]]:
    assert isinstance(model, Trainable)
    does = f"{who}: loss(batch, generator), with a batch of shape {tuple(batch.shape)},"
    with explained_user_code(f"{does} fails"):
        # What a user's code returns is what it returns, whatever its annotations say.
        given: object = model.loss(batch, noise)
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise _returned(does, _shown(given), "(loss, {name: term}), with {} where it has no terms")
    loss, terms = given
    if not isinstance(loss, Tensor) or loss.shape != () or not _is_real(loss):
        raise _returned(
            does, f"as loss {_shown(loss)}", "the mean over the batch, a float32 tensor of shape ()"
        )
    if not isinstance(terms, Mapping):
        raise _returned(does, f"as terms {_shown(terms)}", "a dict {name: term}, or {}")
    for name, value in terms.items():
        if not isinstance(name, str) or not _can_name_a_metric(name):
            raise _returned(does, f"a term named {name!r}", "names that MLflow takes: letters, digits, _-.:/")
        if not (_is_one_number(value) if isinstance(value, Tensor) else isinstance(value, Real)):
            raise _returned(
                does,
                f"as term {name!r} {_shown(value)}",
                "for each term its mean over the batch, a tensor of shape () or a float",
            )
    return loss, terms


def _try_decoder(who: str, model: nn.Module, tree: Hparam, noise: torch.Generator) -> None:
    z = torch.randn(8, tree.model_train.z_size, generator=noise, device=noise.device)
    does = f"{who}: decode(z), with z of shape {tuple(z.shape)} (its width is model_train.z_size),"
    wanted = (len(z), tree.dataset.input_vector_length)
    with explained_user_code(f"{does} fails"):
        x_mean, x_logvar = decode(decoder_of(model), z)
    if x_mean.shape != wanted or not _is_real(x_mean):
        raise _returned(
            does,
            f"as x_mean {_shown(x_mean)}",
            f"a float32 tensor of shape {wanted}: dataset.input_vector_length numbers for each z",
        )
    if not (x_logvar.numel() == 1 or x_logvar.shape == wanted[1:]) or not _is_real(x_logvar):
        raise _returned(
            does, f"as x_logvar {_shown(x_logvar)}", f"a float32 scalar, or one of shape {wanted[1:]}"
        )


def _try_features(who: str, model: FeatureMap, images: Tensor) -> None:
    does = f"{who}: features(x), with x of shape {tuple(images.shape)},"
    with explained_user_code(f"{does} fails"):
        given: object = model.features(images)
    if not isinstance(given, Tensor) or given.ndim != 2 or len(given) != len(images) or not _is_real(given):
        raise _returned(
            does, _shown(given), f"a float32 tensor of shape ({len(images)}, n): n features for each x"
        )


def _try_encoder(who: str, model: Autoencoder, tree: Hparam, batch: Tensor) -> None:
    does = f"{who}: encode(x), with x of shape {tuple(batch.shape)},"
    wanted = (len(batch), tree.model_train.z_size)
    with explained_user_code(f"{does} fails"):
        given: object = model.encode(batch)
    parts = given if isinstance(given, tuple | list) else (given,)
    fit = [isinstance(part, Tensor) and part.shape == wanted and _is_real(part) for part in parts]
    if fit != [True, True]:
        raise _returned(
            does,
            " and ".join(map(_shown, parts)),
            f"(z_mean, z_logvar), two float32 tensors of shape {wanted}: model_train.z_size numbers for each x",
        )


def _returned(does: str, given: str, wanted: str) -> UsageError:
    return UsageError(f"{does} returns {given}; it must return {wanted}.", _SEE)


def _shown(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)}"
    if value is None:
        return "None"
    many = f" of {len(value)}" if isinstance(value, tuple | list) else ""
    return f"a {type(value).__name__}{many}"


def _is_real(tensor: Tensor) -> bool:
    # numpy has no bfloat16, a float16 has three digits, and the registered signature says float32.
    return tensor.dtype in (torch.float32, torch.float64)


def _is_one_number(tensor: Tensor) -> bool:
    return tensor.shape == () and not tensor.is_complex()


def _can_name_a_metric(name: str) -> bool:
    return bool(_TERM_NAME.fullmatch(name)) and posixpath.normpath(f"train_{name}") == f"train_{name}"

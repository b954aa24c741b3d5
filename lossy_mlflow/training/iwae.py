"""The importance-weighted bound on the likelihood (Burda, Grosse and Salakhutdinov 2016, equation 8)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lossy_mlflow.errors import UsageError
from lossy_mlflow.models import Autoencoder, decode, decoder_of
from lossy_mlflow.models.gaussian import log_density, sample, standard_log_density


def iwae_bound(
    model: nn.Module, images: Tensor, n_samples: int, generator: torch.Generator, batch_size: int = 1000
) -> tuple[float, float]:
    """(mean, standard error over images) of log 1/k sum_i p(x|z_i) p(z_i) / q(z_i|x), in nats.

    k is `n_samples`, z_i is drawn from q.

    A lower bound on log p(x) in expectation, tighter for larger k. `images` is (n, input_vector_length), n
    at least 2; it, `model` and `generator` are on one device. Decodes `batch_size` z at a time. The model
    is left in the mode it was in. Raises UsageError where the model has no encode(x).
    """
    if not isinstance(model, Autoencoder):
        raise UsageError(
            f"{type(model).__name__} has no encode(x): its IWAE bound can't be had.",
            "Set n_iwae_samples to 0, or give the model a method encode(x) -> (z_mean, z_logvar).",
        )
    training = model.training
    model.eval()
    decoder = decoder_of(model)
    starts = range(0, len(images), batch_size)
    try:
        with torch.no_grad():
            parts = [
                _bounds(model, decoder, images[start : start + batch_size], n_samples, generator)
                for start in starts
            ]
    finally:
        model.train(training)
    bounds = torch.cat(parts)
    return bounds.mean().item(), (bounds.std() / math.sqrt(len(bounds))).item()


def _bounds(
    encoder: Autoencoder, decoder: nn.Module, x: Tensor, n_samples: int, generator: torch.Generator
) -> Tensor:
    """The bound of each image, (batch,), float64."""
    z_mean, z_logvar = encoder.encode(x)
    total = torch.full((len(x),), -math.inf, dtype=torch.float64, device=x.device)
    # One sample of every image at a time: memory doesn't grow with their number.
    for _ in range(n_samples):
        z = sample(z_mean, z_logvar, generator)
        log_joint = log_density(x, *decode(decoder, z)) + standard_log_density(z)
        total = torch.logaddexp(total, (log_joint - log_density(z, z_mean, z_logvar)).double())
    return total - math.log(n_samples)

"""The validation loss: the same images in the same batches with the same noise at every epoch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lossy_mlflow.models import Trainable
from lossy_mlflow.training.batches import batches, mean_over_images
from lossy_mlflow.training.seeds import derived_seed, generator_for, seeded
from lossy_mlflow.training.settings import Settings


def validation_loss(
    model: Trainable, images: Tensor, settings: Settings, should_stop: Callable[[], bool] = lambda: False
) -> Tensor:
    """The mean loss over the images, or the first `n_val_batch` batches of them: a scalar on the device.

    The published code drew ten fresh batches an epoch, so that its best epoch was a minimum of noise. The
    model must be in evaluation mode. Raises Stopped where `should_stop`, asked before each batch, says so.
    """
    if settings.n_val_batch is not None:
        images = images[: settings.n_val_batch * settings.batch_size]
    generator = generator_for(settings.seed, "validation", device=images.device)
    losses = []
    with seeded(derived_seed(settings.seed, "validation"), images.device), torch.no_grad():
        for batch in batches(images, settings.batch_size, should_stop):
            loss, _ = model.loss(batch, generator)
            losses.append(loss)
    return mean_over_images(losses, settings.batch_size, len(images))

"""The training loop: a generator of epochs, over images that lie on the model's device."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lossy_mlflow.errors import LossyError, UsageError
from lossy_mlflow.models import Trainable
from lossy_mlflow.training.batches import batches, mean_over_images
from lossy_mlflow.training.seeds import derived_seed, generator_for, seeded
from lossy_mlflow.training.settings import Settings
from lossy_mlflow.training.validation import validation_loss


class NonFiniteLossError(LossyError):
    """A loss became NaN or infinite: the weights are of no use any more."""


@dataclass(frozen=True, slots=True)
class EpochResult:
    """One epoch. Losses and terms are means over images, for a VAE nats per image.

    `epoch` counts completed epochs, from 1. `train_loss` and `terms` are of the training images, each
    batch's with the weights it met. `seconds` is the wall time of the epoch with its validation, `images`
    the number of images trained on.
    """

    epoch: int
    train_loss: float
    val_loss: float
    terms: dict[str, float]
    seconds: float
    images: int


def make_optimizer(model: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
    """Adam (Kingma and Ba 2015) with its usual constants; fused: one pass over the weights a step."""
    return torch.optim.Adam(model.parameters(), lr=learning_rate, fused=True)


def train_epochs(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    train_images: Tensor,
    val_images: Tensor,
    settings: Settings,
    start_epoch: int = 0,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[EpochResult]:
    """Train on from `start_epoch` completed epochs to `settings.epochs`, one result an epoch.

    The model is in evaluation mode when a result is given. `train_images` and `val_images` are (n,
    input_vector_length) on the model's device. Every image is seen once an epoch, in an order and with
    noise that follow from the seed and the epoch; a last, smaller batch is kept. On a GPU nothing waits for
    the device within an epoch. torch's global generators are left as they are found.

    Raises NonFiniteLossError in place of a result whose loss is NaN or infinite; Stopped where
    `should_stop`, asked before each batch, says so; UsageError where the model has no loss(batch,
    generator), or one whose terms change from batch to batch.
    """
    if not isinstance(model, Trainable):
        raise UsageError(
            f"{type(model).__name__} can't be trained: it has no loss(batch, generator).",
            "Give it one that returns (loss, {name: part of the loss}), scalars in nats per image.",
        )
    _let_malloc_keep_gradients()
    for epoch in range(start_epoch + 1, settings.epochs + 1):
        begin = time.perf_counter()
        model.train()
        # The generators are put back before the yield: what the caller draws in between is none of ours.
        with seeded(derived_seed(settings.seed, "epoch", epoch), train_images.device):
            means = _train_one(model, optimizer, train_images, settings, epoch, should_stop)
        model.eval()
        means["val_loss"] = validation_loss(model, val_images, settings, should_stop)
        # Here, and nowhere before, the device is waited for.
        numbers = dict(zip(means, torch.stack(list(means.values())).tolist(), strict=True))
        train_loss, val_loss = numbers.pop("train_loss"), numbers.pop("val_loss")
        for name, loss in (("train_loss", train_loss), ("val_loss", val_loss)):
            if not math.isfinite(loss):
                raise NonFiniteLossError(
                    f"The {name} of epoch {epoch} is {loss} (learning rate {settings.learning_rate:g})"
                    f"{not_finite(numbers)}."
                )
        seconds = time.perf_counter() - begin
        yield EpochResult(epoch, train_loss, val_loss, numbers, seconds, len(train_images))


def _let_malloc_keep_gradients() -> None:
    """Spare a CPU the paging in of every step's gradients: 6 to 16 % of a deep VAE's step.

    glibc returns freed memory to the system above twice the size of the largest block that it has seen
    freed, up to 32 MiB (mallopt(3), M_MMAP_THRESHOLD). One such block, never touched, raises that for good.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)


def _train_one(
    model: Trainable,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    settings: Settings,
    epoch: int,
    should_stop: Callable[[], bool],
) -> dict[str, Tensor]:
    """One epoch of steps. The mean train_loss and terms over its images, still on the device."""
    device = images.device
    order = torch.randperm(
        len(images), generator=generator_for(settings.seed, "order", epoch, device), device=device
    )
    noise = generator_for(settings.seed, "noise", epoch, device)
    per_batch: dict[str, list[Tensor]] = {}
    for batch in batches(images, settings.batch_size, should_stop, order):
        optimizer.zero_grad()
        loss, terms = model.loss(batch, noise)
        torch.autograd.backward(loss)
        optimizer.step()
        for name, value in {**terms, "train_loss": loss}.items():
            per_batch.setdefault(name, []).append(_off_the_graph(value, device))
    for name, values in per_batch.items():
        if len(values) != len(per_batch["train_loss"]):
            raise UsageError(
                f"The loss of {type(model).__name__} gave the term {name!r} for {len(values)} of "
                f"{len(per_batch['train_loss'])} batches: it has no mean.",
                "Give every batch the same terms.",
            )
    return {
        name: mean_over_images(values, settings.batch_size, len(images)) for name, values in per_batch.items()
    }


def _off_the_graph(value: Tensor | float, device: torch.device) -> Tensor:
    """A scalar on the device. One that is a float already, as `.item()` gives it, keeps its digits."""
    if isinstance(value, Tensor):
        return value.detach().to(device)
    return torch.tensor(value, dtype=torch.float64, device=device)


def not_finite(terms: Mapping[str, float]) -> str:
    """'; of its terms, kl is nan', for those of a model's terms that are NaN or infinite; '' where all are finite."""
    off = [f"{name} is {value}" for name, value in terms.items() if not math.isfinite(value)]
    return f"; of its terms, {', '.join(off)}" if off else ""

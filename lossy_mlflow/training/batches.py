"""Images cut into batches, and the means of what the batches gave."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor


class Stopped(Exception):  # noqa: N818 (like StopIteration, it reports a wish that was met, not an error)
    """`should_stop` said so. The epoch that was under way gives no result."""


def batches(
    images: Tensor, batch_size: int, should_stop: Callable[[], bool], order: Tensor | None = None
) -> Iterator[Tensor]:
    """The images, `batch_size` at a time; the last batch may be smaller.

    `order` holds indices on the images' device; None: as they lie.

    Raises Stopped where `should_stop`, asked before each batch, says so.
    """
    for start in range(0, len(images), batch_size):
        if should_stop():
            raise Stopped
        part = slice(start, start + batch_size)
        yield images[part] if order is None else images.index_select(0, order[part])


def with_labels(images: Tensor, labels: Tensor | None) -> Tensor:
    """What a model's loss gets batches of: the images (n, length), with labels (n,) as one column more."""
    return images if labels is None else torch.cat([images, labels.to(images).unsqueeze(1)], dim=1)


def mean_over_images(means: Sequence[Tensor], batch_size: int, n_images: int) -> Tensor:
    """The mean over all images, from the mean of each batch (scalars on one device); float64.

    All batches are of `batch_size` but the last, which has the rest. Nothing waits for the device.
    """
    # One that holds them all has no more than all: what it lacks would cancel the digits of the sum.
    batch_size = min(batch_size, n_images)
    per_batch = torch.stack(list(means)).double()
    lacking = batch_size * len(means) - n_images
    return (batch_size * per_batch.sum() - lacking * per_batch[-1]) / n_images

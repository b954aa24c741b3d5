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
    """The images in `order` (indices, on their device; None: as they lie), `batch_size` at a time; the last
    batch may be smaller.

    Raises Stopped where `should_stop`, asked before each batch, says so.
    """
    for start in range(0, len(images), batch_size):
        if should_stop():
            raise Stopped
        part = slice(start, start + batch_size)
        yield images[part] if order is None else images.index_select(0, order[part])


def mean_over_images(means: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
    """The mean over all images, from each batch's mean (a scalar on the device) and size. In float64;
    nothing is waited for.
    """
    per_batch = torch.stack(list(means)).double()
    return torch.dot(per_batch, torch.tensor(sizes, dtype=torch.float64).to(per_batch.device)) / sum(sizes)

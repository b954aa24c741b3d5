"""Many small images in one picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lossy_mlflow.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    Images: TypeAlias = Tensor | NDArray[np.floating]
    Picture: TypeAlias = NDArray[np.uint8]

_GAP = 2  # pixels between images
_GAP_SHADE = 96  # neither the black nor the white of most images
_LEAST_SIDE = 56  # pixels: what a person can make out on a screen


def image_grid(
    images: Images, input_dims: Sequence[int], columns: int | None = None, scale: int | None = None
) -> Picture:
    """The images, row by row, as RGB (height, width, 3), uint8.

    `images` is (n, channels * height * width), n at least 1, on any device, in [0, 1]: values outside are
    clipped, NaN is black. `input_dims` is [channels, height, width], with 1 or 3 channels. Without
    `columns` the grid is about square. Each pixel becomes `scale` x `scale`; without it, images are
    enlarged to 56 pixels or a little more. Raises UsageError for shapes that don't fit.
    """
    tiles = _tiles(images, input_dims)
    scale = scale or math.ceil(_LEAST_SIDE / max(tiles.shape[1:3]))
    tiles = tiles.repeat(scale, axis=1).repeat(scale, axis=2)
    n, height, width, _ = tiles.shape
    columns = min(n, columns or math.ceil(math.sqrt(n)))
    rows = math.ceil(n / columns)
    picture = np.full(
        (rows * (height + _GAP) + _GAP, columns * (width + _GAP) + _GAP, 3), _GAP_SHADE, np.uint8
    )
    for index, tile in enumerate(tiles):
        top = _GAP + index // columns * (height + _GAP)
        left = _GAP + index % columns * (width + _GAP)
        picture[top : top + height, left : left + width] = tile
    return picture


def reconstruction_grid(
    images: Images,
    reconstructions: Images,
    input_dims: Sequence[int],
    columns: int = 10,
    scale: int | None = None,
) -> Picture:
    """Pairs of rows: `columns` images, and below each its reconstruction; otherwise as `image_grid`.

    Raises UsageError where the two differ in shape.
    """
    above, below = _array(images), _array(reconstructions)
    if above.shape != below.shape:
        raise UsageError(
            f"The images are {above.shape}, their reconstructions {below.shape}: they must be alike."
        )
    rows = []
    for start in range(0, len(above), columns):
        for part in (above[start : start + columns], below[start : start + columns]):
            # The last pair of rows is filled up with black.
            rows.append(np.pad(part, ((0, min(columns, len(above)) - len(part)), (0, 0))))
    return image_grid(np.concatenate(rows), input_dims, min(columns, len(above)), scale)


def _tiles(images: Images, input_dims: Sequence[int]) -> Picture:
    """(n, height, width, 3), uint8."""
    channels, height, width = input_dims
    values = _array(images)
    if (
        channels not in (1, 3)
        or values.ndim != 2
        or len(values) == 0
        or values.shape[1] != channels * height * width
    ):
        raise UsageError(f"Images of shape {values.shape} can't be drawn as input_dims {list(input_dims)}.")
    shades = (np.clip(np.nan_to_num(values, nan=0.0), 0, 1) * 255).round().astype(np.uint8)
    tiles = shades.reshape(-1, channels, height, width).transpose(0, 2, 3, 1)
    return np.broadcast_to(tiles, (*tiles.shape[:3], 3))


def _array(images: Images) -> NDArray[np.floating]:
    return images if isinstance(images, np.ndarray) else images.detach().cpu().numpy()

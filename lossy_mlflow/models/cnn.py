"""A small convolutional classifier, whose features measure distortion: images that it takes for the same digit are near.

Huang et al. 2020 measure by the features of one that is trained on MNIST, with kernels of 5 and no padding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from lossy_mlflow.errors import UsageError
from lossy_mlflow.hparams import Hparam
from lossy_mlflow.models.fields import (
    ImageShape,
    field,
    image_shape,
    unfit_field,
    whole_number,
    whole_numbers,
)


class CnnClassifier(nn.Module):
    """Two convolutions, each followed by a pooling that halves the sides, and a linear layer that gives the classes' logits."""

    needs_labels = True

    def __init__(
        self, shape: ImageShape, channels: tuple[int, int], kernel_size: int, padding: int, n_classes: int
    ) -> None:
        super().__init__()
        self._shape = shape
        first, second = channels
        self.conv1 = nn.Conv2d(shape.channels, first, kernel_size, padding=padding)
        self.conv2 = nn.Conv2d(first, second, kernel_size, padding=padding)
        height, width = (_side(side, kernel_size, padding) // 2 for side in (shape.height, shape.width))
        self._feature_shape = second, _side(height, kernel_size, padding), _side(width, kernel_size, padding)
        pooled = second * (self._feature_shape[1] // 2) * (self._feature_shape[2] // 2)
        if pooled < 1:
            raise UsageError(
                f"Images of {shape.height} x {shape.width} pixels are too small for two convolutions of {kernel_size} x"
                f" {kernel_size} with {padding} pixels around.",
                "Take a smaller model_train.kernel_size, or more model_train.padding.",
            )
        self.classes = nn.Linear(pooled, n_classes)

    def features(self, x: Tensor) -> Tensor:
        """What the second convolution gives, before it is pooled: (batch, n_features) for images (batch, input_vector_length)."""
        images = x.reshape(-1, self._shape.channels, self._shape.height, self._shape.width)
        pooled = functional.max_pool2d(functional.relu(self.conv1(images)), 2)
        return functional.relu(self.conv2(pooled)).flatten(1)

    def logits(self, x: Tensor) -> Tensor:
        """(batch, n_classes): natural logarithms of the classes' probabilities, but for a constant."""
        features = self.features(x).reshape(-1, *self._feature_shape)
        logits: Tensor = self.classes(functional.max_pool2d(features, 2).flatten(1))
        return logits

    def loss(self, batch: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:  # noqa: ARG002
        """The cross entropy, nats per image; the last column of the batch is the images' labels."""
        logits, labels = self.logits(batch[:, :-1]), batch[:, -1].long()
        accuracy = (logits.argmax(1) == labels).float().mean()
        return functional.cross_entropy(logits, labels), {"accuracy": accuracy}


def cnn_classifier(tree: Hparam) -> CnnClassifier:
    """`model_train.channels` of the two convolutions, their `kernel_size` and `padding`, and `n_classes`."""
    channels = whole_numbers(tree, "model_train.channels")
    if len(channels) != 2:
        raise unfit_field(tree, "model_train.channels", (list,), "a list of two whole numbers")
    padding = field(tree, "model_train.padding")
    if type(padding) is not int or padding < 0:
        raise unfit_field(tree, "model_train.padding", (int,), "a whole number of at least 0")
    return CnnClassifier(
        image_shape(tree),
        (channels[0], channels[1]),
        whole_number(tree, "model_train.kernel_size"),
        padding,
        whole_number(tree, "model_train.n_classes"),
    )


def _side(side: int, kernel_size: int, padding: int) -> int:
    """Of what a convolution gives."""
    return max(0, side + 2 * padding - kernel_size + 1)

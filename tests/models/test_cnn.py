"""The classifier whose features measure distortion: its shapes, its loss, what it refuses."""

import math

import pytest
import torch

from lossy_mlflow.errors import UsageError
from lossy_mlflow.hparams import get_hparams
from lossy_mlflow.models import Decoder, FeatureMap, build_model, decode, decoder_of, needs_labels
from lossy_mlflow.training import seeded, with_labels


def built(name, **fields):
    with seeded(0):
        return build_model(get_hparams(name, {f"model_train.{key}": value for key, value in fields.items()}))


@pytest.mark.parametrize(
    ("name", "n_pixels", "n_features"), [("cnn_mnist", 784, 3200), ("cnn_digits", 64, 800)]
)
def test_features_are_the_second_convolution(name, n_pixels, n_features):
    model = built(name)
    assert isinstance(model, FeatureMap)
    assert not isinstance(model, Decoder)
    assert needs_labels(model)
    assert decoder_of(model) is model
    images = torch.rand(3, n_pixels)
    features = model.features(images)
    assert features.shape == (3, n_features)
    assert features.min() == 0 < features.max()
    # Of each image alone.
    assert torch.allclose(model.features(images[:1]), features[:1], atol=1e-6)


def test_the_loss_is_the_mean_of_minus_log_p_of_the_label():
    model, images, labels = built("cnn_digits"), torch.rand(5, 64), torch.tensor([3, 0, 9, 9, 1])
    loss, terms = model.loss(with_labels(images, labels), torch.Generator())
    p = model.logits(images).softmax(1).detach()
    assert loss.item() == pytest.approx(sum(-math.log(p[i, label]) for i, label in enumerate(labels)) / 5)
    right = sum(int(p[i].argmax()) == int(label) for i, label in enumerate(labels))
    assert terms["accuracy"].item() == pytest.approx(right / 5)


def test_the_gradient_reaches_the_images():
    model, images = built("cnn_digits"), torch.rand(2, 64, requires_grad=True)
    model.features(images).sum().backward()
    assert images.grad.abs().sum() > 0


def test_it_does_not_decode():
    with pytest.raises(UsageError, match=r"has no decode\(z\)"):
        decode(built("cnn_digits"), torch.zeros(1, 2))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (
            {"kernel_size": 5, "padding": 0},
            "Images of 8 x 8 pixels are too small for two convolutions of 5 x 5",
        ),
        ({"channels": [20]}, "model_train.channels is [20]; it must be a list of two whole numbers"),
        ({"padding": -1}, "model_train.padding is -1; it must be a whole number of at least 0"),
        ({"n_classes": 0}, "model_train.n_classes is 0; it must be a whole number of at least 1"),
    ],
)
def test_what_does_not_fit_is_refused(fields, says):
    with pytest.raises(UsageError) as refused:
        built("cnn_digits", **fields)
    assert says in refused.value.what

"""The picture of a version: of its own weights, always the same, and none where there is nothing to draw."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from lossy_mlflow.experiments.pictures import samples_png
from lossy_mlflow.hparams import get_hparams
from lossy_mlflow.models import build_model, decoder_of
from lossy_mlflow.training import seeded


def test_the_picture_is_of_the_weights_and_always_the_same() -> None:
    tree = get_hparams("vae2_digits")
    with seeded(1):
        first, second = (decoder_of(build_model(tree)) for _ in range(2))
    drawn = samples_png(first.train(), tree, "cpu")
    assert first.training
    assert drawn == samples_png(first.eval(), tree, "cpu")
    pixels = np.asarray(Image.open(io.BytesIO(drawn)))
    assert pixels.shape == (8 * (56 + 2) + 2,) * 2  # grey, as digits are
    second.load_state_dict(first.state_dict())
    assert samples_png(second, tree, "cpu") == drawn
    for parameter in second.parameters():
        parameter.data.neg_()
    assert samples_png(second, tree, "cpu") != drawn


def test_colours_stay_colours() -> None:
    tree = get_hparams("vae2_digits", {"dataset.input_dims": [3, 4, 8], "dataset.input_vector_length": 96})
    picture = Image.open(io.BytesIO(samples_png(decoder_of(build_model(tree)), tree, "cpu")))
    assert picture.mode == "RGB"


@pytest.mark.parametrize("dims", [[2, 4, 8], [1, 64], [1, 8, 9], [1, 8.0, 8]])
def test_what_is_no_image_has_no_picture(dims: list[float]) -> None:
    tree = get_hparams("vae2_digits", {"dataset.input_dims": dims})
    decoder = decoder_of(build_model(get_hparams("vae2_digits")))
    assert samples_png(decoder, tree, "cpu") == b""

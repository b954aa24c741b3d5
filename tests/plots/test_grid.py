"""Many small images in one picture, pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lossy_mlflow.errors import UsageError
from lossy_mlflow.plots import image_grid, reconstruction_grid

GAP, SHADE = 2, 96


def test_two_grey_images_side_by_side_enlarged():
    images = torch.tensor([[0.0, 0.2, 0.4, 1.0], [1.0, 1.0, 0.0, 0.0]])
    picture = image_grid(images, [1, 2, 2], columns=2, scale=3)
    assert picture.dtype == np.uint8
    assert picture.shape == (2 * GAP + 6, 3 * GAP + 12, 3)
    first, second = picture[GAP : GAP + 6, GAP : GAP + 6], picture[GAP : GAP + 6, 2 * GAP + 6 : 2 * GAP + 12]
    assert (first[..., 0] == np.kron([[0, 51], [102, 255]], np.ones((3, 3)))).all()
    assert (second[..., 0] == np.kron([[255, 255], [0, 0]], np.ones((3, 3)))).all()
    assert (picture == picture[..., :1]).all()
    picture[GAP : GAP + 6, GAP : GAP + 6] = picture[GAP : GAP + 6, 2 * GAP + 6 : 2 * GAP + 12] = SHADE
    assert (picture == SHADE).all()


def test_colours_come_from_the_channels():
    image = np.array([[1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0]], np.float32)
    picture = image_grid(image, [3, 2, 2], scale=1)
    inside = picture[GAP:-GAP, GAP:-GAP]
    assert inside.tolist() == [[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [0, 0, 0]]]


def test_values_outside_are_clipped_and_what_is_no_number_is_black():
    image = torch.tensor([[-3.0, 7.0, float("nan"), float("inf")]], requires_grad=True)
    inside = image_grid(image, [1, 2, 2], scale=1)[GAP:-GAP, GAP:-GAP, 0]
    assert inside.tolist() == [[0, 255], [0, 255]]


@pytest.mark.parametrize(("side", "scale"), [(8, 7), (28, 2), (32, 2), (64, 1)])
def test_small_images_are_enlarged_so_that_a_person_can_see_them(side, scale):
    picture = image_grid(torch.zeros(1, side * side), [1, side, side])
    assert picture.shape == (side * scale + 2 * GAP, side * scale + 2 * GAP, 3)


@given(st.integers(1, 30), st.one_of(st.none(), st.integers(1, 12)))
def test_every_image_has_its_place(n, columns):
    """Image i is one pixel of shade 8 i: read row by row they come in order, and nothing follows."""
    images = torch.arange(n)[:, None] * 8 / 255
    picture = image_grid(images, [1, 1, 1], columns, scale=1)[GAP :: 1 + GAP, GAP :: 1 + GAP, 0]
    assert picture.flatten()[:n].tolist() == [8 * i for i in range(n)]
    assert (picture.flatten()[n:] == SHADE).all()
    assert picture.size - n < picture.shape[1]
    if columns is None:
        assert 0 <= picture.shape[1] - picture.shape[0] <= 1
    else:
        assert picture.shape[1] == min(n, columns)


def test_reconstructions_lie_below_their_images():
    images = torch.tensor([[10.0], [20.0], [30.0]]) / 255
    redrawn = torch.tensor([[11.0], [21.0], [31.0]]) / 255
    picture = reconstruction_grid(images, redrawn, [1, 1, 1], columns=2, scale=1)
    assert picture[GAP :: 1 + GAP, GAP :: 1 + GAP, 0].tolist() == [[10, 20], [11, 21], [30, 0], [31, 0]]
    alone = reconstruction_grid(images[:1], redrawn[:1], [1, 1, 1], scale=1)
    assert alone[GAP :: 1 + GAP, GAP :: 1 + GAP, 0].tolist() == [[10], [11]]


@pytest.mark.parametrize(
    ("shape", "dims"), [((2, 63), [1, 8, 8]), ((2, 128), [2, 8, 8]), ((0, 64), [1, 8, 8]), ((64,), [1, 8, 8])]
)
def test_shapes_that_do_not_fit_are_refused(shape, dims):
    with pytest.raises(UsageError) as refused:
        image_grid(torch.zeros(shape), dims)
    assert refused.value.what == f"Images of shape {shape} can't be drawn as input_dims {dims}."


def test_so_are_reconstructions_of_other_images():
    with pytest.raises(UsageError, match=r"The images are \(2, 4\), their reconstructions \(3, 4\)"):
        reconstruction_grid(torch.zeros(2, 4), torch.zeros(3, 4), [1, 2, 2])

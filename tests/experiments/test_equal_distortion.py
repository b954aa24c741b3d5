"""The rate at a distortion, and the difference of two, against populations whose curves are known."""

from __future__ import annotations

import numpy as np
import pytest

from lossy_mlflow.errors import LossyError
from lossy_mlflow.experiments.equal_distortion import ByImage, Floats, by_image, difference, rate_at
from tests.experiments.gaussian_curves import BETAS, Gaussian

# What A leaves unexplained is 2 on average, far enough below D that 40 images don't reach it by chance.
A, B = Gaussian(scale=1.0, n_latent=5), Gaussian(scale=1.5, n_latent=6)
D = 8.0


def _curve(decoder: Gaussian, images: np.ndarray, betas: np.ndarray = BETAS) -> ByImage:
    squares = images**2
    return by_image(
        betas, decoder.log_z(squares, betas), decoder.distortion(squares, betas), np.zeros(len(betas))
    )


@pytest.mark.parametrize("distortion", [2.5, 4.0, 8.0, 11.5])
@pytest.mark.parametrize("n_betas", [12, 60])
def test_between_betas_the_rate_is_the_true_one(distortion: float, n_betas: int) -> None:
    # One image whose every square is the population's mean has the population's curve: what is left is interpolation.
    typical = np.full((1, A.n_pixels), np.sqrt(A.variance))
    found = rate_at(_curve(A, typical, np.geomspace(0.01, 3000, n_betas)), distortion)
    assert found.rate == pytest.approx(A.true_rate(distortion), abs=2e-3 if n_betas == 60 else 0.05)


def test_errors_say_how_far_the_estimates_scatter() -> None:
    generator = np.random.default_rng(5)
    n_images, n_times = 40, 600
    truth = B.true_rate(D) - A.true_rate(D)
    paired, apart, alone = [], [], []
    for _ in range(n_times):
        images, others = A.draw(n_images, generator), B.draw(n_images, generator)
        one = rate_at(_curve(A, images), D)
        paired.append(difference(one, rate_at(_curve(B, images), D), paired=True))
        apart.append(difference(one, rate_at(_curve(B, others), D), paired=False))
        alone.append(one)
    for found, true in ((paired, truth), (apart, truth)):
        values, errors = np.array([item.value for item in found]), np.array([item.se for item in found])
        # A standard deviation of 600 numbers is known to 3 %; the plug-in error of 40 images is low by 1 or 2 %.
        assert errors.mean() == pytest.approx(values.std(), rel=0.12)
        # In 40 images the curve is bent a little: a bias of second order, of a few hundredths of the error's square.
        assert values.mean() == pytest.approx(true, abs=4 * values.std() / np.sqrt(n_times) + 0.1)
    rates = np.array([shares.rate for shares in alone])
    assert np.mean([shares.se for shares in alone]) == pytest.approx(rates.std(), rel=0.12)
    # What the two have in common is most of the error; and an error that forgets it would be noticed above.
    assert np.mean([item.se for item in paired]) < 0.6 * np.mean([item.se for item in apart])


def test_an_image_alone_has_the_error_of_its_chains() -> None:
    image = np.ones((1, A.n_pixels))
    curve = ByImage(BETAS, A.log_z(image, BETAS), A.distortion(image, BETAS), np.full(len(BETAS), 0.3))
    shares = rate_at(curve, sum(curve.range()) / 2)
    assert shares.se == pytest.approx(0.3)
    assert difference(shares, shares, paired=True).se == pytest.approx(0.3 * np.sqrt(2))


def test_the_ends_of_the_range_are_within_it_and_what_is_not_finite_is_left_out() -> None:
    images = A.draw(10, np.random.default_rng(1))
    curve = _curve(A, images)
    for distortion, beta in zip(curve.range(), (BETAS[-1], BETAS[0]), strict=True):
        assert rate_at(curve, distortion).beta == pytest.approx(beta)
    log_z = A.log_z(images**2, BETAS)
    log_z[-1, 0] = -np.inf
    assert by_image(BETAS, log_z, A.distortion(images**2, BETAS), np.zeros(60)).beta[-1] == BETAS[-2]
    log_z[1:] = np.nan
    with pytest.raises(LossyError, match="two are needed"):
        by_image(BETAS, log_z, log_z, np.zeros(60))


def test_betas_that_are_too_far_apart_are_refused() -> None:
    """Just near enough, the rate in between is that of the closed form; further apart a cubic would be nats off."""
    images = A.draw(10, np.random.default_rng(1))

    def at(betas: Floats) -> ByImage:
        values = A.log_z(images**2, betas), A.distortion(images**2, betas)
        return by_image(betas, *values, np.zeros(len(betas)))

    with pytest.raises(LossyError, match=r"a factor of .* apart: for a rate in between, 3.5 at most"):
        at(np.geomspace(BETAS[0], BETAS[-1], 5))
    near, wide = (
        at(BETAS),
        at(BETAS[0] * 3.4 ** np.arange(1 + int(np.log(BETAS[-1] / BETAS[0]) / np.log(3.4)))),
    )
    for distortion in np.geomspace(*wide.range(), 9)[1:-1]:
        rates = [rate_at(curve, float(distortion)).rate for curve in (wide, near)]
        assert rates[0] == pytest.approx(rates[1], abs=0.15)

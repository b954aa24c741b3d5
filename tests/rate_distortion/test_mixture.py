"""A mixture prior by parts: against sums over a grid, closed forms and torch.distributions; what a mixture costs."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import MultivariateNormal

from lossy_mlflow.rate_distortion import (
    Curve,
    Distortion,
    Quadratic,
    closed_form,
    curve,
    mixed,
    mixed_exact,
    stretched,
    tune,
)
from lossy_mlflow.rate_distortion.mixture import Stretched
from tests.rate_distortion.problems import (
    assert_unbiased,
    by_quadrature,
    linear,
    quadratic,
    seeded,
    small_net,
    through_a_network,
)

MIXTURES = [(0.2, 3.0), (0.9, 10.0), (0.5, 0.3)]


def by_parts(distortion: Distortion, betas: list[float], weight: float, std: float, **options: int) -> Curve:
    """(1 - weight) N(0, I) + weight N(0, std^2 I), as an evaluation has it."""
    curves = []
    for part, width in enumerate((1.0, std)):
        of_part = stretched(distortion, width)
        tuning = tune(of_part, betas, seeded(1 + part), n_steps=options.get("n_steps", 200))
        curves.append(curve(of_part, betas, tuning, seeded(11 + part), n_chains=options.get("n_chains", 16)))
    return mixed(curves, (1 - weight, weight))


def assert_is_of(stretch: Distortion, distortion: Distortion, std: float) -> None:
    """d, its gradient and its curvature are those of the distortion at std u, by autograd's chain rule."""
    u = torch.randn(
        (distortion.n_data, 5, distortion.z_size), generator=seeded(3), dtype=torch.float64
    ).requires_grad_()
    z = std * u
    at_z, by_z = distortion(z.detach())
    d, gradient = stretch(u.detach())
    torch.testing.assert_close(d, at_z)
    torch.testing.assert_close(gradient, torch.autograd.grad(z, u, by_z)[0])
    torch.testing.assert_close(stretch.curvature(u.detach()), std**2 * distortion.curvature(z.detach()))


@settings(deadline=None, max_examples=30)
@given(st.floats(0.05, 30))
def test_what_is_stretched_is_d_of_the_stretched_z(std):
    bent = through_a_network(small_net(3, 8), torch.zeros(2, 8, dtype=torch.float64), 3)
    assert_is_of(stretched(bent, std), bent, std)
    straight = quadratic(3, 8, 2)
    made = stretched(straight, std)
    assert isinstance(made, Quadratic)
    assert_is_of(made, straight, std)


def test_each_datum_may_have_a_stretch_of_its_own():
    straight = quadratic(3, 8, 2)
    made = Stretched(straight, torch.tensor([1.0, 5.0], dtype=torch.float64))
    u = torch.randn((2, 4, 3), generator=seeded(1), dtype=torch.float64)
    for datum, std in enumerate((1.0, 5.0)):
        torch.testing.assert_close(made(u)[0][datum], straight(std * u)[0][datum])
        torch.testing.assert_close(made(u)[1][datum], std * straight(std * u)[1][datum])


def log_z_of_gaussians(
    matrix: Tensor, bias: Tensor, image: Tensor, beta: float, mixture: list[tuple[float, Tensor]]
) -> Tensor:
    """By torch.distributions: `mixture` has (share, the sd of each dimension of z)."""
    n = len(bias)
    parts = [
        MultivariateNormal(
            bias,
            matrix * std.square() @ matrix.t() + torch.eye(n, dtype=torch.float64) / (2 * beta),
        ).log_prob(image)
        + math.log(share)
        for share, std in mixture
    ]
    return torch.logsumexp(torch.stack(parts), 0) + 0.5 * n * math.log(math.pi / beta)


def of_vectors(weight: float, bad_std: float, size: int) -> list[tuple[float, Tensor]]:
    ones = torch.ones(size, dtype=torch.float64)
    return [(1 - weight, ones), (weight, bad_std * ones)]


@pytest.mark.parametrize(("weight", "bad_std"), MIXTURES)
def test_the_exact_mixture_is_that_of_torch(weight, bad_std):
    beta, straight = 20.0, quadratic(3, 12, 1)
    matrix, bias = linear(3, 12)
    image = _image_of(straight, matrix, bias)
    parts = [stretched(straight, std) for std in (1.0, bad_std)]
    exact = mixed_exact([closed_form(part, beta) for part in parts], (1 - weight, weight))
    expected = log_z_of_gaussians(matrix, bias, image, beta, of_vectors(weight, bad_std, 3))
    torch.testing.assert_close(exact.log_z[0], expected)
    torch.testing.assert_close(exact.rate, -exact.log_z - beta * exact.distortion)


def _image_of(straight: Quadratic, matrix: Tensor, bias: Tensor) -> Tensor:
    """The image of a Quadratic's one datum: what it keeps of it, and a part across W's columns of the length that is left."""
    within = matrix @ torch.linalg.solve(straight.gram, straight.pull[0])
    across = torch.linalg.qr(matrix, mode="complete")[0][:, -1]
    rest = (straight.least[0] - within.square().sum()).clamp(min=0).sqrt()
    return bias + within + rest * across


@pytest.mark.parametrize(("weight", "bad_std"), MIXTURES)
def test_z_by_parts_is_right_on_average(weight, bad_std):
    beta = 20.0
    matrix, bias = linear(3, 12)
    images = (bias + torch.randn(12, generator=seeded(4), dtype=torch.float64)).expand(300, -1)
    found = by_parts(Quadratic(matrix, bias, images, torch.ones(())), [beta], weight, bad_std)
    truth = log_z_of_gaussians(matrix, bias, images[0], beta, of_vectors(weight, bad_std, 3))
    assert_unbiased(found.log_z[0], truth.expand(300), at_most=0.1)


def test_rate_and_distortion_are_those_of_a_grid():
    """On a bent decoder of one dimension, where parts share the posterior about equally; errors of a point are told right."""
    weight, bad_std, beta = 0.8, 4.0, 3.0
    one = through_a_network(small_net(1, 6, scale=2.0), 2 * torch.ones(1, 6, dtype=torch.float64), 1)
    many = through_a_network(small_net(1, 6, scale=2.0), 2 * torch.ones(200, 6, dtype=torch.float64), 1)
    parts = [by_quadrature(stretched(one, std), beta, points=4001) for std in (1.0, bad_std)]
    log_z = torch.stack([part.log_z for part in parts]) + torch.tensor([1 - weight, weight]).log().unsqueeze(
        1
    )
    share = torch.softmax(log_z, 0)
    assert float(share.min()) > 0.05
    truth = float((share * torch.stack([part.distortion for part in parts])).sum())
    found = by_parts(many, [beta], weight, bad_std)
    for name, exact in (
        ("distortion", truth),
        ("log_z", float(torch.logsumexp(log_z, 0))),
        ("rate", -float(torch.logsumexp(log_z, 0)) - beta * truth),
    ):
        off = getattr(found, name)[0] - exact
        told = float(getattr(found, f"{name}_se")[0].square().mean().sqrt())
        assert abs(float(off.mean())) < 4 * told / math.sqrt(200) + 0.03 * told, name
        assert 0.6 < float(off.std()) / told < 1.6, name


@pytest.mark.parametrize("weight", [0.01, 0.5, 0.99])
def test_a_mixture_adds_at_most_minus_log_one_minus_w(weight):
    """p >= (1 - w) N(0, I), so -log Z rises by at most -log(1 - w): of the very same chains, without any noise."""
    bent = through_a_network(small_net(8, 30), torch.rand(6, 30, generator=seeded(5)).double(), 8)
    betas = [1.0, 30.0, 3000.0]
    tuning = tune(bent, betas, seeded(1), n_steps=200)
    alone = curve(bent, betas, tuning, seeded(11))
    found = by_parts(bent, betas, weight, 10.0)
    rise = alone.log_z - found.log_z
    assert (rise < -math.log(1 - weight) + 1e-9).all()
    # Nor is it free: a share of the vectors is spent far away.
    assert float(rise[-1].mean()) > 0.5 * -math.log(1 - weight)
    assert found.doubted_from() == alone.doubted_from()


def test_chains_count_together():
    """Of parts with the same share of Z, twice as many; of one that has none, its own. A lone best chain is told as such."""
    same = curve_of_one(ess=5.0, lead=0.1)
    both = mixed([same, same], (0.5, 0.5))
    assert float(both.ess) == pytest.approx(10.0)
    assert float(both.lead) < 0.1
    lost = curve_of_one(log_z=-1e4, ess=1.0, lead=50.0)
    alone = mixed([same, lost], (0.5, 0.5))
    assert float(alone.ess) == pytest.approx(5.0)
    assert float(alone.lead) == pytest.approx(0.1)
    lonely = mixed(
        [curve_of_one(log_z=-1e4, ess=5.0, lead=0.1), curve_of_one(ess=1.0, lead=50.0)], (0.5, 0.5)
    )
    assert float(lonely.lead) == pytest.approx(50.0)


def curve_of_one(*, log_z: float = -3.0, ess: float, lead: float) -> Curve:
    def number(value: float) -> Tensor:
        return torch.tensor([[value]], dtype=torch.float64)

    return Curve(
        beta=torch.ones(1, dtype=torch.float64),
        rate=number(-log_z - 2),
        rate_se=number(0.1),
        distortion=number(2.0),
        distortion_se=number(0.1),
        log_z=number(log_z),
        log_z_se=number(0.1),
        ess=number(ess),
        lead=number(lead),
        acceptance=number(0.9),
        n_non_finite=torch.zeros(1, dtype=torch.int64),
    )

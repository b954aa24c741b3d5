"""What nobody plans for: decoders that give NaN, one of everything, betas of any size; and going on from the middle."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lossy_mlflow.errors import LossyError, UsageError
from lossy_mlflow.models.vae import GaussianDecoder
from lossy_mlflow.rate_distortion import (
    Quadratic,
    closed_form,
    curve,
    gap,
    negative_log_likelihood,
    simulate,
    squared_error,
    tune,
)
from lossy_mlflow.rate_distortion.annealing import anneal, start
from lossy_mlflow.rate_distortion.curves import curve_of
from tests.rate_distortion.problems import (
    assert_unbiased,
    by_quadrature,
    quadratic,
    seeded,
    small_net,
    through_a_network,
)

BETAS = [1.0, 20.0]


class Holed(nn.Module):
    """Gives NaN where z > edge."""

    def __init__(self, edge):
        super().__init__()
        self.edge = edge
        self.x_logvar = torch.zeros((), dtype=torch.float64)

    def decode(self, z):
        return torch.where(z > self.edge, math.nan, torch.cat([z, 0.5 * z], 1))


class Capped(Holed):
    """The same function where it is one; 1e8 elsewhere, which is as good as never."""

    def decode(self, z):
        return torch.where(z > self.edge, 1e8, torch.cat([z, 0.5 * z], 1))


def images(n, value=0.6):
    return torch.full((n, 2), value, dtype=torch.float64)


def measured(distortion, betas=BETAS, *, n_steps=150, n_chains=16):
    tuning = tune(distortion, betas, seeded(1), n_steps=n_steps)
    return curve(distortion, betas, tuning, seeded(2), n_chains=n_chains)


def all_finite(found):
    return all(torch.isfinite(getattr(found, name)).all() for name in ("log_z", "rate", "distortion", "ess"))


def test_nan_everywhere_is_an_error_that_says_so():
    with pytest.raises(LossyError, match="isn't finite at draws of the prior, for 3 of 3 images"):
        tune(squared_error(Holed(-100.0), images(3), 1), BETAS, seeded(1))


def test_one_image_with_nan_is_an_error_that_says_so():
    broken = images(3)
    broken[1, 0] = math.nan
    with pytest.raises(LossyError, match="for 1 of 3 images"):
        tune(squared_error(Holed(100.0), broken, 1), BETAS, seeded(1))


def assert_right_around_a_hole(edge):
    distortion = squared_error(Holed(edge), images(120), 1)
    found = measured(distortion)
    assert all_finite(found)
    for index, beta in enumerate(BETAS):
        truth = by_quadrature(squared_error(Capped(edge), images(1), 1), beta, points=20_001)
        assert_unbiased(found.log_z[index], truth.log_z, at_most=0.05)
    return found


@pytest.mark.parametrize("edge", [2.2, 0.7])
def test_where_some_z_give_nan_the_rest_is_measured_and_it_is_told(edge):
    """1.4 % of the prior's draws, or a quarter: no code is there, so Z is the integral over the rest."""
    found = assert_right_around_a_hole(edge)
    assert int(found.n_non_finite.sum()) > 0
    assert any("were not finite and were rejected" in doubt for doubt in found.doubts())


def test_one_image_has_error_bars_from_its_chains():
    distortion = quadratic(3, 12, 1)
    found = measured(distortion)
    for name in ("log_z", "rate", "distortion"):
        assert torch.equal(found.standard_error(name), getattr(found, f"{name}_se")[:, 0])
        assert (found.standard_error(name) > 0).all()
    exact = closed_form(distortion, BETAS[0])
    assert abs(float(found.log_z[0] - exact.log_z)) < 5 * float(found.standard_error("log_z")[0])


def test_a_gap_of_one_image_has_no_error_bar():
    simulated, z = simulate(quadratic(3, 12, 1), 1, 20.0, seeded(1))
    assert gap(simulated, z, tune(simulated, [20.0], seeded(2)), 4, seeded(3)).se is None


def test_one_chain_is_an_estimate_without_error_bars_that_is_doubted():
    found = measured(quadratic(3, 12, 5), n_chains=1)
    assert all_finite(found)
    for name in ("log_z_se", "rate_se", "distortion_se"):
        assert torch.isnan(getattr(found, name)).all()
    assert torch.isfinite(found.standard_error("rate")).all()  # over five images
    assert any("fewer than 2 effective chains" in doubt for doubt in found.doubts())


@pytest.mark.parametrize("beta", [1e-300, 1e-12, 1e-3])
def test_a_tiny_beta_says_nothing_and_costs_nothing(beta):
    distortion = quadratic(3, 12, 5)
    found = measured(distortion, [beta], n_steps=20)
    exact = closed_form(distortion, beta)
    assert all_finite(found)
    assert float(found.rate.abs().max()) < 0.01
    torch.testing.assert_close(found.log_z[0], exact.log_z, rtol=0, atol=0.01)


@pytest.mark.parametrize("beta", [1e7, 1e10])
def test_a_huge_beta_is_right_or_doubted(beta):
    distortion = quadratic(3, 12, 40)
    found = measured(distortion, [1.0, beta], n_steps=400)
    assert all_finite(found)
    off = found.log_z[1] - closed_form(distortion, beta).log_z
    assert abs(float(off.mean())) < 1 or found.doubts()


def test_z_of_one_and_of_two_hundred():
    for z_size, n_pixels, n_steps in [(1, 5, 150), (200, 300, 300)]:
        distortion = quadratic(z_size, n_pixels, 2)
        found = measured(distortion, n_steps=n_steps)
        for index, beta in enumerate(BETAS):
            off = found.log_z[index] - closed_form(distortion, beta).log_z
            assert float(off.abs().max()) < 0.5 + 5 * float(found.log_z_se[index].max())


class NoParameters(nn.Module):
    def decode(self, z):
        return torch.cat([z.sin(), z.cos()], 1), 0.3


def test_a_decoder_without_parameters():
    distortion = negative_log_likelihood(NoParameters(), images(100), 1)
    found = measured(distortion)
    one = negative_log_likelihood(NoParameters(), images(1), 1)
    assert_unbiased(found.log_z[0], by_quadrature(one, 1.0).log_z, at_most=0.05)


class OwnVariances(nn.Module):
    """A variance of each pixel."""

    def __init__(self, net, logvar):
        super().__init__()
        self.net, self.x_logvar = net, logvar

    def decode(self, z):
        return self.net(z)


def test_variances_by_pixel():
    """Against torch.distributions, gradient and curvature by autograd."""
    net, logvar = small_net(2, 5), torch.linspace(-3, 1, 5, dtype=torch.float64)
    x = torch.randn(3, 5, generator=seeded(1), dtype=torch.float64)
    distortion = negative_log_likelihood(OwnVariances(net, logvar), x, 2)
    z = torch.randn(3, 4, 2, generator=seeded(2), dtype=torch.float64, requires_grad=True)
    expected = -torch.distributions.Normal(net(z), (0.5 * logvar).exp()).log_prob(x[:, None]).sum(-1)
    d, gradient = distortion(z.detach())
    torch.testing.assert_close(d, expected.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), z)[0])
    jacobian = torch.autograd.functional.jacobian(lambda z: net(z), z.detach()[0, 0])
    gram = jacobian.t() @ torch.diag((-logvar).exp()) @ jacobian
    torch.testing.assert_close(distortion.curvature(z.detach()[:, :1])[0], gram)


def test_variances_of_another_number_than_pixels_are_refused():
    decoder = OwnVariances(small_net(2, 5), torch.zeros(4))
    with pytest.raises(UsageError, match="x_logvar has the shape"):
        negative_log_likelihood(decoder, torch.zeros(1, 5), 2)


def test_a_linear_decoder_is_quadratic_and_the_same_as_through_its_network():
    decoder = GaussianDecoder(nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 6)), x_var=0.1, learned=True)
    decoder = decoder.double()
    x = torch.randn(4, 6, generator=seeded(1), dtype=torch.float64)
    by_matrices = negative_log_likelihood(decoder, x, 3)
    assert isinstance(by_matrices, Quadratic)
    z = torch.randn(4, 7, 3, generator=seeded(2), dtype=torch.float64)
    d, gradient = by_matrices(z)
    logvar = decoder.x_logvar.detach()
    log_p = -torch.distributions.Normal(decoder.net(z), (0.5 * logvar).exp()).log_prob(x[:, None]).sum(-1)
    torch.testing.assert_close(d, log_p.detach())
    through, plain = through_a_network(decoder.net, x, 3), squared_error(decoder, x, 3)
    assert isinstance(plain, Quadratic)
    for ours, theirs in zip(plain(z), through(z), strict=True):
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(plain.curvature(z), through.curvature(z))
    torch.testing.assert_close(gradient, plain(z)[1] * (0.5 / logvar.exp()))
    at, other = plain.simulated(z[:, 0], 5.0, seeded(3)), through.simulated(z[:, 0], 5.0, seeded(3))
    torch.testing.assert_close(at(z)[0], other(z)[0])


@pytest.mark.parametrize("taken", [0, 1])
def test_taken_in_the_middle_it_goes_on_with_the_same_numbers(taken):
    distortion = through_a_network(small_net(3, 8), torch.zeros(4, 8, dtype=torch.float64), 3)
    betas = [0.5, 5.0, 50.0]
    tuning = tune(distortion, betas, seeded(1), n_steps=60)
    points, kept = [], []
    generator = seeded(2)

    def keep(annealing, point):
        points.append(point)
        kept.append((annealing, generator.get_state()))

    anneal(start(distortion, 5, generator), distortion, tuning, betas, generator, on_point=keep)
    annealing, state = kept[taken]
    rest = []
    again = torch.Generator()
    again.set_state(state)
    anneal(annealing, distortion, tuning, betas, again, on_point=lambda _, point: rest.append(point))
    whole, joined = curve_of(points), curve_of([*points[: taken + 1], *rest])
    for name in whole.__slots__:
        assert torch.equal(getattr(whole, name), getattr(joined, name)), name

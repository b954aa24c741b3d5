"""The same mathematics on a GPU: what the CPU gives, and the truth where it is known. Without a GPU, nothing here runs."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from lossy_mlflow.models.device import convolutions
from lossy_mlflow.rate_distortion import (
    Curve,
    Distortion,
    Quadratic,
    closed_form,
    curve,
    gap,
    simulate,
    stretched,
    tune,
)
from lossy_mlflow.rate_distortion.distortion import SquaredError
from lossy_mlflow.rate_distortion.network import ByAutograd, fully_connected_layers, network_of
from lossy_mlflow.rate_distortion.variational import VariationalPoint, fresh_encoder, variational_curve
from tests.rate_distortion.problems import SIGMAS, assert_bounds, assert_mean, linear, small_net

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

GPU = torch.device("cuda")
BETAS = [0.1, 3.0, 100.0]


def on_gpu(seed: int) -> torch.Generator:
    return torch.Generator(GPU).manual_seed(seed)


def _images(n: int, n_pixels: int) -> Tensor:
    return torch.rand(n, n_pixels, generator=torch.Generator().manual_seed(5))


def _through(net: nn.Module, images: Tensor, z_size: int, device: str) -> SquaredError:
    net = net.float().to(device)
    like = next(net.parameters())
    return SquaredError(network_of(net, z_size, like), images.to(device), torch.ones(()))


def _deep(z_size: int, n_pixels: int) -> nn.Sequential:
    net = nn.Sequential(
        *(nn.Linear(z_size, 64), nn.Tanh(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, n_pixels)),
        nn.Sigmoid(),
    )
    with torch.no_grad():
        for parameter in net.parameters():
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
            parameter.copy_(noise / math.sqrt(parameter.shape[-1]))
    return net


def _curve(distortion: Distortion, seed: int, device: str = "cuda") -> Curve:
    first, second = (torch.Generator(device).manual_seed(seed + more) for more in (0, 1000))
    tuning = tune(distortion, BETAS, first, n_steps=300)
    return curve(distortion, BETAS, tuning, second, n_chains=16)


@pytest.mark.parametrize("by", ["hand", "autograd"])
def test_d_its_gradient_and_curvature_are_those_of_the_cpu(by):
    net, images, z = _deep(7, 50), _images(5, 50), torch.randn(5, 4, 7, dtype=torch.float64)
    found = []
    for device in ("cpu", "cuda"):
        here = net.to(device)
        if by == "hand":
            distortion = _through(here, images, 7, device)
        else:
            network = ByAutograd(here, 7, torch.float32, torch.device(device))
            distortion = SquaredError(network, images.to(device), torch.ones(()))
        at = z.to(device)
        d, gradient = distortion(at)
        parts = (d, gradient, distortion.curvature(at))
        assert all(part.device.type == device for part in parts)
        found.append([part.cpu() for part in parts])
    assert fully_connected_layers(net) is not None
    # float32 products: 24 bits, summed up over 64 units. TF32, which has 11, would be 1e-3 off.
    for here, there in zip(*found, strict=True):
        torch.testing.assert_close(here, there, rtol=2e-5, atol=2e-5)


def test_convolutions_have_the_precision_of_float32():
    """By default cudnn takes them in TF32, which is as far from the float64 truth as the other assertion says."""
    net = nn.Sequential(nn.Unflatten(1, (8, 2, 2)), nn.ConvTranspose2d(8, 16, 4), nn.Tanh(), nn.Flatten())
    z = torch.randn(64, 32, generator=torch.Generator().manual_seed(3))
    truth = net.double()(z.double()).detach()
    net = net.float().to(GPU)
    network = ByAutograd(net, 32, torch.float32, GPU)

    def error() -> float:
        values, _ = network.linearise(z.to(GPU))
        return float((values.cpu().double() - truth).abs().max())

    with convolutions(exact=True):
        assert error() < 2e-6
        assert error() == error()
    with convolutions(exact=False):
        assert error() > 2e-5


def test_a_linear_decoder_has_its_closed_form():
    matrix, bias = linear(6, 20)
    image = matrix @ torch.randn(6, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + bias
    images = (image + 0.1).expand(400, -1)
    quadratic = Quadratic(matrix.to(GPU), bias.to(GPU), images.to(GPU), torch.ones(()))
    found = _curve(quadratic, 1)
    for index, beta in enumerate(BETAS):
        exact = closed_form(quadratic, beta)
        for name in ("log_z", "rate"):
            assert_mean(getattr(found, name)[index], getattr(exact, name).cpu(), bias=0.05)
        assert_mean(found.distortion[index], exact.distortion.cpu(), bias=0.002 * float(exact.distortion[0]))
    simulated, z = simulate(quadratic, 400, 100.0, on_gpu(2))
    tuning = tune(simulated, [100.0], on_gpu(3), n_steps=200)
    assert_bounds(gap(simulated, z, tuning, 8, on_gpu(4)), closed_form(simulated, 100.0).log_z)


@pytest.mark.parametrize("std", [1.0, 3.0])
def test_a_bent_decoder_has_the_curve_of_the_cpu(std):
    """Each with random numbers of its own, which differ between kinds of device."""
    net, images = small_net(4, 12, scale=2.0), _images(1, 12).expand(200, -1)
    here = _curve(stretched(_through(net, images, 4, "cpu"), std), 7, "cpu")
    there = _curve(stretched(_through(net, images, 4, "cuda"), std), 7)
    for name in ("log_z", "rate", "distortion"):
        off = (here.mean(name) - there.mean(name)).abs()
        noise = torch.hypot(here.standard_error(name), there.standard_error(name))
        assert (off < SIGMAS * noise + 1e-3).all(), (name, off, noise)
    assert there.log_z.device.type == "cpu"


def test_the_variational_curve_lies_above_the_one_by_chains():
    net, images = small_net(3, 10), _images(200, 10)
    points: list[VariationalPoint] = []
    held_out = images[:50].to(GPU)
    variational_curve(
        lambda some: _through(net, some, 3, "cuda"),
        images.to(GPU),
        held_out,
        [1.0, 10.0],
        10,
        on_gpu(1),
        encoder=fresh_encoder(10, 3, on_gpu(2)),
        on_point=points.append,
    )
    distortion = _through(net, held_out, 3, "cuda")
    tuning = tune(distortion, [1.0, 10.0], on_gpu(3), n_steps=200)
    chains = curve(distortion, [1.0, 10.0], tuning, on_gpu(4), n_chains=32)
    for index, point in enumerate(points):
        bound = point.rate + point.beta * point.distortion
        assert bool(torch.isfinite(bound).all())
        assert float(bound.mean()) > -float(chains.mean("log_z")[index])

"""Decoders as functions of z: what is written out by hand, against autograd."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from lossy_mlflow.hparams import Hparam
from lossy_mlflow.models import build_model, decoder_of
from lossy_mlflow.models.blur import blur, blurred, with_variance
from lossy_mlflow.models.fields import ImageShape
from lossy_mlflow.models.vae import GaussianDecoder
from lossy_mlflow.rate_distortion.network import ByAutograd, FullyConnected, network_of
from tests.rate_distortion.problems import seeded

ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU, "sigmoid": nn.Sigmoid, "identity": nn.Identity}
# What a sum over a layer's width rounds to, in units of its values.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def net_of(sizes, activations, dtype, *, bias=True, seed=0):
    layers = []
    for (n_in, n_out), name in zip(pairwise(sizes), activations, strict=False):
        layers += [nn.Linear(n_in, n_out, bias=bias, dtype=dtype), ACTIVATIONS[name]()]
    net = nn.Sequential(*layers)
    with torch.no_grad():
        for index, parameter in enumerate(net.parameters()):
            parameter.normal_(generator=seeded(seed + index)).div_(parameter.shape[-1] ** 0.5)
    return net


def expected(forward, z):
    """(outputs, Jacobian (batch, n, z_size)) by autograd, a row of it at a time."""
    z = z.clone().requires_grad_()
    outputs = forward(z)
    rows = [torch.autograd.grad(column.sum(), z, retain_graph=True)[0] for column in outputs.unbind(1)]
    return outputs.detach(), torch.stack(rows, 1)


def assert_linearises(network, forward, z, tolerance):
    outputs, jacobian = expected(forward, z)
    v = torch.randn(outputs.shape, generator=seeded(9), dtype=outputs.dtype)
    value, pull_back = network.linearise(z)
    torch.testing.assert_close(value, outputs, rtol=tolerance, atol=tolerance)
    pulled = pull_back(v.clone())
    torch.testing.assert_close(
        pulled, torch.einsum("bn,bnz->bz", v, jacobian), rtol=10 * tolerance, atol=10 * tolerance
    )
    torch.testing.assert_close(network.jacobian(z), jacobian, rtol=10 * tolerance, atol=10 * tolerance)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 12), min_size=2, max_size=5),
    names=st.lists(st.sampled_from(sorted(ACTIVATIONS)), min_size=4, max_size=4),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    bias=st.booleans(),
    batch=st.integers(1, 7),
    seed=st.integers(0, 10**6),
)
def test_by_hand_is_by_autograd(sizes, names, dtype, bias, batch, seed):
    net = net_of(sizes, names, dtype, bias=bias, seed=seed)
    network = network_of(net, sizes[0], torch.zeros((), dtype=dtype))
    assert isinstance(network, FullyConnected)
    z = torch.randn(batch, sizes[0], generator=seeded(seed), dtype=dtype)
    assert_linearises(network, net, z, TOLERANCE[dtype])


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_batches_of_several_sizes_share_no_buffer(name):
    """The buffers stay between calls: what one call gave must not change in another, but for the outputs themselves."""
    net = net_of([3, 8, 8, 5], [name] * 3, torch.float64)
    network = network_of(net, 3, torch.zeros((), dtype=torch.float64))
    v = torch.ones(4, 5, dtype=torch.float64)
    z = torch.randn(4, 3, generator=seeded(1), dtype=torch.float64)
    pulled = network.linearise(z)[1](v.clone())
    kept = pulled.clone()
    network.linearise(torch.randn(7, 3, dtype=torch.float64))
    assert torch.equal(pulled, kept)
    assert_linearises(network, net, z + 1, 1e-12)


def test_a_change_of_the_weights_by_training_does_not_change_a_network_that_was_taken():
    net = net_of([2, 4, 3], ["tanh", "identity"], torch.float64)
    network = network_of(net, 2, torch.zeros((), dtype=torch.float64))
    z = torch.ones(1, 2, dtype=torch.float64)
    before = network.linearise(z)[0].clone()
    with torch.no_grad():
        net[0].weight.mul_(2)
    assert torch.equal(network.linearise(z)[0], before)


@pytest.mark.parametrize(
    "layers",
    [
        [nn.Tanh(), nn.Linear(2, 3)],
        [nn.Linear(2, 3), nn.Tanh(), nn.Sigmoid()],
        [nn.Linear(2, 3), nn.LeakyReLU(0.2)],
        [nn.Linear(2, 3), nn.Dropout(0.5)],
        [nn.Sequential(nn.Linear(2, 3))],
    ],
    ids=["starts bent", "twice bent", "leaky", "dropout", "nested"],
)
def test_what_is_not_plain_layers_goes_through_autograd(layers):
    net = nn.Sequential(*layers).double().eval()
    network = network_of(net, 2, torch.zeros((), dtype=torch.float64))
    assert isinstance(network, ByAutograd)
    z = torch.randn(5, 2, generator=seeded(1), dtype=torch.float64)
    assert_linearises(network, net, z, 1e-12)


@pytest.mark.parametrize("dims", [(1, 8, 8), (3, 8, 8)])
def test_convolutions(dims):
    tree = Hparam(
        model_name="dcgan_vae",
        model_train=Hparam(z_size=2, x_var=0.03, x_var_learned=True, n_filters=4),
        dataset=Hparam(input_dims=list(dims), input_vector_length=math.prod(dims)),
    )
    decoder = decoder_of(build_model(tree)).eval().double()
    network = network_of(decoder.net, 2, torch.zeros((), dtype=torch.float64))
    assert isinstance(network, ByAutograd)
    z = torch.randn(3, 2, generator=seeded(1), dtype=torch.float64)
    assert_linearises(network, decoder.net, z, 1e-10)


def blurred_by_torch(images, std):
    offsets = torch.arange(-2.0, 3.0, dtype=images.dtype)
    square = torch.exp(-(offsets[:, None] ** 2 + offsets[None, :] ** 2) / (2 * std**2))
    channels = images.shape[1]
    weight = torch.zeros(channels, channels, 5, 5, dtype=images.dtype)
    for channel in range(channels):
        weight[channel, channel] = square / square.sum()
    return functional.conv2d(functional.pad(images, (2, 2, 2, 2), mode="reflect"), weight)


@pytest.mark.parametrize("std", [0.3, 1.0, 10.0])
@pytest.mark.parametrize("dims", [(1, 8, 8), (3, 8, 8), (1, 3, 5), (2, 28, 28)])
def test_blur_is_reflected_margins_and_a_convolution(dims, std):
    images = torch.rand(4, *dims, generator=seeded(1), dtype=torch.float64)
    torch.testing.assert_close(blur(images, std), blurred_by_torch(images, std))


def test_a_blur_keeps_what_is_even():
    images = torch.full((1, 1, 6, 6), 0.7, dtype=torch.float64)
    torch.testing.assert_close(blur(images, 1.0), images)


class Foreign(nn.Module):
    """A decoder that isn't ours: its layers can't be seen."""

    def __init__(self, net):
        super().__init__()
        self.inner, self.x_logvar = net, torch.tensor(-1.0)

    def decode(self, z):
        return self.inner(z)


@pytest.mark.parametrize("foreign", [False, True])
def test_a_blurred_decoder_is_the_decoder_then_the_blur(foreign):
    shape = ImageShape(1, 6, 5)
    net = net_of([3, 8, 30], ["tanh", "sigmoid"], torch.float64)
    decoder = Foreign(net) if foreign else GaussianDecoder(net, x_var=0.1, learned=True).double()
    z = torch.randn(4, 3, generator=seeded(1), dtype=torch.float64)
    mean, logvar = blurred(decoder, shape, 1.3).decode(z)
    torch.testing.assert_close(mean, blurred_by_torch(net(z).view(4, 1, 6, 5), 1.3).flatten(1))
    assert torch.equal(logvar.detach(), decoder.x_logvar.detach())


@pytest.mark.parametrize("foreign", [False, True])
def test_another_variance_changes_the_variance_alone(foreign):
    net = net_of([3, 8, 30], ["tanh", "sigmoid"], torch.float64)
    decoder = Foreign(net) if foreign else GaussianDecoder(net, x_var=0.1, learned=True).double()
    z = torch.randn(4, 3, generator=seeded(1), dtype=torch.float64)
    mean, logvar = with_variance(decoder, 0.25).decode(z)
    assert torch.equal(mean, net(z))
    assert float(logvar.exp()) == pytest.approx(0.25)

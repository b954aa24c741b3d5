"""d(x, z): how far what a decoder makes of z is from x, for a batch of data with some chains each.

f_beta(z) = p(z) exp(-beta d(x, z)) is the distribution that has rate and distortion at the slope -beta of the curve
(Huang et al. 2020, section 4). All kinds here are weighted squared errors of a network's outputs, plus a constant: squared error
of pixels, negative log likelihood of a Gaussian, squared error of features.
"""

from __future__ import annotations

import math
from copy import copy
from typing import Protocol, Self

import torch
from torch import Tensor, nn

from lossy_mlflow.errors import UsageError
from lossy_mlflow.models import FeatureMap, decode, tensor_of
from lossy_mlflow.models.vae import GaussianDecoder
from lossy_mlflow.rate_distortion.network import FullyConnected, Network, network_of

_JACOBIAN_NUMBERS = 2**24  # of one Jacobian, and of one layer's tangents: 64 MB each in float32


class Distortion(Protocol):
    """d for `n_data` images. z is (n_data, n_chains, z_size), float64, on `device`; so is all that is returned."""

    n_data: int
    z_size: int
    n_outputs: int
    device: torch.device

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """(d (n_data, n_chains), its gradient (n_data, n_chains, z_size))."""
        ...

    def curvature(self, z: Tensor) -> Tensor:
        """2 J^T W J, (n_data, z_size, z_size), the mean over the chains: what remains of d's Hessian where it fits well."""
        ...

    def simulated(self, z: Tensor, beta: float, generator: torch.Generator) -> Self:
        """The same for data drawn from what f_beta means as a model, p(x|z) proportional to exp(-beta d(x, z)).

        z is (n, z_size): a datum each. For BDMC (Grosse, Ghahramani and Adams 2015).
        """
        ...


class SquaredError:
    """sum_i w_i (t_i - f_i(z))^2 + constant, with targets t (n_data, n), weights w () or (n,), through a network f."""

    def __init__(self, network: Network, targets: Tensor, weight: Tensor, constant: float = 0.0) -> None:
        self._network = network
        self._targets = targets.detach().to(network.device, network.dtype)
        self._weight = weight.to(network.device, network.dtype)
        self._constant = constant
        self.n_data, self.n_outputs = targets.shape
        self.z_size, self.device = network.z_size, network.device

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
        shape = z.shape
        outputs, pull_back = self._network.linearise(z.reshape(-1, self.z_size).to(self._network.dtype))
        residual = outputs.view(shape[0], shape[1], -1) - self._targets.unsqueeze(1)
        # One weight for all is applied to what has been summed up, instead of to each output.
        is_one = self._weight.ndim == 0
        weighted, of_all = (residual, self._weight) if is_one else (residual * self._weight, 1.0)
        # Products in the network's precision, their sum in float64: beta is up to 1e5.
        value = (weighted * residual).sum(-1, dtype=torch.float64)
        gradient = pull_back(weighted.view(-1, self.n_outputs))
        return value * of_all + self._constant, gradient.double().view(shape).mul_(2 * of_all)

    def curvature(self, z: Tensor) -> Tensor:
        n_chains = z.shape[1]
        flat = z.reshape(-1, self.z_size).to(self._network.dtype)
        n_points = max(1, _JACOBIAN_NUMBERS // (self.n_outputs * self.z_size))
        grams = []
        for points in torch.split(flat, n_points):
            jacobian = self._network.jacobian(points)
            weighted = jacobian * self._weight.reshape(-1, 1)
            grams.append(2 * (jacobian.transpose(1, 2) @ weighted).double())
        return torch.cat(grams).view(self.n_data, n_chains, self.z_size, self.z_size).mean(1)

    def simulated(self, z: Tensor, beta: float, generator: torch.Generator) -> SquaredError:
        means, _ = self._network.linearise(z.to(self._network.dtype))
        noise = torch.randn(means.shape, generator=generator, device=self.device, dtype=torch.float64)
        targets = means.double() + noise / torch.sqrt(2 * beta * self._weight.double())
        return SquaredError(self._network, targets, self._weight, self._constant)


class Quadratic:
    """The same for a linear network, f(z) = W z + b: d = c - 2 h z + z G z, by matrices of z_size by z_size, in float64."""

    def __init__(
        self, matrix: Tensor, bias: Tensor, targets: Tensor, weight: Tensor, constant: float = 0.0
    ) -> None:
        self._matrix, self._bias = matrix.double(), bias.double()
        self._weight, self.constant = weight.double().to(matrix.device), constant
        residual = targets.detach().to(matrix.device).double() - self._bias
        weighted = residual * self._weight
        self.n_data, self.n_outputs = residual.shape
        self.z_size, self.device = matrix.shape[1], matrix.device
        self.least = (weighted * residual).sum(1)
        self.pull = weighted @ self._matrix
        self.gram = self._matrix.t() @ (self._matrix * self._weight.reshape(-1, 1))
        # What each call would make anew of them.
        self._hessian, self._slope = 2 * self.gram, 2 * self.pull.unsqueeze(1)
        self._floor = (self.least + constant).unsqueeze(1)

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
        gradient = (z @ self._hessian).sub_(self._slope)
        half = torch.linalg.vecdot(gradient - self._slope, z)
        return torch.add(self._floor, half, alpha=0.5), gradient

    def curvature(self, z: Tensor) -> Tensor:  # noqa: ARG002 - it is the same everywhere
        return self._hessian.expand(self.n_data, -1, -1)

    def stretched(self, std: float) -> Quadratic:
        """The same as a function of u = z / std."""
        made = copy(self)
        made._matrix, made.pull, made.gram = std * self._matrix, std * self.pull, std**2 * self.gram
        made._hessian, made._slope = std**2 * self._hessian, std * self._slope
        return made

    def simulated(self, z: Tensor, beta: float, generator: torch.Generator) -> Quadratic:
        means = z @ self._matrix.t() + self._bias
        noise = torch.randn(means.shape, generator=generator, device=self.device, dtype=torch.float64)
        targets = means + noise / torch.sqrt(2 * beta * self._weight)
        return Quadratic(self._matrix, self._bias, targets, self._weight, self.constant)


def squared_error(decoder: nn.Module, images: Tensor, z_size: int) -> Distortion:
    """||x - f(z)||^2, summed over pixels, for `images` (n_data, input_vector_length). f: the decoder's mean."""
    network, _ = _mean_of(decoder, z_size)
    return _made(network, images, torch.ones(()))


def negative_log_likelihood(decoder: nn.Module, images: Tensor, z_size: int) -> Distortion:
    """-log p(x|z) in nats, with its constants: f_1 is then the joint distribution, and Z_1 = p(x)."""
    network, logvar = _mean_of(decoder, z_size)
    logvar = logvar.detach().double()
    n = images.shape[1]
    constant = 0.5 * (n * math.log(2 * math.pi) + logvar.expand(n).sum().item())
    return _made(network, images, 0.5 * torch.exp(-logvar), constant)


def feature_error(decoder: nn.Module, feature_map: nn.Module, images: Tensor, z_size: int) -> Distortion:
    """||phi(x) - phi(f(z))||^2 between features (Huang et al. 2020, section 6). Both modules are on one device."""
    if not isinstance(feature_map, FeatureMap):
        raise UsageError(
            f"{type(feature_map).__name__} has no features(x).", "Give it a method features(x) -> (batch, n)."
        )
    features = feature_map.features
    like = tensor_of(decoder)
    network = network_of(lambda z: features(decode(decoder, z)[0]), z_size, like)
    with torch.no_grad():
        targets = features(images.to(like.device, like.dtype))
    return _made(network, targets, torch.ones(()))


def _mean_of(decoder: nn.Module, z_size: int) -> tuple[Network, Tensor]:
    """The decoder's mean as a network, and its logvar. A decoder of ours shows its layers by an attribute `net`."""
    like = tensor_of(decoder)
    with torch.no_grad():
        mean, logvar = decode(decoder, torch.zeros(1, z_size, dtype=like.dtype, device=like.device))
    if logvar.numel() not in (1, mean.shape[1]):
        raise UsageError(
            f"x_logvar has the shape {list(logvar.shape)}; it must be a scalar or one of each pixel."
        )
    layers = getattr(decoder, "net", None) if isinstance(decoder, GaussianDecoder) else None
    forward = layers if layers is not None else (lambda z: decode(decoder, z)[0])
    return network_of(forward, z_size, like), logvar.reshape(-1) if logvar.numel() > 1 else logvar.reshape(())


def _made(network: Network, targets: Tensor, weight: Tensor, constant: float = 0.0) -> Distortion:
    if isinstance(network, FullyConnected) and all(
        layer.activation == "identity" for layer in network.layers
    ):
        matrix, bias = network.layers[0].weight.double(), network.layers[0].bias.double()
        for layer in network.layers[1:]:
            matrix, bias = layer.weight.double() @ matrix, layer.weight.double() @ bias + layer.bias.double()
        return Quadratic(matrix, bias, targets, weight, constant)
    return SquaredError(network, targets, weight, constant)

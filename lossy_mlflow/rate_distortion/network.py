"""A decoder's mean as a function of z: its value, products with its Jacobian, and that Jacobian's Gram matrix.

A fully connected network has these written out, which costs little more than its matrix products; others go through autograd.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

PullBack = Callable[[Tensor], Tensor]


class Network(Protocol):
    """z (batch, z_size) to outputs (batch, n), both of `dtype`, on `device`."""

    z_size: int
    dtype: torch.dtype
    device: torch.device

    def linearise(self, z: Tensor) -> tuple[Tensor, PullBack]:
        """(outputs, v -> v J), where J (n, z_size) is each row's Jacobian and v (batch, n), which may be overwritten.

        Both are good until the next call.
        """
        ...

    def jacobian(self, z: Tensor) -> Tensor:
        """(batch, n, z_size)."""
        ...


_ACTIVATIONS: dict[type[object], str] = {
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
    nn.ReLU: "relu",
    nn.Identity: "identity",
}


def network_of(forward: nn.Module | Callable[[Tensor], Tensor], z_size: int, like: Tensor) -> Network:
    """`forward` as a Network, by hand where it is layers of `nn.Linear` with tanh, sigmoid or ReLU between them.

    `like`: a tensor of the dtype and on the device that it computes in.
    """
    layers = fully_connected_layers(forward)
    if layers is not None:
        return FullyConnected(layers)
    return ByAutograd(forward, z_size, like.dtype, like.device)


@dataclass(frozen=True, slots=True)
class Layer:
    """x -> activation(x weight^T + bias)."""

    weight: Tensor
    bias: Tensor
    activation: str


def fully_connected_layers(forward: object) -> list[Layer] | None:
    """The layers of `forward`; None where it is anything else."""
    modules: Sequence[object] = [forward]
    if type(forward) is nn.Sequential:
        modules = list(forward)
    layers: list[Layer] = []
    for module in modules:
        if type(module) is nn.Linear:
            weight = module.weight.detach()
            bias = module.bias.detach() if module.bias is not None else weight.new_zeros(len(weight))
            layers.append(Layer(weight, bias, "identity"))
        elif type(module) in _ACTIVATIONS and layers and layers[-1].activation == "identity":
            layers[-1] = Layer(layers[-1].weight, layers[-1].bias, _ACTIVATIONS[type(module)])
        else:
            return None
    return layers or None


class FullyConnected:
    """Forward and backward by hand, into buffers that stay."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        # Transposed in memory: the forward product, which comes first, then reads its rows in order.
        self.layers = [
            Layer(layer.weight.t().contiguous().t(), layer.bias, layer.activation) for layer in layers
        ]
        first = layers[0].weight
        self.z_size, self.dtype, self.device = first.shape[1], first.dtype, first.device
        self._values: list[Tensor] = []

    def linearise(self, z: Tensor) -> tuple[Tensor, PullBack]:
        if not self._values or len(self._values[0]) != len(z):
            self._values = [self._empty(len(z), len(layer.bias)) for layer in self.layers]
            self._inner = [self._empty(len(z), len(layer.bias)) for layer in self.layers[:-1]]
        values = z
        for layer, out in zip(self.layers, self._values, strict=True):
            torch.addmm(layer.bias, values, layer.weight.t(), out=out)
            values = _activate(out, layer.activation)
        return values, self._pull_back

    def _pull_back(self, v: Tensor) -> Tensor:
        # What is returned is a tensor of its own; between the layers the buffers serve.
        into = [self._empty(len(v), self.z_size), *self._inner]
        for layer, value, out in zip(
            reversed(self.layers), reversed(self._values), reversed(into), strict=True
        ):
            _chain(v, value, layer.activation)
            v = torch.mm(v, layer.weight, out=out)
        return v

    def jacobian(self, z: Tensor) -> Tensor:
        batch = len(z)
        self.linearise(z)
        # (batch, z_size, width): the derivative by each dimension of z, carried from layer to layer.
        tangents = self.layers[0].weight.t().expand(batch, -1, -1).clone()
        _chain(tangents, self._values[0].unsqueeze(1).expand_as(tangents), self.layers[0].activation)
        for layer, value in zip(self.layers[1:], self._values[1:], strict=True):
            tangents = (tangents.flatten(0, 1) @ layer.weight.t()).view(batch, self.z_size, -1)
            _chain(tangents, value.unsqueeze(1).expand_as(tangents), layer.activation)
        return tangents.transpose(1, 2)

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype, device=self.device)


def _activate(x: Tensor, activation: str) -> Tensor:
    """In place."""
    if activation == "tanh":
        # tanh x = 2 sigmoid(2 x) - 1, to 2e-7: torch takes five times as long for tanh on a CPU.
        return x.mul_(2).sigmoid_().mul_(2).sub_(1)
    if activation == "sigmoid":
        return x.sigmoid_()
    return x.relu_() if activation == "relu" else x


def _chain(v: Tensor, value: Tensor, activation: str) -> None:
    """Make v into v times the activation's slope where it gave `value`, in place."""
    if activation == "tanh":
        torch.ops.aten.tanh_backward.grad_input(v, value, grad_input=v)
    elif activation == "sigmoid":
        torch.ops.aten.sigmoid_backward.grad_input(v, value, grad_input=v)
    elif activation == "relu":
        torch.ops.aten.threshold_backward.grad_input(v, value, 0, grad_input=v)


class ByAutograd:
    """Any function of torch's that is differentiable in z."""

    def __init__(
        self, forward: Callable[[Tensor], Tensor], z_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._forward = forward
        self.z_size, self.dtype, self.device = z_size, dtype, device

    def linearise(self, z: Tensor) -> tuple[Tensor, PullBack]:
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            outputs = self._forward(z)

        def pull_back(v: Tensor) -> Tensor:
            return torch.autograd.grad(outputs, z, v)[0]

        return outputs.detach(), pull_back

    def jacobian(self, z: Tensor) -> Tensor:
        # A column a time: memory stays that of a batch, and no function need know of vmap.
        columns = []
        with warnings.catch_warnings():
            # Torch's own, of what it uses itself.
            warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
            for index in range(self.z_size):
                tangent = torch.zeros_like(z)
                tangent[:, index] = 1
                columns.append(torch.func.jvp(self._forward, (z,), (tangent,))[1].detach())
        return torch.stack(columns, dim=2)

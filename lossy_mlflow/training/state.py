"""A training's state as flat named tensors, ready for safetensors, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lossy_mlflow.errors import ConflictError

_MODEL, _OPTIMIZER = "model.", "optimizer."


@dataclass(frozen=True, slots=True)
class Matched:
    """What a warm start did, by the module's own names: `taken` from the tensors, `kept` as it was."""

    taken: list[str]
    kept: list[str]


def state_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Copies on the CPU, contiguous, which later training doesn't change.

    `model.NAME` is the model's parameter or buffer NAME, `optimizer.NAME.KEY` what the optimizer keeps for
    that parameter (Adam: step, exp_avg, exp_avg_sq). `optimizer` must be over `model.parameters()`, as
    `make_optimizer` makes it.
    """
    tensors = {_MODEL + name: tensor for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{_OPTIMIZER}{name}.{key}"] = value
    return {name: _own_copy(tensor) for name, tensor in tensors.items()}


def load_state_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    """Put back what `state_tensors` gave, into a model and an optimizer built alike, on any device.

    Raises ConflictError, and changes nothing, where names or shapes differ.
    """
    of_model = _below(_MODEL, tensors)
    of_optimizer = _below(_OPTIMIZER, tensors)
    parameters = dict(model.named_parameters())
    states: dict[str, dict[str, Tensor]] = {}
    for name, tensor in of_optimizer.items():
        parameter, _, key = name.rpartition(".")
        states.setdefault(parameter, {})[key] = tensor
    keys = {key for state in states.values() for key in state}
    wanted = {_MODEL + name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    # A parameter that has met no gradient has no state. All others keep the same: a scalar count of steps,
    # and tensors of the parameter's shape.
    for name in parameters.keys() & states.keys():
        shape = tuple(parameters[name].shape)
        wanted |= {f"{_OPTIMIZER}{name}.{key}": () if key == "step" else shape for key in keys}
    _check(wanted, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    model.load_state_dict(of_model)
    optimizer.load_state_dict(
        {
            "state": {index: states[name] for index, name in enumerate(parameters) if name in states},
            "param_groups": optimizer.state_dict()["param_groups"],
        }
    )


def load_matching(module: nn.Module, tensors: Mapping[str, Tensor]) -> Matched:
    """Copy into `module` each tensor that has the name and the shape of one of its own."""
    own = module.state_dict()
    taken = [name for name, tensor in own.items() if name in tensors and tensors[name].shape == tensor.shape]
    module.load_state_dict({name: tensors[name] for name in taken}, strict=False)
    return Matched(taken, [name for name in own if name not in taken])


def _own_copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _check(wanted: Mapping[str, tuple[int, ...]], given: Mapping[str, tuple[int, ...]]) -> None:
    off = [
        f"{name}: stored {given.get(name, 'nothing')}, the model has {wanted.get(name, 'nothing')}"
        for name in sorted(wanted.keys() | given.keys())
        if wanted.get(name) != given.get(name)
    ]
    if off:
        raise ConflictError(
            f"The stored training state doesn't fit this model: {'; '.join(off[:3])}"
            + (" ..." if off[3:] else ""),
            "Was the model changed since? Go on with the code that trained it, or train anew: --overwrite",
        )

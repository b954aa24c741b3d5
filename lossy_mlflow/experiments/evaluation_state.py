"""How far an evaluation has come, as named tensors: what it goes on from, with the same numbers as if it had never stopped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from lossy_mlflow.rate_distortion import Curve, Gap
from lossy_mlflow.rate_distortion.annealing import Annealing, Point
from lossy_mlflow.rate_distortion.hmc import State

_POINT = [item.name for item in fields(Point)]
_CURVE = [item.name for item in fields(Curve)]
_STATE = [item.name for item in fields(State)]


@dataclass(slots=True)
class Done:
    """curves: of the batches that are done. points, annealing, generator: of the one under way; None before its start.

    gaps: those that are measured. drawn: z of some images at some betas, (n_images, z_size), by index of beta. encoder: of the
    variational curve, after its newest point. likelihood: estimates of log p(x), by name.
    """

    curves: list[Curve] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)
    annealing: Annealing | None = None
    generator: Tensor | None = None
    gaps: list[Gap] = field(default_factory=list)
    drawn: dict[int, Tensor] = field(default_factory=dict)
    encoder: dict[str, Tensor] = field(default_factory=dict)
    likelihood: dict[str, float] = field(default_factory=dict)


def to_tensors(done: Done) -> dict[str, Tensor]:
    """On the CPU, contiguous."""
    found: dict[str, Tensor] = {}
    for index, curve in enumerate(done.curves):
        found |= {f"curve.{index}.{name}": getattr(curve, name) for name in _CURVE}
    for name in _POINT if done.points else []:
        found[f"points.{name}"] = torch.stack(
            [torch.as_tensor(getattr(point, name), dtype=torch.float64) for point in done.points]
        )
    if done.generator is not None:
        found["generator"] = done.generator
    if done.annealing is not None:
        annealing = done.annealing
        found |= {f"state.{name}": getattr(annealing.state, name) for name in _STATE}
        found |= {"log_w": annealing.log_w, "acceptance": annealing.acceptance}
        found["n_non_finite"] = annealing.n_non_finite
        found["counts"] = torch.tensor([annealing.step, annealing.n_moves])
    for index, gap in enumerate(done.gaps):
        found[f"gap.{index}.beta"] = torch.tensor(gap.beta, dtype=torch.float64)
        found |= {f"gap.{index}.lower": gap.lower, f"gap.{index}.upper": gap.upper}
    found |= {f"drawn.{index}": z for index, z in done.drawn.items()}
    found |= {f"encoder.{name}": tensor for name, tensor in done.encoder.items()}
    numbers = {name: torch.tensor(value, dtype=torch.float64) for name, value in done.likelihood.items()}
    found |= {f"likelihood.{name}": value for name, value in numbers.items()}
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in found.items()}


def from_tensors(tensors: Mapping[str, Tensor], device: torch.device) -> Done:
    """What `to_tensors` has made of it, what is under way on `device`."""
    done = Done()
    while f"curve.{len(done.curves)}.beta" in tensors:
        index = len(done.curves)
        done.curves.append(Curve(**{name: tensors[f"curve.{index}.{name}"] for name in _CURVE}))
    if "points.beta" in tensors:
        for row in range(len(tensors["points.beta"])):
            values = {name: tensors[f"points.{name}"][row] for name in _POINT}
            beta, n_non_finite = float(values.pop("beta")), int(values.pop("n_non_finite"))
            here = {name: value.to(device) for name, value in values.items()}
            done.points.append(Point(beta=beta, n_non_finite=n_non_finite, **here))
    if "log_w" in tensors:
        step, n_moves = tensors["counts"].tolist()
        done.annealing = Annealing(
            step,
            State(**{name: tensors[f"state.{name}"].to(device) for name in _STATE}),
            tensors["log_w"].to(device),
            tensors["acceptance"].to(device),
            n_moves,
            tensors["n_non_finite"],
        )
    done.generator = tensors.get("generator")
    while f"gap.{len(done.gaps)}.beta" in tensors:
        index = len(done.gaps)
        lower, upper = (tensors[f"gap.{index}.{name}"].to(device) for name in ("lower", "upper"))
        done.gaps.append(Gap.between(float(tensors[f"gap.{index}.beta"]), lower, upper))
    done.drawn = {int(index): z for index, z in _below("drawn", tensors).items()}
    done.encoder = _below("encoder", tensors)
    done.likelihood = {name: float(value) for name, value in _below("likelihood", tensors).items()}
    return done


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with it and a dot, by the rest of their names."""
    start = f"{prefix}."
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}

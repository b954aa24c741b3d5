"""The pilot: a short run with particles of its own that finds, for each datum, how to move at each beta, and where betas are due.

What it finds is frozen before anything is measured, with other random numbers: then the estimate of Z is exact in expectation
(Neal 2001).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from lossy_mlflow.errors import LossyError
from lossy_mlflow.rate_distortion.distortion import Distortion
from lossy_mlflow.rate_distortion.hmc import State, drawn, hmc, state_at, two_stage

_FIRST_CHANGE = 0.1  # beta d changes by this much (one sd over the prior) at the pilot's first beta
_KNOTS_PER_E = 5.0  # betas of the pilot for each factor e
# Of these betas, one in so many has the Jacobian computed anew, or fewer: it changes little in between, and costs most.
_MASS_EVERY = 3
_MASS_KEPT = 0.5  # of the mean of those before: the more places a mass has seen, the more it suits
_LEAPFROG, _MOVES = 2, 2
_GAIN = 0.3
_FIRST_STEP = 0.5
_LEAST_STEP = 1e-3
_SMOOTH = 1.0  # in log beta: the sd of the kernel by which what few particles say is smoothed
_FLOOR = 0.1  # of the mean density of betas, everywhere


@dataclass(frozen=True, slots=True)
class Pilot:
    """How many particles of each datum go through it, two at least, and what share of their moves it aims to have accepted."""

    n_particles: int = 8
    target_acceptance: float = 0.8


@dataclass(frozen=True, slots=True)
class Tuning:
    """What a pilot found, frozen. K of its betas carry it, M of them the mass; between, what is nearest in log beta holds.

    knots (K,): the betas. step_size (K, n_data). spread (K, n_data): the sd of d. mass_knots (M,). axes (M, n_data, z_size,
    z_size), curvature (M, n_data, z_size), float32: the eigenvectors, as columns, and eigenvalues of 2 J^T W J. betas (T,): the
    schedule, ascending, from 0. n_leapfrog: steps of a move, see `two_stage`. n_gradients: what the pilot has cost a
    particle; a column of a Jacobian counts as half.
    """

    knots: Tensor
    step_size: Tensor
    spread: Tensor
    mass_knots: Tensor
    axes: Tensor
    curvature: Tensor
    betas: Tensor
    n_leapfrog: int
    n_gradients: float

    def step_sizes(self, beta: float) -> Tensor:
        """(n_data,), for moves of at most a quarter of a Gaussian's period: half of one comes back to where d is the same."""
        return self.step_size[_nearest(self.knots, beta)].clamp(max=_quarter(self.n_leapfrog))

    def scale(self, beta: float) -> Tensor:
        """A (n_data, z_size, z_size), with A A^T = (I + beta 2 J^T W J)^-1."""
        k = _nearest(self.mass_knots, beta)
        return _scale(self.curvature[k].double(), self.axes[k].double(), beta)

    def arc(self) -> float:
        """The length of the path: a chain's log weight has a variance of about arc^2 / T, and so large is its gap."""
        return float(_cumulated_arc(self.knots, self.spread)[-1])


def tune(
    distortion: Distortion,
    betas: Sequence[float],
    generator: torch.Generator,
    *,
    n_steps: int = 1000,
    n_leapfrog: int = 2,
    pilot: Pilot | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Tuning:
    """A pilot up to the largest of `betas`, and from it a schedule of about `n_steps` betas that holds `betas` exactly.

    Annealed particles, whose step sizes follow their acceptance. Each half moves with the mass that the other half has found, as
    chains will that have no part in it: a particle fits its own mass far better, and would promise larger steps. For the same
    reason none is copied to where another is better off. They move by pairs of steps, whatever `n_leapfrog` is. `progress` hears
    (knots done, of how many). Raises LossyError where d isn't finite at any draw of the prior.
    """
    pilot = pilot or Pilot()
    state = _drawn(distortion, pilot.n_particles, generator)
    knots = _knots(max(betas), state.d)
    log_step = torch.full(
        (distortion.n_data,), math.log(_FIRST_STEP), dtype=torch.float64, device=distortion.device
    )
    steps, spreads = [], []
    kicks = two_stage(_LEAPFROG)
    halves = slice(0, pilot.n_particles // 2), slice(pilot.n_particles // 2, None)
    masses = _Masses(distortion, halves)
    for index, beta in enumerate(knots.tolist()):
        masses.come_to(index, beta, state)
        scales = masses.scales(beta)
        for _ in range(_MOVES):
            size = log_step.exp().unsqueeze(1).expand_as(state.d)
            moved = [
                hmc(_part(state, half), beta, scale, size[:, half], kicks, distortion, generator)
                for half, scale in zip(halves, scales, strict=True)
            ]
            state = _together([there for there, _ in moved])
            acceptance = torch.cat([info.acceptance for _, info in moved], 1).mean(1)
            log_step = log_step + _GAIN * (acceptance - pilot.target_acceptance)
            log_step = log_step.clamp(math.log(_LEAST_STEP), math.log(_quarter(_LEAPFROG)))
        steps.append(log_step)
        spreads.append(state.d.std(1))
        if progress:
            progress(index + 1, len(knots))
    mass_knots, axes, curvature = masses.found()
    tuning = Tuning(
        knots,
        step_size=_smoothed(torch.stack(steps), knots).exp(),
        spread=torch.stack(spreads),
        mass_knots=mass_knots,
        axes=axes,
        curvature=curvature,
        betas=torch.zeros(1, dtype=torch.float64),
        n_leapfrog=n_leapfrog,
        n_gradients=1.0 + len(knots) * _MOVES * _LEAPFROG + masses.spent,
    )
    return replace(tuning, betas=schedule(tuning, betas, n_steps))


class _Masses:
    """The masses of a pilot: at some of its knots that of each half of the particles, and of all. `spent`: in gradients."""

    def __init__(self, distortion: Distortion, halves: tuple[slice, slice]) -> None:
        self._distortion, self._halves = distortion, halves
        self._cost = 0.5 * distortion.z_size
        # Where it would cost more than twice the moves in between, it is looked at half as often.
        self._every = _MASS_EVERY if self._cost <= 2 * _MASS_EVERY * _MOVES * _LEAPFROG else 2 * _MASS_EVERY
        self._grams: list[Tensor] = []
        self._of_other: list[tuple[Tensor, Tensor]] = []
        self._found: list[tuple[float, Tensor, Tensor]] = []
        self.spent = 0.0

    def come_to(self, index: int, beta: float, state: State) -> None:
        """The knot of that index, where the particles are at `state`."""
        if index % self._every != 0:
            return
        new = [self._distortion.curvature(state.z[:, half]) for half in self._halves]
        kept = self._grams or new
        self._grams = [
            _MASS_KEPT * old + (1 - _MASS_KEPT) * gram for old, gram in zip(kept, new, strict=True)
        ]
        self._of_other = [_eigen(gram) for gram in reversed(self._grams)]
        curvature, axes = _eigen((self._grams[0] + self._grams[1]) / 2)
        self._found.append((beta, axes.float(), curvature.float()))
        self.spent += self._cost

    def scales(self, beta: float) -> list[Tensor]:
        """By which each half moves: what the other half has found."""
        return [_scale(curvature, axes, beta) for curvature, axes in self._of_other]

    def found(self) -> tuple[Tensor, Tensor, Tensor]:
        """(mass_knots, axes, curvature), see `Tuning`."""
        betas, axes, curvature = zip(*self._found, strict=True)
        knots = torch.tensor(betas, dtype=torch.float64, device=self._distortion.device)
        return knots, torch.stack(axes), torch.stack(curvature)


def _drawn(distortion: Distortion, n_particles: int, generator: torch.Generator) -> State:
    """Particles from the prior, all where d is finite. Raises LossyError where that is so of none of a datum's."""
    shape = (distortion.n_data, n_particles, distortion.z_size)
    state = state_at(drawn(shape, generator), distortion)
    finite = torch.isfinite(state.d)
    if n_bad := int((~finite).all(1).sum()):
        raise LossyError(
            f"The distortion isn't finite at draws of the prior, for {n_bad} of {distortion.n_data} images.",
            "Look at what the decoder makes of z ~ N(0, I): it, or the image, has NaN or infinite values.",
        )
    return _at_finite(state, finite)


def schedule(tuning: Tuning, betas: Sequence[float], n_steps: int) -> Tensor:
    """About `n_steps` betas from 0 to the largest of `betas`, (T,), which hold all of these, as far apart as d's spread allows.

    Between neighbours the log weights of the median datum spread equally: the mean would let one that is stuck take nearly all.
    """
    last = max(betas)
    arc = _cumulated_arc(tuning.knots, tuning.spread).cpu()
    knots = tuning.knots.cpu()
    at = torch.linspace(0, float(arc[-1]), n_steps + 1, dtype=torch.float64)
    # Before the first knot the arc is linear in beta, after it, in log beta.
    first = float(arc[0])
    log_beta = _interpolated(at.clamp(min=first), arc, knots.log())
    chosen = torch.where(at < first, at / first * knots[0], log_beta.exp())
    inner = [beta for beta in chosen.tolist() if 0 < beta < last]
    together = sorted({0.0, *inner, *(float(beta) for beta in betas if beta > 0)})
    return torch.tensor(together, dtype=torch.float64)


def _quarter(n_leapfrog: int) -> float:
    """The step of which so many turn a standard Gaussian by 90 degrees: a leapfrog step of 2 sin(a / 2) turns it by a.

    Steps in pairs, see `two_stage`, turn it by as much but for a quarter of a degree.
    """
    return 2 * math.sin(math.pi / (4 * n_leapfrog))


def _nearest(knots: Tensor, beta: float) -> int:
    """The index of the knot that is nearest in log beta."""
    return int((knots.log() - math.log(beta)).abs().argmin())


def _knots(largest: float, d: Tensor) -> Tensor:
    """Geometric, from where exp(-beta d) begins to matter to the largest beta."""
    spread = float(d.std(1).median()) if d.shape[1] > 1 else float(d.mean())
    first = min(_FIRST_CHANGE / max(spread, 1e-12), largest)
    n = max(2, math.ceil(math.log(largest / first) * _KNOTS_PER_E) + 1) if first < largest else 1
    knots = torch.logspace(math.log10(first), math.log10(largest), n, dtype=torch.float64, device=d.device)
    knots[-1] = largest
    return knots


def _at_finite(state: State, finite: Tensor) -> State:
    """Particles without a finite d go where others of their datum are, one of which at least must have one."""
    n = finite.shape[1]
    order = torch.argsort(~finite, dim=1, stable=True)  # the finite ones first; the rest take them in turn
    turn = torch.arange(n, device=finite.device) % finite.sum(1, keepdim=True)
    index = torch.where(finite, torch.arange(n, device=finite.device), order.gather(1, turn))
    wide = index.unsqueeze(-1).expand_as(state.z)
    return State(
        state.z.gather(1, wide),
        state.d.gather(1, index),
        state.d_gradient.gather(1, wide),
    )


def _part(state: State, half: slice) -> State:
    return State(*(getattr(state, field.name)[:, half] for field in fields(State)))


def _together(states: Sequence[State]) -> State:
    return State(*(torch.cat([getattr(state, field.name) for state in states], 1) for field in fields(State)))


def _scale(curvature: Tensor, axes: Tensor, beta: float) -> Tensor:
    """A (n_data, z_size, z_size), with A A^T = (I + beta G)^-1, of G's eigenvalues and eigenvectors."""
    return axes / torch.sqrt(1 + beta * curvature).unsqueeze(-2)


def _eigen(gram: Tensor) -> tuple[Tensor, Tensor]:
    """(eigenvalues, none below 0; eigenvectors)."""
    curvature, axes = torch.linalg.eigh(gram)
    return curvature.clamp(min=0), axes


def _smoothed(values: Tensor, knots: Tensor) -> Tensor:
    """(K, ...), each the mean of its neighbours in log beta, by a Gaussian kernel."""
    distance = (knots.log().unsqueeze(1) - knots.log().unsqueeze(0)) / _SMOOTH
    kernel = torch.exp(-0.5 * distance.square())
    kernel = kernel / kernel.sum(1, keepdim=True)
    return (kernel @ values.reshape(len(knots), -1)).view_as(values)


def _cumulated_arc(knots: Tensor, spread: Tensor) -> Tensor:
    """(K,): the arc from beta = 0 to each knot, of the median datum."""
    density = (knots.unsqueeze(1) * spread).median(1).values
    density = _smoothed(density.clamp(min=1e-12).log(), knots).exp()
    density = density + _FLOOR * density.mean()
    pieces = 0.5 * (density[1:] + density[:-1]) * knots.log().diff()
    # Before the first knot d's spread is the prior's: linear in beta.
    return torch.cat([density[:1], density[0] + pieces.cumsum(0)])


def _interpolated(x: Tensor, xs: Tensor, ys: Tensor) -> Tensor:
    if len(xs) == 1:
        return ys.expand_as(x)
    right = torch.searchsorted(xs, x).clamp(1, len(xs) - 1)
    x0, x1, y0, y1 = xs[right - 1], xs[right], ys[right - 1], ys[right]
    return y0 + (y1 - y0) * ((x - x0) / (x1 - x0)).clamp(0, 1)

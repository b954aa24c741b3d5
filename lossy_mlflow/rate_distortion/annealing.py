"""Annealed importance sampling (Neal 2001): chains from the prior through f_beta at ever larger beta, with exact log weights.

One run gives the whole curve (Huang et al. 2020, section 4.2): at each beta the weighted chains stand for f_beta.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lossy_mlflow.rate_distortion.distortion import Distortion
from lossy_mlflow.rate_distortion.hmc import Info, State, drawn, hmc, state_at, two_stage
from lossy_mlflow.rate_distortion.tuning import Tuning

_JITTER = 0.2  # of the step size: no trajectory comes back to where it began


@dataclass(frozen=True, slots=True)
class Annealing:
    """A run on its way. step: how many betas of the schedule are behind. log_w (n_data, n_chains), float64.

    acceptance, n_moves, n_non_finite: summed since the last point that was taken. Whoever keeps `z`, `log_w`, the sums and the
    generator's state can go on with the same numbers.
    """

    step: int
    state: State
    log_w: Tensor
    acceptance: Tensor
    n_moves: int
    n_non_finite: Tensor


@dataclass(frozen=True, slots=True)
class Point:
    """What the chains say at one beta, by datum, (n_data,) each, float64, in nats.

    log_z: log of the mean weight. distortion: the weighted mean of d. rate: -log_z - beta distortion. Each has the standard error
    that the chains' differences give it, to first order; one chain has none, NaN. ess: effective number of chains, 1 to n_chains.
    lead: by how much log_z falls where the best chain is left out; a fraction of a nat, unless one chain has found what the
    others missed. acceptance: the mean since the point before.
    """

    beta: float
    rate: Tensor
    rate_se: Tensor
    distortion: Tensor
    distortion_se: Tensor
    log_z: Tensor
    log_z_se: Tensor
    ess: Tensor
    lead: Tensor
    acceptance: Tensor
    n_non_finite: int


def start(distortion: Distortion, n_chains: int, generator: torch.Generator) -> Annealing:
    """Chains drawn from the prior N(0, I), at beta = 0."""
    z = drawn((distortion.n_data, n_chains, distortion.z_size), generator)
    state = state_at(z, distortion)
    log_w, acceptance = torch.zeros_like(state.d), torch.zeros_like(state.d[:, 0])
    return Annealing(0, state, log_w, acceptance, 0, torch.zeros((), dtype=torch.int64))


def anneal(
    annealing: Annealing,
    distortion: Distortion,
    tuning: Tuning,
    betas: Sequence[float],
    generator: torch.Generator,
    *,
    on_point: Callable[[Annealing, Point], None],
    on_step: Callable[[Annealing], None] | None = None,
) -> Annealing:
    """Go on to the end of the schedule; `on_point` hears of each of `betas` as it is passed, then `on_step` of each move.

    What they are given is enough to go on from there, with the generator's state at that moment.
    """
    wanted = set(betas)
    schedule = tuning.betas.tolist()
    for step in range(annealing.step + 1, len(schedule)):
        beta = schedule[step]
        log_w = annealing.log_w - (beta - schedule[step - 1]) * annealing.state.d
        state, info = _move(annealing.state, beta, distortion, tuning, generator)
        annealing = Annealing(
            step,
            state,
            log_w,
            annealing.acceptance + info.acceptance.mean(1),
            annealing.n_moves + 1,
            annealing.n_non_finite + info.n_non_finite.cpu(),
        )
        if beta in wanted:
            point = _point(annealing, beta)
            zero = torch.zeros_like(annealing.acceptance)
            annealing = replace(
                annealing, acceptance=zero, n_moves=0, n_non_finite=torch.zeros_like(annealing.n_non_finite)
            )
            on_point(annealing, point)
        if on_step:
            on_step(annealing)
    return annealing


def reverse_log_weights(
    z: Tensor,
    n_chains: int,
    distortion: Distortion,
    tuning: Tuning,
    generator: torch.Generator,
    on_step: Callable[[], None] | None = None,
) -> Tensor:
    """Log weights (n_data, n_chains) of chains that run from `z` (n_data, z_size), a draw of f at the last beta, to the prior.

    E[exp(log weight)] = 1 / Z (Grosse, Ghahramani and Adams 2015, section 3).
    """
    schedule = tuning.betas.tolist()
    state = state_at(z.unsqueeze(1).expand(-1, n_chains, -1).contiguous(), distortion)
    log_w = torch.zeros_like(state.d)
    for step in range(len(schedule) - 1, 0, -1):
        state, _ = _move(state, schedule[step], distortion, tuning, generator)
        log_w = log_w + (schedule[step] - schedule[step - 1]) * state.d
        if on_step:
            on_step()
    return log_w


def _move(
    state: State,
    beta: float,
    distortion: Distortion,
    tuning: Tuning,
    generator: torch.Generator,
) -> tuple[State, Info]:
    jitter = torch.rand(state.d.shape, generator=generator, device=state.d.device, dtype=torch.float64)
    step_size = tuning.step_sizes(beta).unsqueeze(1) * (1 + _JITTER * (2 * jitter - 1))
    kicks = two_stage(tuning.n_leapfrog)
    return hmc(state, beta, tuning.scale(beta), step_size, kicks, distortion, generator)


def _point(annealing: Annealing, beta: float) -> Point:
    log_w = annealing.log_w
    n_chains = log_w.shape[1]
    n_others = n_chains - 1 or math.nan  # by one chain nothing is known of the spread
    weights = torch.softmax(log_w, 1)
    d = torch.where(weights > 0, annealing.state.d, 0.0)  # it is infinite where a chain is of no weight
    log_z = torch.logsumexp(log_w, 1) - math.log(n_chains)
    others = log_w.scatter(1, log_w.argmax(1, keepdim=True), -math.inf)
    log_z_of_others = torch.logsumexp(others, 1) - math.log(n_others)
    distortion = (weights * d).sum(1)
    # How much each chain moves the estimates: of log Z its share beyond an equal one, of D its share of the deviation.
    # The mean that they differ from is their own.
    lost = math.sqrt(n_chains / n_others)
    moves_z, moves_d = lost * (weights - 1 / n_chains), lost * weights * (d - distortion.unsqueeze(1))
    return Point(
        beta,
        rate=-log_z - beta * distortion,
        rate_se=(moves_z + beta * moves_d).norm(dim=1),
        distortion=distortion,
        distortion_se=moves_d.norm(dim=1),
        log_z=log_z,
        log_z_se=moves_z.norm(dim=1),
        ess=1 / weights.square().sum(1),
        lead=log_z - log_z_of_others,
        acceptance=annealing.acceptance / max(1, annealing.n_moves),
        n_non_finite=int(annealing.n_non_finite),
    )

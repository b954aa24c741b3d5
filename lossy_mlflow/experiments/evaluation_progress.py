"""How much of an evaluation's work is done, for a progress bar."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lossy_mlflow.experiments.rd_settings import RdSettings
from lossy_mlflow.rate_distortion import Pilot


@dataclass(frozen=True, slots=True)
class EvaluationProgress:
    """What a progress callback hears. `done`: the share of all work, 0 to 1. `phase`: what is at work, in words."""

    label: str
    phase: str
    done: float


class Work:
    """How much of all work is done, counted in gradients of one chain."""

    def __init__(
        self, label: str, settings: RdSettings, progress: Callable[[EvaluationProgress], None] | None
    ) -> None:
        self._label, self._progress = label, progress
        moves = settings.anneal_steps * settings.leapfrog_steps * settings.n_chains
        pilot = 500 * Pilot().n_particles
        self._costs = {
            "pilot": pilot,
            "gap pilot": pilot,
            "likelihood pilot": pilot,
            "curve": moves,
            "likelihood": moves,
            "gap": 2 * moves,
        }
        n_parts = len(settings.prior_shares)
        self._total = settings.n_images * n_parts * (pilot + moves)
        self._total += len(settings.gap_betas) * settings.gap_images * (pilot + 2 * moves)
        self._total += settings.n_images * n_parts * (pilot + moves) if settings.log_likelihood else 0
        self._done = 0.0

    def report(self, phase: str, share: float, n_data: int) -> None:
        if self._progress:
            done = (self._done + share * self._costs[phase] * n_data) / self._total
            self._progress(EvaluationProgress(self._label, phase, min(1.0, done)))

    def finish(self, phase: str, n_data: int) -> None:
        self._done += self._costs[phase] * n_data

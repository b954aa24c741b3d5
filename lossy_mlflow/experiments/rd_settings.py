"""From a tree's `rd` to what an evaluation takes, with an error that names the field where one doesn't fit."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lossy_mlflow.errors import UsageError
from lossy_mlflow.experiments.settings import Field, anything, at_least, check_fields
from lossy_mlflow.hparams import Hparam
from lossy_mlflow.hparams.tree import thaw

_INT, _NUMBER, _NULL = (int,), (float, int), (type(None),)
TARGETS = ("mse", "joint", "features")
ESTIMATORS = ("ais", "variational")
DATA = ("test", "train", "simulate")


def _one_of(names: tuple[str, ...]) -> Field:
    return (str,), lambda value: value in names, f"one of {', '.join(names)}"


def _count(least: int = 1) -> Field:
    return _INT, at_least(least), f"a whole number of at least {least}"


_POSITIVE: Field = (_NUMBER, lambda value: 0 < value < math.inf, "a number above 0")
_POSITIVE_OR_NULL: Field = (
    _NUMBER + _NULL,
    lambda value: 0 < value < math.inf,
    "a number above 0, or null",
)

_FIELDS: dict[str, Field] = {
    "rd.target": _one_of(TARGETS),
    "rd.estimator": _one_of(ESTIMATORS),
    "rd.data": _one_of(DATA),
    "rd.batch_size": _count(),
    "rd.n_batch": _count(),
    "rd.n_chains": _count(),
    "rd.anneal_steps": _count(),
    "rd.n_betas": _count(),
    "rd.min_beta": _POSITIVE,
    "rd.max_beta": _POSITIVE,
    "rd.leapfrog_steps": _count(),
    "rd.target_acceptance": (_NUMBER, lambda value: 0 < value < 1, "a number between 0 and 1"),
    "rd.pilot_seed": _count(0),
    "rd.random_seed": _count(0),
    "rd.gap_beta_indexes": (
        (list,),
        lambda value: all(type(index) is int for index in value),
        "a list of indexes of betas, counted from 0, or from -1 backwards",
    ),
    "rd.gap_images": _count(),
    "rd.mixture_weight": (_NUMBER + _NULL, lambda value: 0 < value < 1, "a number between 0 and 1, or null"),
    "rd.bad_std": _POSITIVE_OR_NULL,
    "rd.blur_std": _POSITIVE_OR_NULL,
    "rd.overwrite_variance": _POSITIVE_OR_NULL,
    "rd.feature_map": ((str, *_NULL), bool, "the label of a model with features, or null"),
    "rd.encoder_epochs": _count(),
    "rd.log_likelihood": ((bool,), anything, "true or false"),
    "step_sizes_target": ((str, *_NULL), bool, "the label of another evaluation, or null"),
    "group_list": ((list, *_NULL), anything, "a list of names"),
}


@dataclass(frozen=True, slots=True)
class RdSettings:
    """How a decoder is evaluated. `betas`: those that are reported, ascending; `gap_betas`: where BDMC gaps are measured.

    The prior is a mixture of Gaussians around 0: `prior_stds`, the first of which is 1, with `prior_shares`.
    """

    target: str
    estimator: str
    data: str
    batch_size: int
    n_batch: int
    n_chains: int
    anneal_steps: int
    betas: tuple[float, ...]
    leapfrog_steps: int
    target_acceptance: float
    pilot_seed: int
    random_seed: int
    gap_betas: tuple[float, ...]
    gap_images: int
    prior_stds: tuple[float, ...]
    prior_shares: tuple[float, ...]
    blur_std: float | None
    overwrite_variance: float | None
    feature_map: str | None
    encoder_epochs: int
    log_likelihood: bool
    step_sizes_target: str | None

    @property
    def n_images(self) -> int:
        return self.batch_size * self.n_batch


def rd_settings(tree: Hparam) -> RdSettings:
    """The settings of an evaluation. Raises UsageError, which names the field that is missing, of the wrong kind, or at odds."""
    check_fields(tree, _FIELDS)
    rd = tree.rd
    if rd.pilot_seed == rd.random_seed:
        raise UsageError(
            f"rd.pilot_seed and rd.random_seed are both {rd.random_seed}: the pilot must not see the numbers it is to tune for.",
            f"Take another: --set rd.random_seed={rd.random_seed + 1}",
        )
    if (rd.mixture_weight is None) != (rd.bad_std is None):
        raise UsageError(
            f"rd.mixture_weight is {rd.mixture_weight} and rd.bad_std {rd.bad_std}: a mixture prior needs both.",
            "Set both, or neither.",
        )
    if (rd.target == "features") != (rd.feature_map is not None):
        raise UsageError(
            f"rd.target is {rd.target} and rd.feature_map {rd.feature_map}: they belong together.",
            "A distortion of features: --set rd.target=features --set rd.feature_map=cnn_mnist",
        )
    if rd.estimator == "variational" and (
        rd.mixture_weight is not None or rd.gap_beta_indexes or rd.data == "simulate"
    ):
        raise UsageError(
            "The variational curve has no gaps, no mixture prior and no simulated data: an encoder learns from images.",
            "Set them to nothing: --set 'rd.gap_beta_indexes=[]'",
        )
    betas = reported_betas(rd.min_beta, rd.max_beta, rd.n_betas)
    return RdSettings(
        target=rd.target,
        estimator=rd.estimator,
        data=rd.data,
        batch_size=rd.batch_size,
        n_batch=rd.n_batch,
        n_chains=rd.n_chains,
        anneal_steps=rd.anneal_steps,
        betas=betas,
        leapfrog_steps=rd.leapfrog_steps,
        target_acceptance=float(rd.target_acceptance),
        pilot_seed=rd.pilot_seed,
        random_seed=rd.random_seed,
        gap_betas=_chosen(betas, rd.gap_beta_indexes),
        gap_images=rd.gap_images,
        prior_stds=(1.0,) if rd.bad_std is None else (1.0, float(rd.bad_std)),
        prior_shares=(1.0,) if rd.mixture_weight is None else (1 - rd.mixture_weight, rd.mixture_weight),
        blur_std=rd.blur_std,
        overwrite_variance=rd.overwrite_variance,
        feature_map=rd.feature_map,
        encoder_epochs=rd.encoder_epochs,
        log_likelihood=rd.log_likelihood,
        step_sizes_target=tree.step_sizes_target,
    )


def reported_betas(least: float, largest: float, n: int) -> tuple[float, ...]:
    """`n` betas, equally far apart in log beta. Raises UsageError where they don't ascend."""
    if n == 1:
        return (float(largest),)
    step = math.log(largest / least) / (n - 1)
    betas = (*(least * math.exp(step * index) for index in range(n - 1)), float(largest))
    if list(betas) != sorted(set(betas)):
        raise UsageError(
            f"rd.min_beta is {least!r}, rd.max_beta {largest!r}: there is nothing between them for {n} betas.",
            f"Take a smaller one: --set rd.min_beta={largest / 1000:g}",
        )
    return betas


def quick(tree: Hparam) -> Hparam:
    """The same evaluation with few images, chains and steps: a usable curve within a minute."""
    changed = thaw(tree)
    rd = changed.rd
    for name, most in _QUICK.items():
        if isinstance(value := getattr(rd, name), int):
            setattr(rd, name, min(value, most))
    rd.gap_beta_indexes = [-1] if rd.gap_beta_indexes else []
    return changed


_QUICK = {
    "batch_size": 16,
    "n_batch": 1,
    "n_chains": 8,
    "anneal_steps": 400,
    "n_betas": 40,
    "gap_images": 8,
    "encoder_epochs": 10,
}


def _chosen(betas: tuple[float, ...], indexes: list[int]) -> tuple[float, ...]:
    for index in indexes:
        if not -len(betas) <= index < len(betas):
            raise UsageError(
                f"rd.gap_beta_indexes has {index}, but there are {len(betas)} betas (rd.n_betas).",
                "Take indexes from 0, or from -1 backwards: --set 'rd.gap_beta_indexes=[-1]'",
            )
    return tuple(sorted({betas[index] for index in indexes}))

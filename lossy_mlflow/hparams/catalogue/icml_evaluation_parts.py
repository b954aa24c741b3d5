"""What the evaluations of Huang et al. 2020 are made of, and how one gets its name.

They are many and alike, so that loops register them: a name, a line that says what it is, a part and what it is given.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec

from lossy_mlflow.hparams.registry import evaluates, get_hparams, part, register_hparams
from lossy_mlflow.hparams.tree import Hparam, thaw

_P = ParamSpec("_P")


@part
def evaluation_of(name: str) -> Hparam:
    """Of the best decoder of the set `name`, by that set's `rd`, in its group; where `name` is an evaluation itself, that one."""
    tree = get_hparams(name)
    if evaluates(tree):
        return thaw(tree)
    return Hparam(
        group_list=tree.group_list,
        load_checkpoint_name=name,
        chkt_step=-2,
        step_sizes_target=None,
        rd=tree.rd,
    )


@part
def second_round(name: str, random_seed: int = 8) -> Hparam:
    """The same with the tuning that the first round has found, and other random numbers."""
    tree = evaluation_of(name)
    tree.step_sizes_target = name
    tree.rd.random_seed = random_seed
    return tree


@part
def simulated(name: str, gap_beta_indexes: list[int]) -> Hparam:
    """On images that the decoder draws itself, with the gap (BDMC) at these betas."""
    tree = evaluation_of(name)
    tree.rd.data = "simulate"
    tree.rd.gap_beta_indexes = gap_beta_indexes
    return tree


@part
def features(name: str) -> Hparam:
    """By the squared error between features of a classifier, a hundred times that of pixels; so betas are smaller."""
    tree = evaluation_of(name)
    tree.rd.target = "features"
    tree.rd.feature_map = "cnn_mnist"
    tree.rd.min_beta, tree.rd.max_beta = 1e-4, 0.33
    return tree


@part
def variational(name: str) -> Hparam:
    """An encoder trained at each of 49 betas: a baseline, whose curve lies above the one by chains."""
    tree = evaluation_of(name)
    tree.rd.estimator = "variational"
    tree.rd.min_beta, tree.rd.max_beta, tree.rd.n_betas = 0.001, 50_000.0, 49
    tree.rd.gap_beta_indexes = []
    return tree


def register_evaluation(
    name: str, summary: str, build: Callable[_P, Hparam], /, *args: _P.args, **kwargs: _P.kwargs
) -> None:
    """The hparam set `name`, in a line `summary`: what `build` makes of the arguments."""

    def evaluation() -> Hparam:
        return build(*args, **kwargs)

    evaluation.__name__ = evaluation.__qualname__ = name
    evaluation.__doc__ = summary
    register_hparams(evaluation)


def register_rerun(name: str, summary: str) -> None:
    """The hparam set `name`_rerun: the second round of `name`."""
    register_evaluation(f"{name}_rerun", f"{summary}, second round", second_round, name)


def register_rounds(
    name: str, summary: str, build: Callable[_P, Hparam], /, *args: _P.args, **kwargs: _P.kwargs
) -> None:
    """Both rounds of an evaluation: `name`, which tunes, and `name`_rerun, which takes that tuning."""
    register_evaluation(name, summary, build, *args, **kwargs)
    register_rerun(name, summary)

"""The named sets: functions that build a fresh tree, found by name."""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Callable, Mapping
from typing import ParamSpec

from lossy_mlflow.errors import ConflictError, LossyError, NotFoundError, UsageError, did_you_mean
from lossy_mlflow.hparams.machine import refuse_machine_fields
from lossy_mlflow.hparams.overrides import apply_overrides
from lossy_mlflow.hparams.tree import Hparam, Value, freeze, leaves, stamp, thaw

_P = ParamSpec("_P")

_CATALOGUE = "lossy_mlflow.hparams.catalogue"
_LONGEST_KEY = 250  # MLflow's limit for the key of a param
_SET_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")

_sets: dict[str, Callable[[], Hparam]] = {}


def part(function: Callable[_P, Hparam]) -> Callable[_P, Hparam]:
    """Decorates a function that builds what sets share: its name is the origin of every field that it sets."""

    @functools.wraps(function)
    def build(*args: _P.args, **kwargs: _P.kwargs) -> Hparam:
        built: object = function(*args, **kwargs)
        if not isinstance(built, Hparam):
            raise UsageError(
                f"{function.__name__} returns {type(built).__name__}, not an Hparam.",
                f"End it with `return tree`, in {_file(function)}",
            )
        tree = thaw(built)
        stamp(tree, function.__name__)
        return tree

    return build


def register_hparams(function: Callable[[], Hparam]) -> Callable[[], Hparam]:
    """Decorates a function without arguments that builds a tree: it becomes the hparam set of that name.

    Each call gives a fresh tree that can be changed, so that one set can begin with another. The first line
    of its docstring says what it is. Defining the same function again (a notebook's cell) replaces it;
    raises ConflictError where another one has the name, UsageError for a name that can't be one.
    """
    name = function.__name__
    if not _SET_NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} can't name an hparam set.", "Name the function with letters a-z, digits and _."
        )
    if not function.__module__.startswith(_CATALOGUE):
        _load_catalogue()
    known = _sets.get(name)
    if known and _home(known) != _home(function):
        raise ConflictError(
            f"The hparam set {name!r} is defined already, in {_file(known)}", "Choose another name."
        )
    _sets[name] = part(function)
    return _sets[name]


def get_hparams(name: str, overrides: Mapping[str, Value] | None = None) -> Hparam:
    """The finished tree of a named set, with the overrides applied (see `apply_overrides`).

    Raises NotFoundError for an unknown name, UsageError for an override that doesn't fit and for a set with
    a field that can't be logged or belongs to the machine, LossyError where the set's function fails.
    """
    tree = freeze(_build(name))
    keys = [leaf.key for leaf in leaves(tree)]
    refuse_machine_fields(keys, f"The hparam set {name!r}")
    for key in keys:
        if len(key) > _LONGEST_KEY:
            raise UsageError(
                f"The hparam set {name!r} has a key of {len(key)} characters, {key[:40]}...",
                f"Shorten it: MLflow takes {_LONGEST_KEY}.",
            )
    return apply_overrides(tree, overrides, name) if overrides else tree


def set_names(dataset: str | None = None) -> list[str]:
    """The names of all sets, sorted; with `dataset`, of those whose data set it is (see `set_dataset`)."""
    _load_catalogue()
    return sorted(name for name in _sets if dataset is None or set_dataset(_build(name)) == dataset)


def evaluates(tree: Hparam) -> bool:
    """Whether it is the tree of an evaluation: it says how, in `rd`, whose, in load_checkpoint_name; and no model."""
    return tree.model_name is None and tree.model_train is None and isinstance(tree.rd, Hparam)


def set_dataset(tree: Hparam) -> str | None:
    """`dataset.name`; of an evaluation, that of the set whose decoder it names. None where it says none."""
    if evaluates(tree) and tree.load_checkpoint_name in _sets:
        tree = _build(tree.load_checkpoint_name)
    return tree.dataset.name if isinstance(tree.dataset, Hparam) else None


def set_summary(name: str) -> str:
    """What the set is, in a line: the first of its docstring. Raises NotFoundError for an unknown name."""
    return (_find(name).__doc__ or "").strip().partition("\n")[0].strip()


def set_file(name: str) -> str | None:
    """The user's own file that defines the set; None for one that comes with the package. Raises NotFoundError."""
    function = _find(name)
    return None if function.__module__.startswith(_CATALOGUE) else _file(function)


def _find(name: str) -> Callable[[], Hparam]:
    _load_catalogue()
    if name not in _sets:
        near = did_you_mean(name, _sets)
        raise NotFoundError(
            f"There is no hparam set {name!r}{'; ' + near if near else '.'}",
            "List them all: lossy hparams list",
        )
    return _sets[name]


def _build(name: str) -> Hparam:
    function = _find(name)
    try:
        return function()
    except LossyError:
        raise
    except Exception as error:
        raise LossyError(
            f"The hparam set {name!r} can't be built: {type(error).__name__}: {error}",
            f"Mend its function, in {_file(function)}",
        ) from error


def _home(function: Callable[[], Hparam]) -> tuple[str, str]:
    return function.__module__, function.__qualname__


def _file(function: Callable[..., Hparam]) -> str:
    import inspect  # not at the top: it takes half the time of importing this package

    return inspect.getsourcefile(inspect.unwrap(function)) or function.__module__


@functools.cache
def _load_catalogue() -> None:
    importlib.import_module(_CATALOGUE)

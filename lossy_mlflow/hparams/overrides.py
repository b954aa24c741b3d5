"""`--set model_train.epochs=5`: a changed copy of a tree, checked against what the tree defines."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping

from lossy_mlflow.errors import UsageError, nearest
from lossy_mlflow.hparams.flatten import flatten, read_value, write_value
from lossy_mlflow.hparams.machine import refuse_machine_fields
from lossy_mlflow.hparams.tree import Hparam, Value, assign, fields, freeze, plain, thaw

_KINDS = {bool: "true or false", int: "an integer", float: "a number", str: "a string", list: "a list"}


def read_assignments(assignments: Iterable[str]) -> dict[str, str]:
    """["a.b=1", ...] -> {"a.b": "1", ...}, split at the first "=".

    Raises UsageError for one without a key or without "=", and for a key that comes twice.
    """
    overrides: dict[str, str] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not (key and equals):
            raise UsageError(f"{assignment!r} sets nothing.", "Write KEY=VALUE, as model_train.epochs=5")
        if key in overrides:
            raise UsageError(f"{key!r} is set twice, to {overrides[key]!r} and to {text!r}.", "Set it once.")
        overrides[key] = text
    return overrides


def apply_overrides(tree: Hparam, overrides: Mapping[str, Value], hparam_set: str = "HPARAM_SET") -> Hparam:
    """A new frozen tree with those leaves set; their origin is "override". `hparam_set` is named in errors.

    A str is text as on the command line, read by the type that the field has; other values are taken as they
    are. A key must name a leaf of the tree, and the value keep its type: an int for a float is fine, and a
    field that is None takes any plain value. Raises UsageError otherwise.
    """
    changed = thaw(tree)
    for key, given in overrides.items():
        node, name = _find(changed, key, hparam_set)
        assign(node, name, _fitting(key, given, fields(node)[name]), "override")
    return freeze(changed)


def _find(tree: Hparam, key: str, hparam_set: str) -> tuple[Hparam, str]:
    """The node and the name of the field that `key` stands for."""
    *path, last = key.split(".")
    node = tree
    for name in path:
        inner = fields(node).get(name)
        if not isinstance(inner, Hparam):
            raise _no_such_field(tree, key, hparam_set)
        node = inner
    if last not in fields(node):
        raise _no_such_field(tree, key, hparam_set)
    return node, last


def _no_such_field(tree: Hparam, key: str, hparam_set: str) -> UsageError:
    refuse_machine_fields([key], "The override")
    near = _near(key, list(flatten(tree)))
    meant = f"; did you mean {', '.join(near)}?" if near else "."
    return UsageError(
        f"{hparam_set} defines no field {key!r}{meant}",
        f"List its fields: lossy hparams show {hparam_set} --flat",
    )


def _near(key: str, known: list[str]) -> list[str]:
    """Keys with the same last name, else with one like it, else alike as a whole."""
    lasts = {leaf: leaf.rpartition(".")[2] for leaf in known}
    last = key.rpartition(".")[2]
    like = [last] if last in lasts.values() else nearest(last, lasts.values(), n=1)
    return [leaf for leaf in known if lasts[leaf] in like] or nearest(key, known)


def _fitting(key: str, given: Value, current: Value | Hparam) -> Value | Hparam:
    """`given` as the type that the field has."""
    if isinstance(current, Hparam):
        if not fields(current) and given == "{}":
            return current
        inner = ", ".join(f"{key}.{name}" for name in flatten(current)) or "there are none"
        raise UsageError(f"{key} is a sub-tree, not a value.", f"Set one of its fields: {inner}")
    value = plain(key, _read(given, current) if isinstance(given, str) else given)
    if current is None or type(value) is type(current):
        return value
    if isinstance(current, float) and type(value) is int:
        with contextlib.suppress(OverflowError):
            return float(value)
    raise UsageError(
        f"{key} wants {_KINDS[type(current)]}, not {_shown(given)}",
        f"As it stands: {key}={write_value(current)}",
    )


def _read(text: str, current: Value) -> Value:
    """Text of the command line. For a string field it is the string itself, or a JSON string, in quotes."""
    if not isinstance(current, str):
        return read_value(text)
    value = read_value(text) if text.startswith('"') else text
    return value if isinstance(value, str) else text


def _shown(given: Value) -> str:
    text = repr(given) if isinstance(given, str) else str(given)
    return text if len(text) <= 60 else f"{text[:57]}..."

"""The tree: plain values under names, an undefined name reads as None, each leaf remembers who set it."""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeAlias

from lossy_mlflow.errors import UsageError

Value: TypeAlias = bool | int | float | str | list[Any] | None

# The walks over a tree recurse: a bound far below Python's own makes an error of a list that holds itself.
DEEPEST = 50

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


class Hparam:
    """A node of the tree: `Hparam(epochs=5).epochs == 5`, and `.anything_else is None`.

    A field holds None, a bool, int, float, str, a list of these, or another Hparam. What is assigned is
    copied in, so no two trees share a node or a list. There are no public methods, since any name may be a
    field. Equality is that of `flatten`: types count, NaN equals NaN, order doesn't matter. Setting a name
    or a value that no tree may hold raises UsageError.
    """

    __slots__ = ("_fields", "_frozen", "_origins")

    _fields: dict[str, Value | Hparam]
    _origins: dict[str, str]
    _frozen: bool

    def __init__(self, /, **fields: Value | Hparam) -> None:
        self.__setstate__(({}, {}, False))
        for name, value in fields.items():
            setattr(self, name, value)

    def __getattr__(self, name: str) -> Any:
        # No field begins with "_", but copy, pickle and notebooks probe for such names: None would mislead them.
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        value = self._fields.get(name)
        return plain(name, value) if self._frozen and isinstance(value, list) else value

    def __setattr__(self, name: str, value: Value | Hparam) -> None:
        if self._frozen:
            raise UsageError(
                f"This tree is finished; its field {name!r} can't be set.",
                "Build a changed one: get_hparams(NAME, overrides={KEY: value}), or apply_overrides.",
            )
        if not _NAME.fullmatch(name):
            raise UsageError(
                f"{name!r} can't name a field.",
                "A name is made of letters a-z, digits and _, and begins with a letter.",
            )
        self._fields[name] = _copied(name, value, frozen=False)
        self._origins.pop(name, None)

    def __eq__(self, other: object) -> bool:
        from lossy_mlflow.hparams.flatten import flatten

        return flatten(self) == flatten(other) if isinstance(other, Hparam) else NotImplemented

    def __repr__(self) -> str:
        # A name like "as" is a field, and no keyword argument.
        written = [
            f"**{{{name!r}: {value!r}}}" if keyword.iskeyword(name) else f"{name}={value!r}"
            for name, value in self._fields.items()
        ]
        return f"Hparam({', '.join(written)})"

    def __getstate__(self) -> tuple[dict[str, Value | Hparam], dict[str, str], bool]:
        return dict(self._fields), dict(self._origins), self._frozen

    def __setstate__(self, state: tuple[dict[str, Value | Hparam], dict[str, str], bool]) -> None:
        for slot, value in zip(("_fields", "_origins", "_frozen"), state, strict=True):
            object.__setattr__(self, slot, value)


class Leaf(NamedTuple):
    """What has no fields below it: a plain value, or an empty sub-tree."""

    key: str
    value: Value | Hparam
    origin: str


def fields(tree: Hparam) -> dict[str, Value | Hparam]:
    """The fields of this node, in the order in which they were first set; its sub-trees are not copies."""
    return {name: getattr(tree, name) for name in tree._fields}


def freeze(tree: Hparam) -> Hparam:
    """The tree, finished: a copy that nothing can change any more.

    Raises UsageError where a list was given a value that no tree may hold.
    """
    return tree if tree._frozen else _copied_tree("", tree, frozen=True)


def thaw(tree: Hparam) -> Hparam:
    """A copy that can be changed; each leaf keeps its origin."""
    return _copied_tree("", tree, frozen=False)


def leaves(tree: Hparam, above: str = "") -> Iterator[Leaf]:
    """The leaves with their dotted keys, in the order of definition."""
    for name, value in fields(tree).items():
        key = f"{above}{name}"
        if isinstance(value, Hparam) and value._fields:
            yield from leaves(value, f"{key}.")
        else:
            yield Leaf(key, value, tree._origins.get(name, ""))


def origins(tree: Hparam) -> dict[str, str]:
    """Dotted key -> who set it: the name of a set or part, "override", or "" for a tree that no set made."""
    return {leaf.key: leaf.origin for leaf in leaves(tree)}


def assign(node: Hparam, name: str, value: Value | Hparam, origin: str) -> None:
    """Set a field in the name of `origin`."""
    setattr(node, name, value)
    node._origins[name] = origin


def stamp(tree: Hparam, origin: str) -> None:
    """Write `origin` on every leaf that was set since it was last stamped."""
    for name, value in tree._fields.items():
        tree._origins.setdefault(name, origin)
        if isinstance(value, Hparam):
            stamp(value, origin)


def _copied(key: str, value: object, frozen: bool, depth: int = 0) -> Value | Hparam:
    return _copied_tree(key, value, frozen, depth) if isinstance(value, Hparam) else plain(key, value)


def _copied_tree(key: str, tree: Hparam, frozen: bool, depth: int = 0) -> Hparam:
    _refuse_too_deep(key, depth)
    copy = Hparam()
    for name, value in tree._fields.items():
        copy._fields[name] = _copied(f"{key}.{name}" if key else name, value, frozen, depth + 1)
    copy._origins.update(tree._origins)
    object.__setattr__(copy, "_frozen", frozen)
    return copy


def plain(key: str, value: object, depth: int = 0) -> Value:
    """`value` itself, a list as a copy. Exact types only, so that what is read back is what was set.

    Raises UsageError, which names the field as `key`.
    """
    _refuse_too_deep(key, depth)
    if value is None or isinstance(value, bool) or type(value) is float or type(value) is str:
        return value
    if type(value) is int:
        return _writable(key, value)
    if type(value) is list:
        return [plain(key, element, depth + 1) for element in value]
    if isinstance(value, Hparam):
        raise UsageError(f"{key} wants plain values, not a tree.", "Give the tree a field of its own.")
    kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    raise UsageError(
        f"{key} can't hold a {kind}.",
        "A field holds None, a bool, int, float, str, a list of these, or an Hparam: convert it.",
    )


def _writable(key: str, value: int) -> int:
    try:
        str(value)
    except ValueError:
        raise UsageError(
            f"{key} is an integer with too many digits to be written.", "Give a float or a string."
        ) from None
    return value


def _refuse_too_deep(key: str, depth: int) -> None:
    if depth > DEEPEST:
        raise UsageError(
            f"{key} is nested more than {DEEPEST} deep.", "Does a list hold itself? Make it flatter."
        )

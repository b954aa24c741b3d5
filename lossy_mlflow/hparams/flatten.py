"""A tree as flat text, `{"model_train.z_size": "100"}`, and back: as it is logged in run params."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from lossy_mlflow.errors import UsageError
from lossy_mlflow.hparams.tree import DEEPEST, Hparam, Value, freeze, leaves

_EMPTY_TREE = "{}"


def flatten(tree: Hparam) -> dict[str, str]:
    """Dotted key -> value as JSON, save that a string is bare wherever `read_value` gives it back unchanged.

    A sub-tree without fields is "{}". `unflatten(flatten(tree)) == tree` for every tree, types included.
    """
    return {leaf.key: write_value(leaf.value) for leaf in leaves(tree)}


def unflatten(mapping: Mapping[str, str]) -> Hparam:
    """The frozen tree that `flatten` wrote. Raises UsageError for keys or values that no tree gives."""
    tree = Hparam()
    for key, text in mapping.items():
        for above in _above(key):
            if above in mapping:
                raise UsageError(
                    f"{above} is both a value and a sub-tree with {key}.", "Remove one of the two."
                )
        *path, last = key.split(".")
        node = tree
        for name in path:
            if getattr(node, name) is None:
                setattr(node, name, Hparam())
            node = getattr(node, name)
        setattr(node, last, Hparam() if text == _EMPTY_TREE else read_value(text))
    return freeze(tree)


def read_value(text: str) -> Value:
    """The value that `text` writes in JSON, else the text itself. (A JSON object gives a dict, which no tree takes.)"""
    try:
        value: Value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value


def write_value(value: Value | Hparam) -> str:
    """One value as `flatten` writes it."""
    if isinstance(value, Hparam):
        return _EMPTY_TREE
    if isinstance(value, str) and _reads_back_bare(value):
        return value
    return json.dumps(value)


def hparams_sha256(tree: Hparam) -> str:
    """64 hex digits that two trees share exactly when they are equal."""
    import hashlib  # not at the top: it takes a fifth of the time of importing this package

    canonical = json.dumps(flatten(tree), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _reads_back_bare(text: str) -> bool:
    # Controls, lone surrogates, odd blanks and blanks at the ends don't survive every shell, table and store.
    if not text or not text.isprintable() or text != text.strip():
        return False
    try:
        json.loads(text)
    except RecursionError:
        return False  # whether it reads depends on how deep the reader stands: quoted, it always does
    except ValueError:
        return True
    return False


def _above(key: str) -> Iterator[str]:
    """The keys of the sub-trees that hold this leaf."""
    parts = key.split(".")
    if len(parts) > DEEPEST:
        raise UsageError(
            f"The key {key[:60]}... is nested more than {DEEPEST} deep.", "Make the tree flatter."
        )
    return (".".join(parts[:n]) for n in range(1, len(parts)))

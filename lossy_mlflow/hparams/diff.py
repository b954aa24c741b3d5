"""In what two trees differ."""

from __future__ import annotations

from typing import NamedTuple

from lossy_mlflow.hparams.flatten import flatten
from lossy_mlflow.hparams.tree import Hparam


class Difference(NamedTuple):
    """One leaf that differs: its values as `flatten` writes them, None where the tree hasn't got it."""

    key: str
    a: str | None
    b: str | None

    def __str__(self) -> str:
        return f"{self.key}: {_shown(self.a)} -> {_shown(self.b)}"


def diff(a: Hparam, b: Hparam) -> list[Difference]:
    """The leaves that differ, sorted by key; empty exactly when a == b."""
    flat_a, flat_b = flatten(a), flatten(b)
    return [
        Difference(key, flat_a.get(key), flat_b.get(key))
        for key in sorted(flat_a.keys() | flat_b.keys())
        if flat_a.get(key) != flat_b.get(key)
    ]


def _shown(text: str | None) -> str:
    return "(absent)" if text is None else text

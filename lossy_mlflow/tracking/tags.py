"""Numbers in tags. Anybody can edit a tag, so that what can't be read as a number counts as not there."""

from __future__ import annotations

import math
from collections.abc import Mapping


def number(tags: Mapping[str, str], key: str) -> float | None:
    """The tag as a finite number; None where it is missing or says something else."""
    try:
        value = float(tags[key])
    except (KeyError, ValueError):
        return None
    return value if math.isfinite(value) else None


def whole_number(tags: Mapping[str, str], key: str) -> int | None:
    """The tag as a whole number; None where it is missing or says something else."""
    try:
        return int(tags[key])
    except (KeyError, ValueError):
        return None

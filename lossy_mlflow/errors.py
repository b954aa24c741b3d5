"""The errors that a person can mend: what went wrong in one line, the way on in the next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LossyError(Exception):
    """A fault that ends a command without a traceback.

    `what` says what was looked for, where, and what was found instead; `hint` says what to do next.
    """

    exit_code = 1

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what if not hint else f"{what}\n{hint}")
        self.what = what
        self.hint = hint


class UsageError(LossyError):
    """A value that can't be taken: a type, a name, an option."""

    exit_code = 2


class NotFoundError(LossyError):
    """A name that stands for nothing: a set, a reference, a data set, a file."""

    exit_code = 3


class ConflictError(LossyError):
    """What was asked for contradicts what is there already."""

    exit_code = 4


class UnreachableError(LossyError):
    """A server, a database or a download that doesn't answer."""

    exit_code = 5


def nearest(name: str, known: Iterable[str], n: int = 3) -> list[str]:
    """The up to `n` names among `known` that look most like `name`, best first."""
    return difflib.get_close_matches(name, list(known), n=n, cutoff=0.5)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """'did you mean a, b?', or '' where nothing is near."""
    near = nearest(name, known)
    return f"did you mean {', '.join(near)}?" if near else ""

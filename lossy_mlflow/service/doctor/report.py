"""What was found, and the book in which it is written down: every check within its time, whatever happens in it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from lossy_mlflow.errors import LossyError, UnreachableError

log = logging.getLogger("lossy_mlflow")

# More than any check's own limit: what has none, as a name that doesn't resolve or a disk that hangs, ends by this one.
_WITHIN_S = 8.0


class State(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Seen:
    """What a check saw. `remedy`: the command or setting that mends it, '' where nothing is to be done."""

    state: State
    seen: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report: what was looked at, how it is, what was seen there, what to do."""

    name: str
    state: State
    seen: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Report:
    """`exit_code`: 5 where the server or the database doesn't answer, else 1 where anything fails, else 0."""

    findings: tuple[Finding, ...]
    exit_code: int


class Book:
    """The findings so far. Checks go on when one fails."""

    def __init__(self, progress: Callable[[Finding], None] | None = None) -> None:
        self._findings: list[Finding] = []
        self._progress = progress
        self._unreachable = False

    def look(
        self,
        name: str,
        check: Callable[[], Seen],
        within_s: float = _WITHIN_S,
        silence: type[LossyError] = LossyError,
    ) -> bool:
        """Write down what `check` returns or raises; whether what depends on it can be looked at.

        `silence`: what it means where `check` doesn't come back.
        """
        outcome: list[Seen | Exception] = []

        def run() -> None:
            try:
                outcome.append(check())
            except Exception as error:
                outcome.append(error)

        # A daemon: one that hangs for ever must not keep the command from ending.
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(within_s)
        result = outcome[0] if outcome else silence(f"no answer within {within_s:.0f} s")
        self._unreachable = self._unreachable or isinstance(result, UnreachableError)
        seen = result if isinstance(result, Seen) else _failure(name, result)
        self._add(name, seen)
        return seen.state is not State.FAIL

    def skip(self, names: tuple[str, ...], why: str) -> None:
        """Write down that these were not looked at."""
        for name in names:
            self._add(name, Seen(State.SKIPPED, f"not looked at: {why}"))

    def report(self) -> Report:
        failed = any(finding.state is State.FAIL for finding in self._findings)
        return Report(tuple(self._findings), 5 if self._unreachable else 1 if failed else 0)

    def _add(self, name: str, seen: Seen) -> None:
        from lossy_mlflow.tracking.connection import without_password

        seen_in_one_line, remedy = (
            " ".join(without_password(text).splitlines()) for text in (seen.seen, seen.remedy)
        )
        finding = Finding(name, seen.state, seen_in_one_line, remedy)
        self._findings.append(finding)
        if self._progress:
            self._progress(finding)


def _failure(name: str, error: Exception) -> Seen:
    if isinstance(error, LossyError):
        return Seen(State.FAIL, error.what, error.hint)
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return Seen(State.FAIL, f"{where}{error.strerror or error}")
    # A fault of ours is no reason to keep the other findings back; -v shows where it is.
    log.info("the check of %s failed:", name, exc_info=error)
    return Seen(State.FAIL, f"the check itself failed: {type(error).__name__}: {error}")

"""What of a run a disk did not take: counted, told in one line of the log, in a tag of the run, and at the program's end."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger("lossy_mlflow.outbox")

UNSAVED_TAG = "lossy.unsaved"
_NAMED = 20

_complaints: set[str] = set()


class Unsaved:
    """What could not be kept of the run in `folder`, as of now. Threads may share it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._values = 0
        self._names: dict[str, None] = {}

    @contextmanager
    def keeping(self, what: str) -> Iterator[None]:
        """The block stores `what`. A disk that doesn't take it ends nothing here: it is told, and counted until a later block
        of the same name has stored it.
        """
        try:
            yield
        except OSError as error:
            if error.errno is None:  # not a disk's, though it is of that class: one of requests
                raise
            with self._lock:
                self._names[what] = None
            self._complain(self._place(error), error)
        else:
            with self._lock:
                self._names.pop(what, None)

    def add_value(self) -> None:
        with self._lock:
            self._values += 1

    def __len__(self) -> int:
        return self._values + len(self._names)

    def names(self) -> list[str]:
        """The oldest first: files, what else a block of `keeping` stores, and how many values."""
        with self._lock:
            return [*self._names, *([f"{self._values} values"] if self._values else [])]

    def remember(self, told: str) -> None:
        """`told`: what an earlier process has said of the run by `in_words`. It holds until it is stored after all."""
        with self._lock:
            self._names |= dict.fromkeys(told.partition(": ")[2].split(", ") if told else [])

    def complain(self, error: OSError) -> None:
        """Of what is written in this folder: one line of the log for a reason, which must not be flooded."""
        self._complain(str(self._folder), error)

    def _complain(self, place: str, error: OSError) -> None:
        text = f"{place}: {error.strerror}"
        if text not in _complaints:
            _complaints.add(text)
            log.warning(
                "what is logged can't be written (%s): it is tried again, what can't be kept is told at the end",
                text,
            )

    def _place(self, error: OSError) -> str:
        """Where a block of `keeping` failed: what it didn't write here, by that name, it made among the temporary files first."""
        if error.filename is None:
            return tempfile.gettempdir()
        file = Path(os.fsdecode(error.filename))
        here = file.is_relative_to(self._folder) or self._folder.is_relative_to(file)
        return str(self._folder) if here else tempfile.gettempdir()


def in_words(names: Sequence[str]) -> str:
    """'2: images/a.png, images/b.png'; '' for none. A tag has no room for all the names that there may be."""
    rest = [f"{len(names) - _NAMED} more"] if len(names) > _NAMED else []
    return f"{len(names)}: {', '.join([*names[:_NAMED], *rest])}" if names else ""

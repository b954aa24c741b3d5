"""How results are printed: JSON for scripts, aligned columns for people."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any, TextIO, cast

import click

from lossy_mlflow.errors import LossyError

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")


def print_json(value: Any) -> None:
    """`value`, dataclasses in it as objects, on stdout."""
    click.echo(json.dumps(value, indent=2, default=dataclasses.asdict))


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Left-aligned columns under their names, on stdout."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, *rows]:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        click.echo("  ".join(cells).rstrip())


def age(seconds: float) -> str:
    """In the largest unit of which there are two: '90 s', '12 min', '30 h', '5 d'."""
    seconds = max(0, seconds)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def one_line(text: str) -> str:
    """Others wrote it: what would move the cursor of a terminal doesn't reach it."""
    return "".join(character if character.isprintable() else " " for character in text)


def size(n_bytes: float) -> str:
    """In the largest unit of which there is one: '512 B', '1.5 kB', '20.0 MB', '3.1 GB'."""
    for unit, length in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= length:
            return f"{n_bytes / length:.1f} {unit}"
    return f"{n_bytes:.0f} B"


@contextmanager
def bytes_bar() -> Iterator[Callable[[int, int], None] | None]:
    """A bar over bytes on a terminal's stderr; elsewhere none."""
    if not sys.stderr.isatty():
        yield None
        return
    from tqdm import tqdm

    with tqdm(unit="B", unit_scale=True, dynamic_ncols=True, leave=False) as bar:

        def show(here: int, there_are: int) -> None:
            # 0: nobody knows yet.
            bar.total = max(here, there_are) if there_are else None
            bar.update(here - bar.n)

        yield show


class _Stdout:
    """The stream, of which a fault is told as a fault of the output's, wherever in the program it is met."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._fault: LossyError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._faults_told():
            return self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._faults_told():
            self._stream.flush()

    @contextmanager
    def _faults_told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # Nowhere goes also what the buffer holds: Python writes it when it ends, and would complain once more.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
            # Who has read enough, as `head` has, hears no more; what was begun goes on to its end.
            if error.errno != errno.EPIPE:
                self._fault = LossyError(
                    f"The output can't be written: {error.strerror}.", "Send stdout to another place."
                )
        # Again each time: a library that tries what a stream can do swallows the first.
        if self._fault:
            raise self._fault


@contextmanager
def explained_stdout() -> Iterator[None]:
    """Raises LossyError where what is printed in here can't be written. Where its reader has gone away, it is dropped."""
    if sys.stdout is None:  # closed by whoever started the process
        yield
        return
    stdout = _Stdout(sys.stdout)
    with redirect_stdout(cast(TextIO, stdout)):
        yield
        stdout.flush()

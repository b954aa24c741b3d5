"""A real `lossy serve`, started and ended as a person or a container does it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.conftest import clean_environment, wait_for


@dataclass(frozen=True)
class Served:
    """`log` holds all that it and its server have said."""

    process: subprocess.Popen[bytes]
    log: Path

    def family(self) -> list[psutil.Process]:
        """All processes, itself the first."""
        own = psutil.Process(self.process.pid)
        return [own, *own.children(recursive=True)]


@contextmanager
def start_lossy_serve(
    folder: Path, options: Sequence[str], environment: Mapping[str, str] | None = None
) -> Iterator[Served]:
    """`lossy serve` in `folder`, which has said that it is ready."""
    folder.mkdir(exist_ok=True)
    log = folder / "serve.log"
    state = {"HOME": str(folder), "XDG_STATE_HOME": str(folder / "state")}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "lossy_mlflow", "serve", *options],
            cwd=folder,
            env=clean_environment() | state | dict(environment or {}),
            stdout=output,
            stderr=output,
        )
    served = Served(process, log)
    try:
        wait_for(
            lambda: process.poll() is not None or "Ready: " in log.read_text(), 120, "the server is ready"
        )
        if process.poll() is not None:
            pytest.fail(f"lossy serve has ended: {log.read_text()}")
        yield served
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(60)

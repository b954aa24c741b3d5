"""Deferred calls: what another package does with the server once it answers, by its own function, each once in the end.

    python -m lossy_mlflow.outbox.calls RUN_FOLDER SERVER_RUN_ID NAME...

A call names a function of the entry-point group `lossy_mlflow.deferred_calls`, its JSON arguments, and a file that was copied
with it. It is carried out in a process of its own, which may import what it likes: a sender stays small. The function is
called as `function(run_id, arguments, file)`, with the run's id on the server and MLFLOW_TRACKING_URI naming the server, and may
be called again for what it has done already: a crash in the middle is its to bear. Of a run one process at a time carries calls
out, save where senders of several machines deliver the same folder.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import IO, Any

from lossy_mlflow.errors import LossyError
from lossy_mlflow.outbox.address import server_uri
from lossy_mlflow.outbox.claim import claim, holder_lives, release
from lossy_mlflow.outbox.folder import RunFolder
from lossy_mlflow.outbox.owner import this_place

GROUP = "lossy_mlflow.deferred_calls"
Handler = Callable[[str, dict[str, Any], Path], None]

# Before each outcome, so that what the functions print isn't taken for one.
_OUTCOME = "lossy_mlflow.outbox.calls: "

# One that fails is tried again, later each time: each try is a process that imports much.
_TRY_AGAIN_AFTER_S = 15.0
_LONGEST_WAIT_S = 600.0
# MLflow's own client would try for minutes: it is for the sender to try again.
_RETRIES = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "60"}


class CallRunner:
    """The process that carries out a run's deferred calls, one after the other."""

    def __init__(self, folder: RunFolder, uri: str) -> None:
        self._folder = folder
        self._uri = server_uri(uri)
        self._work: tuple[str, subprocess.Popen[bytes], IO[bytes]] | None = None
        self._pause = _TRY_AGAIN_AFTER_S
        self._not_before = 0.0

    def poll(self, names: list[str], run_id: str) -> tuple[list[str], str]:
        """Start on the calls `names` of the run `run_id` (its id on the server), or see how far they are.

        Returns the names of those that were done since the last time, and why the next one fails, or ''.
        """
        if self._work is None:
            if time.monotonic() >= self._not_before and not holder_lives(_turn(self._folder)):
                self._work = (run_id, *self._start(names, run_id))
            return [], ""
        for_run, process, output = self._work
        if process.poll() is None:
            return [], ""
        self._work = None
        done, error = _read_outcome(output)
        if for_run != run_id:  # the run was made again meanwhile: what was done was done with another
            return [], ""
        if not error and process.returncode:
            error = f"the process that carries it out ended with exit code {process.returncode}"
        self._pause = min(2 * self._pause, _LONGEST_WAIT_S) if error else _TRY_AGAIN_AFTER_S
        self._not_before = time.monotonic() + self._pause if error else 0.0
        return done, error

    def _start(self, names: list[str], run_id: str) -> tuple[subprocess.Popen[bytes], IO[bytes]]:
        # A file, and not a pipe: nobody reads while it writes.
        output = tempfile.TemporaryFile()  # noqa: SIM115 (it is open for as long as the process works)
        process = subprocess.Popen(
            [sys.executable, "-m", "lossy_mlflow.outbox.calls", str(self._folder.path), run_id, *names],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.DEVNULL,
            env={**_RETRIES, **os.environ, "MLFLOW_TRACKING_URI": self._uri},
        )
        return process, output


def _read_outcome(output: IO[bytes]) -> tuple[list[str], str]:
    """The calls that were done, and why the next one failed, or ''."""
    with output:
        output.seek(0)
        lines = [
            line.removeprefix(_OUTCOME)
            for line in output.read().decode(errors="replace").splitlines()
            if line.startswith(_OUTCOME)
        ]
    outcomes = [line.partition(" ") for line in lines]
    done = [text for kind, _, text in outcomes if kind == "done"]
    return done, next((text for kind, _, text in outcomes if kind == "error"), "")


def handler(name: str) -> Handler:
    """The function that is registered for calls of this name. Raises LossyError where none is."""
    found = entry_points(group=GROUP, name=name)
    if not found:
        raise LossyError(
            f"nothing is installed here that carries out {name!r}", "Send it where the program ran."
        )
    function: Handler = next(iter(found)).load()
    return function


def _turn(folder: RunFolder) -> Path:
    """Held by the process that carries out the run's calls in this place: it may outlive the sender that has started it."""
    return folder.path / f"calls-{this_place()}"


def _carry_out(folder: RunFolder, run_id: str, names: Sequence[str]) -> None:
    """The calls in turn, up to the first that fails; each outcome is a line."""
    calls = {call.name: call for call in folder.calls()}
    for name in names:
        call = calls[name]
        file = folder.files / call.file
        try:
            if not file.exists() or file.stat().st_size != call.size:
                raise LossyError(f"the file {file} is not there, or not whole yet: copy the folder again")
            handler(call.function)(run_id, call.arguments, file)
        except Exception as error:  # whatever it is: the sender tells, and tries again
            words = " ".join((str(error) or type(error).__name__).split())
            print(f"{_OUTCOME}error {call.function}: {words[:500]}", flush=True)
            return
        print(f"{_OUTCOME}done {name}", flush=True)


def main() -> None:
    path, run_id, *names = sys.argv[1:]
    folder = RunFolder(Path(path))
    if not claim(_turn(folder)):
        return
    try:
        _carry_out(folder, run_id, names)
    finally:
        release(_turn(folder))


if __name__ == "__main__":
    main()

"""A small process that outlives a training that dies, and says so on the server.

It waits at a pipe whose other end only the training holds: the kernel closes that end however the training ends (kill -9,
out of memory, os._exit). A training that has ended its run by its own hand writes a word first; one that can't, since what it
needs for that is half loaded, writes what the run should say. Until then it loads little more than the standard library.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from types import TracebackType
from typing import Self

from lossy_mlflow.outbox.owner import DIED

_ENDED = b"ended\n"
_TRY_AGAIN_AFTER_S = 30
_TRIES = 120
_WAIT_FOR_IT_S = 20


class Watcher:
    """In the training: the process that watches over `attempt` of the run, from entry on.

    Unless `run_has_ended` or `end_run` was called before the block is left, it ends the run as FAILED. The attempt '' is that of
    a run that was made beforehand: once a training has begun in it, this watcher has nothing more to do with it.
    """

    def __init__(self, run_id: str, attempt: str, tracking_uri: str) -> None:
        self._arguments = [run_id, attempt]
        self._uri = tracking_uri
        self._last_word = b""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "lossy_mlflow.tracking.watcher", *self._arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "MLFLOW_TRACKING_URI": self._uri},
            # Ctrl-C and the end of a terminal go to the whole group: the watcher must outlive them.
            start_new_session=True,
        )
        assert self._process.stdin is not None
        self._pipe = self._process.stdin
        # A forked child, a data loader's worker say, must not keep the pipe open when the training dies.
        os.register_at_fork(after_in_child=self._pipe.close)
        return self

    def run_has_ended(self) -> None:
        self._last_word = _ENDED

    def end_run(self, state: str, reason: str) -> None:
        """On leaving the block: end the run in this state."""
        self._last_word = json.dumps([state, reason]).encode() + b"\n"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._pipe.write(self._last_word)
            self._pipe.close()
        except BrokenPipeError:  # the watcher was killed: nothing is left to be told
            pass
        if self._last_word:
            # Where the server is away, it goes on trying alone.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_WAIT_FOR_IT_S)


def main() -> None:
    """In the watcher: wait for the end of the training, and close its run if it didn't."""
    run_id, attempt = sys.argv[1:]
    last_word = sys.stdin.buffer.readline()
    if last_word == _ENDED:
        return
    state, reason = json.loads(last_word) if last_word else ("FAILED", DIED)
    for _ in range(_TRIES):
        try:
            _close(run_id, attempt, state, reason)
            return
        except Exception:  # whatever is in the way, a server that is away most likely, may pass
            time.sleep(_TRY_AGAIN_AFTER_S)


def _close(run_id: str, attempt: str, state: str, reason: str) -> None:
    from mlflow import MlflowClient

    client = MlflowClient()
    run = client.get_run(run_id)
    # Another attempt may have taken the run up meanwhile: then it lives.
    if run.info.status == "RUNNING" and run.data.tags.get("attempt", "") == attempt:
        client.set_tag(run_id, "state_reason", reason)
        client.set_terminated(run_id, state)


if __name__ == "__main__":
    main()

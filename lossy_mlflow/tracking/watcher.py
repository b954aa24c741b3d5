"""A small process that outlives a training that dies, and says so on the server.

It waits at a pipe whose other end only the training holds: the kernel closes that end however the training ends (kill -9,
out of memory, os._exit). A training that ends by its own hand writes a word first. Until then nothing but the standard
library is loaded.
"""

from __future__ import annotations

import os
import subprocess
import sys
from types import TracebackType
from typing import Self

_ENDED = b"ended\n"
REASON = "The process died before it could end the run (kill -9, out of memory, or os._exit)."


class Watcher:
    """In the training: starts the process for `run_id` on entry; on exit tells it that the run was ended properly."""

    def __init__(self, run_id: str, tracking_uri: str) -> None:
        self._run_id = run_id
        self._uri = tracking_uri

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "lossy_mlflow.tracking.watcher", self._run_id],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "MLFLOW_TRACKING_URI": self._uri},
            # Ctrl-C and the end of a terminal go to the whole group: the watcher must outlive them.
            start_new_session=True,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pipe = self._process.stdin
        assert pipe is not None
        try:
            pipe.write(_ENDED)
            pipe.close()
        except BrokenPipeError:  # the watcher was killed: nothing is left to be told
            pass
        self._process.wait()


def main() -> None:
    """In the watcher: wait for the end of the training, and close its run if it didn't."""
    run_id = sys.argv[1]
    if sys.stdin.buffer.read().endswith(_ENDED):
        return
    from mlflow import MlflowClient

    client = MlflowClient()
    if client.get_run(run_id).info.status == "RUNNING":
        client.set_tag(run_id, "state_reason", REASON)
        client.set_terminated(run_id, "FAILED")


if __name__ == "__main__":
    main()

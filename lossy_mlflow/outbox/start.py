"""Starting a sender, from a program that logs and from any later command."""

from __future__ import annotations

import math
import os
import subprocess
import sys

from lossy_mlflow.errors import UsageError
from lossy_mlflow.outbox.address import PREFIX, credentials_in, server_uri
from lossy_mlflow.outbox.claim import holder_lives, sender_file
from lossy_mlflow.outbox.folder import RunFolder, ServerFolder

_DELAY_VARIABLE = "LOSSY_OUTBOX_DELAY"
DELAY_S = 1.0


def sending_delay() -> float:
    """What a living program logs goes out at most so often, in seconds, as the environment says. Raises UsageError."""
    text = os.environ.get(_DELAY_VARIABLE) or str(DELAY_S)
    try:
        delay = float(text)
    except ValueError:
        delay = math.nan
    if not 0 <= delay < math.inf:
        raise UsageError(
            f"{_DELAY_VARIABLE} is {text!r}, which is no number of seconds.",
            f"export {_DELAY_VARIABLE}=5    or have one second: unset {_DELAY_VARIABLE}",
        )
    return delay


def ensure_sender(folder: ServerFolder, uri: str) -> bool:
    """Start the folder's sender for this machine, unless one is at work; whether it was started.

    `uri`: the outbox URI, with its credentials if any.
    """
    if holder_lives(sender_file(folder.path)):
        return False
    subprocess.Popen(
        [sys.executable, "-m", "lossy_mlflow.outbox.sender", str(folder.path)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **credentials_in(uri), "MLFLOW_TRACKING_URI": PREFIX + server_uri(uri)},
        cwd=folder.path,
        # Ctrl-C and the end of a terminal go to the whole group: the sender must outlive them.
        start_new_session=True,
    )
    return True


def take_up(uri: str) -> None:
    """Start a sender for what programs of this machine have left for the server `uri`, if anything waits."""
    folder = ServerFolder.of(uri)
    if folder.path.is_dir() and any(something_waits(run, uri) for run in folder.runs()):
        ensure_sender(folder, uri)


def something_waits(run: RunFolder, uri: str) -> bool:
    """Whether the server doesn't have all of the run, as far as the sizes of its segments tell."""
    state = run.delivered(uri)
    return bool(run.waiting_calls(uri)) or any(
        segment.size() > state.reached(segment.name) for segment in run.segments()
    )

"""What the way in which a training ended makes of its run: its state, and the reason for it."""

from __future__ import annotations

import signal

from lossy_mlflow.errors import LossyError
from lossy_mlflow.tracking.connection import without_password

_REASON_LENGTH = 500


class StoppedError(LossyError):
    """Somebody asked the process to stop, by the signal of this name; its run is KILLED."""

    def __init__(self, signal_name: str, what: str, hint: str) -> None:
        super().__init__(what, hint)
        # As a shell counts it: 130 after Ctrl-C, 143 after SIGTERM, 138 after SIGUSR1.
        self.exit_code = 128 + signal.Signals[signal_name].value


def state_and_reason(error: BaseException) -> tuple[str, str]:
    """KILLED where somebody stopped it, else FAILED; and the error in a line or two, without passwords."""
    stopped = isinstance(error, (StoppedError, KeyboardInterrupt))
    reason = error.what if isinstance(error, LossyError) else f"{type(error).__name__}: {error}".rstrip(": ")
    return "KILLED" if stopped else "FAILED", without_password(reason)[:_REASON_LENGTH]

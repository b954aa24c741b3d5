"""Ctrl-C and SIGTERM as a question that a training loop can ask between two batches."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Asked as a function: has anyone asked this process to stop? `name` says who ('SIGTERM')."""

    name = ""

    def __call__(self) -> bool:
        return bool(self.name)


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Takes SIGINT and SIGTERM for the length of the block. A second Ctrl-C interrupts at once.

    Outside the main thread, where Python gives no signals, nobody ever asks.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def handle(number: int, _frame: FrameType | None) -> None:
        if request.name and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.name = signal.Signals(number).name

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

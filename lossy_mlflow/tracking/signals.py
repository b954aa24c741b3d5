"""Ctrl-C, SIGTERM and SIGUSR1 as a question that a training loop can ask between two batches."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil

log = logging.getLogger("lossy_mlflow")

_LOOK_EVERY_S = 0.5


class StopRequest:
    """Asked as a function: has anyone asked this process to stop? `name` says who ('SIGTERM')."""

    name = ""

    def __call__(self) -> bool:
        return bool(self.name)


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Takes SIGINT, SIGTERM and SIGUSR1 for the length of the block. A second Ctrl-C interrupts at once.

    SIGUSR1 is what batch systems send before they pre-empt a job. A program that has given it a meaning of its own keeps that.
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

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL:
        numbers.append(signal.SIGUSR1)
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def terminate_with(pid: int) -> None:
    """From now on this process gets SIGTERM as soon as the process `pid` has ended, however it ended."""
    import psutil

    try:
        process = psutil.Process(pid)
    except psutil.NoSuchProcess:
        _terminate(pid)
        return

    def watch() -> None:
        while _lives(process):
            time.sleep(_LOOK_EVERY_S)
        _terminate(pid)

    threading.Thread(target=watch, name="lossy-terminate-with", daemon=True).start()


def _lives(process: psutil.Process) -> bool:
    """Whether it is the same process still: neither gone, nor replaced by one of its id, nor dead and waiting to be buried."""
    import psutil

    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _terminate(pid: int) -> None:
    log.warning("the process %d, which started this one, has ended: stopping", pid)
    os.kill(os.getpid(), signal.SIGTERM)

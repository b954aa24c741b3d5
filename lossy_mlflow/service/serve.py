"""`mlflow server` as a child: started with its settings, told when it is ready, ended with all its workers."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import platformdirs

from lossy_mlflow.errors import LossyError
from lossy_mlflow.service.address import answers, remove_stale
from lossy_mlflow.service.connections import demands, pool_for
from lossy_mlflow.service.settings import GRACE_S, Serving, Settings, server_settings
from lossy_mlflow.service.stores import AUTH_CONFIG_VARIABLE, Stores

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# Beyond what the workers are given for their requests.
_END_WITHIN_S = GRACE_S + 15
_ASK_EVERY_S = 0.2
# A process that is killed ends at once; where nobody reaps the orphans of a container, its entry stays.
_GONE_WITHIN_S = 5
_PR_SET_PDEATHSIG = 1


def serve(
    stores: Stores, serving: Serving, given: Mapping[str, str], ready: Callable[[], None] = lambda: None
) -> None:
    """Serve until SIGTERM, SIGINT or SIGHUP, in the environment `given`. `ready` is called once, when the server answers.

    All that the server has started has ended when this returns. What it says goes to stderr. Raises LossyError where it ends by
    itself, or has to be killed.
    """
    settings = server_settings(stores, serving, given, pool_for(demands(stores, serving), given))
    with (
        _no_stale_socket(serving),
        _configured(settings) as environment,
        _Child(settings.arguments, environment) as child,
    ):
        while child.runs() and not answers(serving):
            time.sleep(_ASK_EVERY_S)
        if child.runs() and not child.told_to_end:
            ready()
        child.wait()


@contextmanager
def _no_stale_socket(serving: Serving) -> Iterator[None]:
    """One that was left behind would keep workers from listening there."""
    if not serving.socket:
        yield
        return
    remove_stale(serving.socket)
    try:
        yield
    finally:
        remove_stale(serving.socket)


@contextmanager
def _configured(settings: Settings) -> Iterator[dict[str, str]]:
    """The environment, once the file of the users' settings is written: this process's own, where several machines share a home.
    No cleaner of temporary files may find it: a worker that is started anew reads it again.
    """
    if not settings.users_config:
        yield settings.environment
        return
    folder = platformdirs.user_state_path("lossy_mlflow") / "serve"
    file = folder / f"{socket.gethostname()}-{os.getpid()}.ini"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _remove_what_the_killed_have_left(folder)
        file.touch(mode=0o600)
        file.write_text(settings.users_config)
    except OSError as error:
        raise LossyError(
            f"{file} can't be written: {error.strerror}.",
            "Name a folder that can be: export XDG_STATE_HOME=...",
        ) from error
    try:
        yield settings.environment | {AUTH_CONFIG_VARIABLE: str(file)}
    finally:
        file.unlink(missing_ok=True)


def _remove_what_the_killed_have_left(folder: Path) -> None:
    import psutil

    for file in folder.glob(f"{socket.gethostname()}-*.ini"):
        pid = file.stem.rpartition("-")[2]
        if pid.isdecimal() and not psutil.pid_exists(int(pid)):
            file.unlink(missing_ok=True)


class _Child:
    """`mlflow server` in a process group of its own, which is gone when the block ends."""

    def __init__(self, arguments: list[str], environment: dict[str, str]) -> None:
        self._command = [sys.executable, "-m", "mlflow", "server", *arguments]
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        self._before: dict[signal.Signals, signal._HANDLER] = {}
        self._timer = threading.Timer(_END_WITHIN_S, self._kill)
        self._timer.daemon = True
        self._killed = False
        self.told_to_end = False

    def __enter__(self) -> _Child:
        for number in _SIGNALS:
            # nohup, and a shell that puts a command into the background, have some ignored.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._end)
        # Results go to stdout, and the server has none. A Ctrl-C reaches its group by way of `_end` alone, once.
        self._process = subprocess.Popen(
            self._command,
            env=self._environment,
            stdout=sys.stderr.fileno(),
            start_new_session=True,
            preexec_fn=_ending_with_parent(),
        )
        if self.told_to_end:
            os.kill(self._process.pid, signal.SIGTERM)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process
        if self.runs():
            # The block was left by an error of ours.
            self._end(signal.SIGTERM, None)
            os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        self._timer.cancel()
        self._kill_group()
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._process.wait()
        until = time.monotonic() + _GONE_WITHIN_S
        while self._group_lives() and time.monotonic() < until:
            time.sleep(0.01)

    def runs(self) -> bool:
        """Looked at without taking the process's id from it, so that its group can't be another's yet."""
        assert self._process
        return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None

    def wait(self) -> None:
        """Until the server has ended. Raises LossyError where it wasn't told to, or didn't listen."""
        assert self._process
        os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        if self._killed:
            raise LossyError(f"The server didn't end within {_END_WITHIN_S} s, and was killed.")
        if not self.told_to_end:
            raise LossyError("The server has ended by itself.", "What it says of that stands above.")

    def _end(self, _number: int, _frame: FrameType | None) -> None:
        if self.told_to_end:
            return
        self.told_to_end = True
        self._timer.start()
        if self._process:
            os.kill(self._process.pid, signal.SIGTERM)

    def _group_lives(self) -> bool:
        assert self._process
        try:
            os.killpg(self._process.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def _kill(self) -> None:
        self._killed = True
        self._kill_group()

    def _kill_group(self) -> None:
        """Workers whose parent was killed would go on."""
        assert self._process
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)


def _ending_with_parent() -> Callable[[], None] | None:
    """What a child does first: have Linux send it SIGTERM when its parent dies, also of `kill -9`; None on other systems.

    The parent is the thread that starts it, here the one that waits for it.
    """
    if not sys.platform.startswith("linux"):
        return None
    # Loaded here: between fork and exec as little as can be is done.
    prctl = ctypes.CDLL(None).prctl
    return lambda: prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))

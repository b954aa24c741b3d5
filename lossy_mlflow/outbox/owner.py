"""Who writes a file of the outbox, and whether that process still lives."""

from __future__ import annotations

import functools
import os
import platform
from dataclasses import dataclass
from pathlib import Path

# What a run says whose process died.
DIED = "The process died before it could end the run (kill -9, out of memory, or os._exit)."


@dataclass(frozen=True, slots=True)
class Owner:
    """A process, named so that no other one is ever taken for it: pids are used again, containers share a boot id.

    `start` is in clock ticks since the boot. Its text is BOOT.NAMESPACE.PID.START.
    """

    boot: str
    namespace: str
    pid: int
    start: int

    def __str__(self) -> str:
        return f"{self.place}.{self.pid}.{self.start}"

    @property
    def place(self) -> str:
        """Where its pid means something: one PID namespace of one boot of one machine."""
        return f"{self.boot}.{self.namespace}"

    def lives(self) -> bool | None:
        """Whether the process lives; None where that can't be known, because it belongs to another place."""
        if self.place != this_place():
            return None
        return _start_of(self.pid) == self.start


def this_process() -> Owner:
    return _owner_of(os.getpid())


@functools.cache
def _owner_of(pid: int) -> Owner:
    boot, namespace = this_place().split(".")
    return Owner(boot, namespace, pid, _start_of(pid) or 0)


# A child may get the pid of a dead forebear that has asked before.
os.register_at_fork(after_in_child=_owner_of.cache_clear)


def read_owner(text: str) -> Owner | None:
    """The owner that `str` made into this text; None if it is none."""
    try:
        boot, namespace, pid, start = text.split(".")
        return Owner(boot, namespace, int(pid), int(start))
    except ValueError:
        return None


@functools.cache
def this_place() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")
        namespace = Path("/proc/self/ns/pid").readlink().name.strip("pid:[]")
    except OSError:  # no Linux: the machine's name must do
        return f"{platform.node().replace('.', '-') or 'localhost'}.0"
    return f"{boot}.{namespace}"


def _start_of(pid: int) -> int | None:
    """When the process started; None where there is none, or one that is dead and not yet waited for."""
    try:
        # A name is bytes, cut at 15 of them, in the middle of a letter if need be.
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None if Path("/proc/self").exists() else _start_by_psutil(pid)
    # The name, in brackets, may hold anything; the fields behind it are numbers but for the state.
    state, *rest = stat[stat.rindex(")") + 2 :].split()
    return None if state in "ZX" else int(rest[18])


def _start_by_psutil(pid: int) -> int | None:
    import psutil

    try:
        return int(psutil.Process(pid).create_time())
    except psutil.Error:
        return None

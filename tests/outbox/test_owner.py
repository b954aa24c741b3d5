"""Whether a writer lives: told rightly of the dead, of pids that are used again, and of other machines not at all."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lossy_mlflow.outbox.owner import Owner, read_owner, this_place, this_process

linux_only = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
ROOT = Path(__file__).parents[2]

# It names itself as its first word says, tells who it is, and waits.
PROGRAM = """
import sys
from pathlib import Path
from lossy_mlflow.outbox.owner import this_process
if len(sys.argv) > 1:
    Path("/proc/self/comm").write_bytes(bytes.fromhex(sys.argv[1]))
print(this_process(), flush=True)
sys.stdin.readline()
"""


def _start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *words],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _told_by(process: subprocess.Popen[str]) -> Owner:
    assert process.stdout
    owner = read_owner(process.stdout.readline().strip())
    assert owner
    return owner


@pytest.fixture
def program() -> Iterator[subprocess.Popen[str]]:
    process = _start()
    yield process
    process.kill()
    process.communicate()


def test_this_process_lives() -> None:
    assert this_process().pid == os.getpid()
    assert this_process().place == this_place()
    assert this_process().lives() is True


def test_a_process_lives_until_it_is_killed(program: subprocess.Popen[str]) -> None:
    """Dead at once, though its parent hasn't waited for it: a trainer's launcher may never do so."""
    owner = _told_by(program)
    assert owner.pid == program.pid
    assert owner.lives() is True
    assert owner != this_process()
    program.kill()
    until = time.monotonic() + 10
    while psutil.Process(program.pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert owner.lives() is False
    program.wait()
    assert owner.lives() is False


def test_a_stopped_process_lives(program: subprocess.Popen[str]) -> None:
    owner = _told_by(program)
    process = psutil.Process(program.pid)
    process.suspend()
    until = time.monotonic() + 10
    while process.status() != psutil.STATUS_STOPPED:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert owner.lives() is True


def test_another_process_with_its_pid_is_not_it(program: subprocess.Popen[str]) -> None:
    owner = _told_by(program)
    assert dataclasses.replace(owner, start=owner.start - 1).lives() is False


def test_of_another_boot_or_container_nothing_is_known() -> None:
    own = this_process()
    assert dataclasses.replace(own, boot="0" * 32).lives() is None
    assert dataclasses.replace(own, namespace=own.namespace + "1").lives() is None


@linux_only
@pytest.mark.parametrize(
    "name",
    [
        b"a) Z 1 (b",
        b"))) ((",
        b"two  blanks",
        b") Z",
        b"line\nbreak",
        "Vögel lernen".encode()[:2],  # names are cut at 15 bytes, in the middle of a letter if need be
        b"\xff\xfe",
    ],
    ids=repr,
)
def test_a_process_may_be_called_anything(name: bytes) -> None:
    process = _start(name.hex())
    try:
        owner = _told_by(process)
        assert Path(f"/proc/{process.pid}/comm").read_bytes() == name + b"\n"
        assert owner.start > 0
        assert owner.lives() is True
        assert dataclasses.replace(owner, start=owner.start + 1).lives() is False
    finally:
        process.communicate("\n")
    assert owner.lives() is False


def test_a_forked_child_is_another_one() -> None:
    reading, writing = os.pipe()
    parent = this_process()
    child = os.fork()
    if not child:
        try:
            os.write(writing, f"{this_process()} {parent.lives()}".encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        told, parent_lives = pipe.read().split()
    owner = read_owner(told)
    os.waitpid(child, 0)
    assert owner
    assert owner.pid == child
    assert owner != parent
    assert owner.lives() is False
    assert parent_lives == "True"


# The first process of a PID namespace of its own: there a pid can be given out again at once.
CHAIN = """
import os, sys, time
from pathlib import Path
from lossy_mlflow.outbox.owner import this_process

def fork(next_pid):
    Path("/proc/sys/kernel/ns_last_pid").write_text(str(next_pid - 1))
    return os.fork()

if not fork(100):
    first = this_process()
    if not fork(101):
        time.sleep(0.2)  # the first one is gone, and its pid free
        if not fork(100):
            print(first, this_process(), this_process().lives(), flush=True)
            os._exit(0)
        os.wait()
    os._exit(0)
for _ in range(2):
    os.wait()
"""


@linux_only
def test_a_child_that_gets_the_pid_of_its_dead_grandparent_is_itself() -> None:
    done = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", CHAIN],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
    )
    if "Operation not permitted" in done.stderr or "Read-only file system" in done.stderr:
        pytest.skip("may not make a PID namespace here")
    assert done.returncode == 0, done.stderr
    first, second, lives = done.stdout.split()
    assert first.split(".")[:3] == second.split(".")[:3]
    assert first != second
    assert lives == "True"


words = st.text("0123456789abcdefghijklmnopqrstuvwxyz-", min_size=1)
numbers = st.integers(min_value=0, max_value=2**63)


@given(st.builds(Owner, words, words, numbers, numbers))
def test_a_file_name_says_who_wrote_it(owner: Owner) -> None:
    assert read_owner(str(owner)) == owner
    assert "/" not in str(owner)


@pytest.mark.parametrize(
    "text", ["", ".", "...", "a.b.c.d", "boot.1.2", "boot.1.2.3.4", "000001", "x.y.1.2 z"]
)
def test_what_names_no_process_is_none(text: str) -> None:
    assert read_owner(text) is None


@given(st.text())
def test_any_text_may_stand_in_a_name(text: str) -> None:
    owner = read_owner(text)
    assert owner is None or read_owner(str(owner)) == owner

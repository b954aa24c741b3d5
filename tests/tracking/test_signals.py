"""Signals as a question, for the length of a training; and a process that ends with another."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from types import FrameType

import pytest

from lossy_mlflow.tracking.signals import stop_request


@pytest.fixture(autouse=True)
def handlers_as_before() -> Iterator[None]:
    numbers = (signal.SIGTERM, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_a_question_that_says_its_name(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with stop_request() as asked:
        assert not asked()
        os.kill(os.getpid(), number)
        assert asked()
        assert asked.name == number.name
    assert signal.getsignal(number) is before


def test_a_meaning_that_the_program_has_given_to_sigusr1_stays() -> None:
    heard = []

    def mine(number: int, _frame: FrameType | None) -> None:
        heard.append(number)

    signal.signal(signal.SIGUSR1, mine)
    with stop_request() as asked:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert not asked()
    assert heard == [signal.SIGUSR1]


WATCHES = textwrap.dedent("""
    import sys, time
    from lossy_mlflow.tracking.signals import terminate_with
    terminate_with(int(sys.argv[1]))
    print("watching", flush=True)
    time.sleep(60)
""")


def test_a_process_ends_with_the_one_it_was_told() -> None:
    # Nobody waits for it while the other looks: it stays there as a dead entry of the process table.
    leader = subprocess.Popen(["sleep", "60"])
    follower = subprocess.Popen([sys.executable, "-c", WATCHES, str(leader.pid)], stdout=subprocess.PIPE)
    assert follower.stdout is not None
    assert follower.stdout.readline() == b"watching\n"
    with pytest.raises(subprocess.TimeoutExpired):
        follower.wait(timeout=2)
    leader.kill()
    assert follower.wait(timeout=20) == -signal.SIGTERM
    leader.wait()


def test_a_process_that_had_ended_before_is_noticed() -> None:
    leader = subprocess.Popen(["true"])
    leader.wait()
    follower = subprocess.run([sys.executable, "-c", WATCHES, str(leader.pid)], timeout=30)
    assert follower.returncode == -signal.SIGTERM

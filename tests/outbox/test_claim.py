"""One sender a folder and place: of several that want it one has it, and a dead one's claim keeps nobody out."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lossy_mlflow.outbox.claim import claim, holder_lives, release, sender_file
from lossy_mlflow.outbox.owner import Owner, read_owner, this_place, this_process

ROOT = Path(__file__).parents[2]
ROUNDS = 100

# It does what its lines say, at the moment that they name (a clock that all processes of a machine share).
WORKER = """
import sys, time
from pathlib import Path
from lossy_mlflow.outbox.claim import claim, release
from lossy_mlflow.outbox.owner import this_process
print(this_process(), flush=True)
for line in sys.stdin:
    what, moment, path = line.rstrip("\\n").split(" ", 2)
    while time.monotonic() < float(moment):
        pass
    print(claim(Path(path)) if what == "claim" else release(Path(path)), flush=True)
"""


class Worker:
    """A process of its own that claims and releases when it is told to."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.owner = read_owner(self.answer())
        assert self.owner

    def tell(self, what: str, path: Path, moment: float = 0) -> None:
        assert self.process.stdin
        self.process.stdin.write(f"{what} {moment} {path}\n")
        self.process.stdin.flush()

    def answer(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def claims(self, path: Path) -> bool:
        self.tell("claim", path)
        return self.answer() == "True"

    def releases(self, path: Path) -> None:
        self.tell("release", path)
        assert self.answer() == "None"

    def die(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def start() -> Iterator[Callable[[], Worker]]:
    started: list[Worker] = []

    def _start() -> Worker:
        started.append(Worker())
        return started[-1]

    yield _start
    for worker in started:
        worker.die()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return sender_file(tmp_path)


def _dead() -> Owner:
    """A process that had this one's pid before it."""
    return dataclasses.replace(this_process(), start=this_process().start - 1)


def _nothing_beside(path: Path) -> bool:
    return {other.name for other in path.parent.iterdir()} <= {path.name}


def test_it_is_one_a_place(tmp_path: Path) -> None:
    """A container that shares the folder has a sender of its own: neither can tell whether the other's lives."""
    assert sender_file(tmp_path) == tmp_path / f"sender-{this_place()}"


def test_a_claim_holds_until_it_is_released(path: Path, start: Callable[[], Worker]) -> None:
    other = start()
    assert not holder_lives(path)
    assert claim(path)
    assert read_owner(path.read_text()) == this_process()
    assert holder_lives(path)
    assert not other.claims(path)
    other.releases(path)  # it isn't its own: nothing happens
    assert holder_lives(path)
    assert claim(path)  # what it has already
    assert _nothing_beside(path)
    release(path)
    assert not path.exists()
    release(path)
    assert other.claims(path)
    assert not claim(path)
    assert read_owner(path.read_text()) == other.owner
    assert _nothing_beside(path)


def test_what_a_killed_one_has_claimed_is_taken_over(path: Path, start: Callable[[], Worker]) -> None:
    killed, next_one = start(), start()
    assert killed.claims(path)
    assert not next_one.claims(path)
    killed.die()
    assert not holder_lives(path)
    assert next_one.claims(path)
    assert read_owner(path.read_text()) == next_one.owner
    assert not claim(path)
    assert _nothing_beside(path)


def test_a_reused_pid_keeps_nobody_out(path: Path) -> None:
    path.write_text(str(_dead()))
    assert not holder_lives(path)
    assert claim(path)
    assert read_owner(path.read_text()) == this_process()


@pytest.mark.parametrize("content", [b"", b"\0\0\0\0", b"not an owner", b"\xff\xfe\x00"], ids=repr)
def test_a_file_that_names_nobody_keeps_nobody_out(path: Path, content: bytes) -> None:
    """As a crash of the machine may leave it."""
    path.write_bytes(content)
    assert not holder_lives(path)
    assert claim(path)
    assert read_owner(path.read_text()) == this_process()
    release(path)
    assert not path.exists()


@pytest.mark.parametrize("content", [b"", b"\xff"], ids=repr)
def test_releasing_what_names_nobody_leaves_it(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    release(path)
    assert path.exists()


@pytest.mark.parametrize("before", ["nobody", "a dead one", "one that died while it took over"])
@pytest.mark.parametrize("number", [2, 4])
def test_of_several_that_claim_at_once_one_has_it(
    path: Path, start: Callable[[], Worker], before: str, number: int
) -> None:
    workers = [start() for _ in range(number)]
    won = []
    for _ in range(ROUNDS):
        if before != "nobody":
            path.write_text(str(_dead()))
        if before == "one that died while it took over":
            path.with_name(f".{path.name}.removing").write_text(str(_dead()))
        moment = time.monotonic() + 0.002
        for worker in workers:
            worker.tell("claim", path, moment)
        answers = [worker.answer() for worker in workers]
        (winner,) = [worker for worker, has in zip(workers, answers, strict=True) if has == "True"]
        assert read_owner(path.read_text()) == winner.owner
        assert _nothing_beside(path)
        winner.releases(path)
        assert not path.exists()
        won.append(winner)
    # They did race: had one always been the first, the rounds would have shown nothing.
    assert len(set(won)) > 1


def test_one_goes_while_another_looks(path: Path, start: Callable[[], Worker]) -> None:
    """A claim that is released at the moment at which somebody reads it: either answer is right, an error is not."""
    other = start()
    for _ in range(ROUNDS):
        assert other.claims(path)
        other.tell("release", path, time.monotonic() + 0.001)
        until = time.monotonic() + 0.003
        has = False
        while time.monotonic() < until and not has:
            has = claim(path)
        assert other.answer() == "None"
        assert has == path.exists()
        release(path)

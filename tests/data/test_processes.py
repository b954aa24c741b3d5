"""Twenty processes that want the same files at once."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lossy_mlflow.data.catalogue import Dataset

# What the child runs: the data set is written into it as Python, which a dataclass's repr is.
PROGRAM = """
import hashlib, sys
from pathlib import Path
from lossy_mlflow.data.catalogue import Archive, Dataset, ImageFile
from lossy_mlflow.data.fetch import verified_files

def say(line):
    print(line, file=sys.stderr, flush=True)

contents = verified_files({dataset!r}, Path({folder!r}), say)
print(*(f"{{name}} {{hashlib.sha256(content).hexdigest()}}" for name, content in contents.items()))
"""


class Children:
    """Processes of PROGRAM, whose output goes to files."""

    def __init__(self, dataset: Dataset, folder: Path, logs: Path) -> None:
        self._program = PROGRAM.format(dataset=dataset, folder=str(folder))
        self._logs = logs
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, n: int) -> None:
        for i in range(len(self.processes), len(self.processes) + n):
            with (self._logs / f"{i}.out").open("wb") as out, (self._logs / f"{i}.err").open("wb") as err:
                process = subprocess.Popen([sys.executable, "-c", self._program], stdout=out, stderr=err)
            self.processes.append(process)

    def said(self, i: int) -> str:
        return (self._logs / f"{i}.err").read_text()

    def results(self, which: range) -> set[tuple[int, str]]:
        """The different (exit code, output) of these processes, once they have ended."""
        return {(self.processes[i].wait(60), (self._logs / f"{i}.out").read_text()) for i in which}

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture
def children(two_archives, tmp_path):
    logs = tmp_path / "logs"
    logs.mkdir()
    children = Children(two_archives.dataset, tmp_path / "data", logs)
    yield children
    children.kill()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def digests(contents: dict[str, bytes]) -> str:
    """What PROGRAM prints of these contents."""
    return (
        " ".join(f"{name} {hashlib.sha256(content).hexdigest()}" for name, content in contents.items()) + "\n"
    )


def test_twenty_at_once_download_once_and_agree(children, server, two_archives):
    server.fault = "silent"
    children.start(20)
    wait_until(lambda: sum("waiting for another process" in children.said(i) for i in range(20)) == 19)
    server.go_on.set()
    ((code, output),) = children.results(range(20))
    assert code == 0
    assert output == digests(two_archives.contents)
    assert server.requests == {"/train-images.gz": 1, "/test-images.gz": 1}


def test_nineteen_go_on_when_the_holder_is_killed(children, server, two_archives, tmp_path):
    server.fault = "silent"
    children.start(1)
    wait_until(lambda: server.requests["/train-images.gz"] == 1)  # it holds the lock, half way through
    children.start(19)
    wait_until(lambda: all("waiting for another process" in children.said(i) for i in range(1, 20)))

    server.fault = ""
    children.processes[0].kill()
    ((code, output),) = children.results(range(1, 20))
    assert code == 0
    assert output == digests(two_archives.contents)
    assert server.requests == {"/train-images.gz": 2, "/test-images.gz": 1}
    assert not (tmp_path / "data" / two_archives.dataset.home / ".partial").exists()

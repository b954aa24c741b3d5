"""A real server behind a proxy that can fail, and programs that log to it by way of an outbox of their own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient

from lossy_mlflow.outbox.books import OutboxRun, list_outbox
from tests.conftest import Workplace, end_senders, senders, wait_for
from tests.outbox.proxy import Proxy


@pytest.fixture
def small_disk(tmpfs: Callable[[str], Path]) -> Path:
    """A file system of 256 kB, see `resize`."""
    return tmpfs("size=256k")


class OutboxPlace:
    """An outbox of a test's own, the proxy before the server, and a plain client that asks the server itself."""

    def __init__(self, workplace: Workplace, server: str) -> None:
        self.proxy = Proxy(server)
        self.server = server
        self.client = MlflowClient(server)
        self.workplace = workplace
        self.root = workplace.folder.parent / "outbox"
        self.environment = workplace.environment | {
            "LOSSY_OUTBOX_DIR": str(self.root),
            "MLFLOW_TRACKING_URI": f"outbox+{self.proxy.uri}",
            "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        }

    def start(self, code: str, *words: str, **variables: str) -> subprocess.Popen[str]:
        """A program of its own that runs `code`."""
        return self.start_words([sys.executable, "-c", code, *words], **variables)

    def start_words(self, words: Sequence[str], **variables: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            words,
            cwd=self.workplace.folder,
            env=self.environment | variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, code: str, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        process = self.start(code, *words, **variables)
        out, err = process.communicate(timeout=120)
        return subprocess.CompletedProcess(code, process.returncode, out, err)

    def lossy(self, *words: str, typed: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
        return self.workplace.run(
            *self.workplace.command(*words), env=self.environment | variables, typed=typed
        )

    def runs(self) -> list[OutboxRun]:
        return list_outbox(self.root)

    def senders(self) -> list[psutil.Process]:
        """The senders that are at work for this outbox."""
        return senders(self.root)

    def wait_until_delivered(self, seconds: float = 60) -> None:
        wait_for(lambda: self.runs() and not any(run.waiting for run in self.runs()), seconds, "delivery")

    def on_server(self, name: str) -> list[Any]:
        """The server's active runs with this name."""
        ids = [experiment.experiment_id for experiment in self.client.search_experiments()]
        return list(self.client.search_runs(ids, f"attributes.run_name = '{name}'"))

    def points(self, run_id: str, key: str) -> list[tuple[int, float]]:
        return sorted((point.step, point.value) for point in self.client.get_metric_history(run_id, key))


@pytest.fixture
def place(workplace: Workplace, mlflow_server: str) -> Iterator[OutboxPlace]:
    made = OutboxPlace(workplace, mlflow_server)
    try:
        yield made
    finally:
        end_senders(made.root)
        made.proxy.close()


@pytest.fixture
def name(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A run's name that no other test has: the server is shared."""
    return f"{request.node.name[:40].replace('[', '-').replace(']', '')}-{tmp_path.name}"

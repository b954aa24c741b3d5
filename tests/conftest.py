"""A place to work in for every test: an empty folder, caches of its own, a database that is already migrated."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from lossy_mlflow.checkpoints.foreign import converters
from lossy_mlflow.cli.app import app
from lossy_mlflow.hparams import registry as set_registry
from lossy_mlflow.models import registry as model_registry
from lossy_mlflow.outbox.owner import read_owner
from tests.services.disk import mounted

ROOT = Path(__file__).parent.parent

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["MLFLOW_LOGGING_LEVEL"] = "WARNING"


def clean_environment() -> dict[str, str]:
    kept = {
        key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "LOSSY_", "XDG_"))
    }
    # A test's processes share two cores with others: one thread each is quicker than two that wait for each other.
    return kept | {"MLFLOW_DISABLE_TELEMETRY": "true", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
def migrated_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow takes seconds to make a database: made once, copied for every test."""
    folder = tmp_path_factory.mktemp("database")
    code = "import mlflow; mlflow.MlflowClient().search_experiments()"
    subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=clean_environment(), check=True, capture_output=True
    )
    return folder / "mlflow.db"


@pytest.fixture(autouse=True)
def own_registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sets, models and converters that a test registers go with it."""
    set_registry.set_names()
    monkeypatch.setattr(set_registry, "_sets", dict(set_registry._sets))
    monkeypatch.setattr(model_registry, "_registered", dict(model_registry._registered))
    monkeypatch.setattr(converters, "_registered", dict(converters._registered))


def wait_for(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    """The first true value of `condition`; fails the test where there is none within `seconds`."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if value := condition():
            return value
        time.sleep(0.1)
    pytest.fail(f"not within {seconds} s: {what}")


def senders(outbox: Path) -> list[psutil.Process]:
    """The senders that are at work for this outbox."""
    owners = [read_owner(path.read_text()) for path in outbox.glob("*/sender-*")]
    return [psutil.Process(owner.pid) for owner in owners if owner and owner.lives()]


def end_senders(outbox: Path) -> None:
    """One whose server never comes back would go on for a day; one that has just been started has no owner's file yet."""
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "lossy_mlflow.outbox.sender" in words and any(word.startswith(f"{outbox}/") for word in words):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
                process.wait(10)


class Workplace:
    """A folder to work in, as a person has one: commands run there, with caches and state of their own."""

    def __init__(self, folder: Path, home: Path) -> None:
        self.folder = folder
        self.environment = clean_environment() | {
            "HOME": str(home),
            "XDG_CACHE_HOME": str(home / "cache"),
            "XDG_STATE_HOME": str(home / "state"),
        }

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "lossy_mlflow", *words]

    def run(
        self, *command: str, env: dict[str, str] | None = None, cwd: Path | None = None, typed: str = ""
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=cwd or self.folder,
            env=self.environment | (env or {}),
            input=typed,
            capture_output=True,
            text=True,
            timeout=500,
        )

    def lossy(self, *words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return self.run(*self.command(*words), env=env)

    def json(self, *words: str, env: dict[str, str] | None = None) -> Any:
        done = self.lossy(*words, "--json", env=env)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def completed(self, typed: str, **env: str) -> list[str]:
        """What a shell offers for the last word of the line."""
        asked = {"_LOSSY_COMPLETE": "bash_complete", "COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
        done = self.run(*self.command(), env=asked | env)
        assert done.stderr == ""
        return [line.removeprefix("plain,") for line in done.stdout.split()]

    def start(self, *words: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        return subprocess.Popen(
            # A shell starts what is in its background with Ctrl-C ignored, these tests perhaps.
            ["env", "--default-signal=INT", *self.command(*words)],
            cwd=self.folder,
            env=self.environment | (env or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


def mlflow_run(
    workplace: Workplace,
    project: Path | str,
    env_manager: str = "local",
    entry_point: str = "main",
    **parameters: str,
) -> subprocess.CompletedProcess[str]:
    """`mlflow run project`, as whoever works there types it."""
    options = [word for name, value in parameters.items() for word in ("-P", f"{name}={value}")]
    # MLflow removes none of the temporary folders that it makes.
    temporary = workplace.folder.parent / "temporary"
    temporary.mkdir(exist_ok=True)
    return subprocess.run(
        [
            *(sys.executable, "-m", "mlflow", "run", str(project)),
            *("--entry-point", entry_point, "--env-manager", env_manager, *options),
        ],
        cwd=workplace.folder,
        # The entry point's `python` is the first on PATH, as in an environment that has been activated.
        env=workplace.environment
        | {
            "PATH": f"{Path(sys.executable).parent}:{workplace.environment['PATH']}",
            "TMPDIR": str(temporary),
        },
        capture_output=True,
        text=True,
    )


@pytest.fixture
def workplace(tmp_path: Path, migrated_database: Path) -> Iterator[Workplace]:
    """A folder with an empty, migrated mlflow.db. Senders that are at work for its outbox after the test end with it."""
    folder, home = tmp_path / "work", tmp_path / "home"
    folder.mkdir()
    home.mkdir()
    shutil.copy(migrated_database, folder / "mlflow.db")
    yield Workplace(folder, home)
    end_senders(home / "state" / "lossy_mlflow" / "outbox")


@pytest.fixture
def client(workplace: Workplace) -> Any:
    """A plain MLflow client of the workplace's database."""
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{workplace.folder}/mlflow.db")


@pytest.fixture
def here(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    """The test's own process works in the workplace, as its commands would."""
    for name in [key for key in os.environ if key.startswith(("MLFLOW_RUN", "MLFLOW_EXPERIMENT", "LOSSY_"))]:
        monkeypatch.delenv(name)
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME"):
        monkeypatch.setenv(name, workplace.environment[name])
    # By its absolute path: MLflow remembers its stores by URI, and every test has a database of its own.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{workplace.folder}/mlflow.db")
    monkeypatch.chdir(workplace.folder)
    return workplace


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """mount(options) -> a new file system of its own, such as one that is small. Needs root."""
    with ExitStack() as stack:
        numbers = itertools.count()
        yield lambda options: stack.enter_context(mounted(tmp_path / f"tmpfs{next(numbers)}", options))


@pytest.fixture
def lossy(here: Workplace, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What a command prints, run in this process; what goes wrong is raised."""

    def run(*words: str) -> str:
        capsys.readouterr()
        app.main(list(words), prog_name="lossy", standalone_mode=False)
        return capsys.readouterr().out

    return run


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URI of a real `mlflow server` on a free port, with its own database and artifact folder."""
    with start_mlflow_server(tmp_path_factory.mktemp("server")) as (uri, _):
        yield uri


@contextmanager
def start_mlflow_server(
    folder: Path,
    port: int | None = None,
    options: Sequence[str] = (),
    variables: Mapping[str, str] | None = None,
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A real `mlflow server` in `folder`, answering within the block: its URI and its process."""
    folder.mkdir(exist_ok=True)
    port = port or free_port()
    environment = clean_environment() | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **(variables or {})}
    command = [
        "-m",
        "mlflow",
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
        *options,
    ]
    log = folder / "server.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    uri = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                requests.get(f"{uri}/health", timeout=2).raise_for_status()
                break
            except requests.RequestException:
                assert process.poll() is None, log.read_text()
                time.sleep(0.2)
        else:
            pytest.fail(f"mlflow server didn't answer: {log.read_text()}")
        yield uri, process
    finally:
        if process.poll() is None:
            end_with_children(process)


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def end_with_children(process: subprocess.Popen[bytes]) -> None:
    """End a server and the workers it started, by their ids."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in family:
        member.terminate()
    _, alive = psutil.wait_procs(family, timeout=10)
    for member in alive:
        member.kill()
    process.wait()

"""`lossy serve` from outside: a laptop's server, and a team's."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import requests

from tests.conftest import Workplace, free_port, wait_for
from tests.service.conftest import Team
from tests.services.lossy_serve import Served, start_lossy_serve
from tests.services.postgres import Postgres


def _quicker_ones_ms(times: list[float]) -> float:
    """What a quarter of them stay under: a stall is there each time, what else this machine does is not."""
    return statistics.quantiles(times, n=4)[0]


def _request_ms(address: str) -> float:
    times = []
    with requests.Session() as session:
        for _ in range(30):
            begun = time.perf_counter()
            session.get(f"{address}/health", timeout=10).raise_for_status()
            times.append((time.perf_counter() - begun) * 1000)
    return _quicker_ones_ms(times)


def test_a_laptop_s_server_from_its_start_to_its_end(tmp_path: Path, workplace: Workplace) -> None:
    # But that two workers share the port, which is where plain MLflow's answers take 44 ms.
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    # As nohup starts it.
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with start_lossy_serve(tmp_path / "here", ["--port", str(port), "--workers", "2"]) as served:
        signal.signal(signal.SIGHUP, before)
        served.process.send_signal(signal.SIGHUP)
        assert f"export MLFLOW_TRACKING_URI={address}\n" in served.log.read_text()
        wait_for(lambda: _request_ms(address) < 5, 60, "a request takes less than 5 ms")
        code = "import mlflow\nwith mlflow.start_run(): mlflow.log_text('x', 'a.txt')"
        done = workplace.run(sys.executable, "-c", code, env={"MLFLOW_TRACKING_URI": address})
        assert done.returncode == 0, done.stderr
        assert (served.log.parent / "mlflow.db").exists()
        stored = (served.log.parent / "mlartifacts").rglob("a.txt")
        assert [path.read_text() for path in stored] == ["x"]
        family = served.family()
        _another_is_told_who_has_the_port(workplace, port, family)
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(30) == 0
        # The first waits to be reaped by this test, and has been.
        assert not [member for member in family if member.is_running()]


def test_a_worker_without_passwords_looks_for_no_garbage_in_mlflow(workplace: Workplace) -> None:
    code = (
        "import gc; from lossy_mlflow.service.undelayed import create_app\n"
        "app = create_app(); print(gc.get_freeze_count(), len(gc.get_objects()), len(app.routes))"
    )
    done = workplace.run(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    frozen, looked_at, n_routes = map(int, done.stdout.split())
    assert frozen > 100 * looked_at
    assert n_routes > 0


def _another_is_told_who_has_the_port(workplace: Workplace, port: int, family: list[psutil.Process]) -> None:
    done = workplace.lossy("serve", "--port", str(port))
    assert done.returncode == 4
    found = re.match(rf"lossy: Port {port} of 127.0.0.1 is in use by .*, process (\d+)\.\n", done.stderr)
    assert found, done.stderr
    assert int(found[1]) in [member.pid for member in family]
    assert done.stderr.endswith("lossy: nothing was started.\n")


def test_a_server_that_dies_takes_its_workers_along(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with start_lossy_serve(tmp_path / "here", ["--socket", str(path), "--workers", "2", *_NAMED]) as served:
        family = served.family()
        _supervisor(served).kill()
        assert served.process.wait(30) == 1
        wait_for(lambda: not any(member.is_running() for member in family), 5, "its workers are gone")
    assert served.log.read_text().endswith(
        "lossy: The server has ended by itself.\n  What it says of that stands above.\n"
    )
    assert not path.exists()


def test_what_is_killed_leaves_no_server(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with start_lossy_serve(tmp_path / "here", ["--socket", str(path), "--workers", "2", *_NAMED]) as served:
        family = served.family()
        served.process.kill()
        wait_for(lambda: not any(member.is_running() for member in family[1:]), 30, "all are gone")


def test_a_server_that_can_not_start_says_why(tmp_path: Path, workplace: Workplace) -> None:
    # What no check foresees: MLflow reads this one itself.
    done = workplace.lossy(
        "serve", "--port", str(free_port()), env={"MLFLOW_SQLALCHEMYSTORE_POOLCLASS": "None"}
    )
    assert done.returncode == 1
    assert "Invalid poolclass parameter: None" in done.stderr
    assert done.stderr.endswith(
        "lossy: The server has ended by itself.\n  What it says of that stands above.\n"
    )


_NAMED = ("--allowed-hosts", "localhost")


def _supervisor(served: Served) -> psutil.Process:
    return next(member for member in served.family() if "uvicorn" in member.cmdline())


def _workers(supervisor: psutil.Process) -> list[psutil.Process]:
    """Without the process by which multiprocessing watches over what they share."""
    workers = []
    for child in supervisor.children():
        with contextlib.suppress(psutil.Error):
            workers += [child] if "spawn_main" in " ".join(child.cmdline()) else []
    return workers


def test_a_worker_that_dies_is_replaced(team_server: Team) -> None:
    supervisor = _supervisor(team_server.served)
    dead, _ = _workers(supervisor)
    dead.kill()

    def two_again() -> bool:
        workers = _workers(supervisor)
        return len(workers) == 2 and dead not in workers

    wait_for(two_again, 20, "there are two workers again")
    assert team_server.ask("GET", "/api/2.0/mlflow/users/current").status_code == 200


def test_a_team_s_server_lets_in_members_alone(team_server: Team, workplace: Workplace) -> None:
    for auth in (None, ("admin", "wrong"), ("nobody", "")):
        assert team_server.ask("GET", "/api/2.0/mlflow/users/current", auth=auth).status_code == 401
    code = (
        "import mlflow\nmlflow.set_experiment('serve')\n"
        "with mlflow.start_run(): mlflow.log_metric('m', 1); mlflow.log_text('stored', 'a.txt')\n"
        "print(mlflow.artifacts.load_text(f'runs:/{mlflow.last_active_run().info.run_id}/a.txt'))"
    )
    done = workplace.run(sys.executable, "-c", code, env=team_server.member())
    assert done.stdout.splitlines()[-1] == "stored", done.stderr


def test_the_page_of_a_team_s_server_may_ask_it_and_no_other_page(team_server: Team) -> None:
    def status(**headers: str) -> int:
        path, asked = "/api/2.0/mlflow/experiments/search", {"max_results": 1}
        return team_server.ask("POST", path, json=asked, headers=headers).status_code

    # Not localhost, whose pages MLflow always lets.
    own, other = "ml.example.org", "elsewhere.example.org"
    assert status(Host=own, Origin=f"https://{own}") == 200
    assert status(Host=f"{own}:8443", Origin=f"https://{own}:8443") == 200
    assert status(Host=other) == 403
    assert status(Host=own, Origin=f"https://{other}") == 403
    assert status(Host=own, Origin=f"http://{own}") == 403


def test_no_secret_is_in_an_argument_or_a_log(team_server: Team) -> None:
    state = team_server.served.log.parent / "state"
    (config,) = state.rglob("*.ini")
    assert config.stat().st_mode & 0o777 == 0o600
    shown = [
        *(" ".join(process.cmdline()) for process in team_server.served.family()),
        team_server.served.log.read_text(),
        config.read_text(),
    ]
    assert len(shown) >= 6
    for secret in team_server.secrets:
        assert not [text for text in shown if secret in text]


def test_runs_and_users_share_a_database_whose_connections_suffice(
    team_server: Team, postgres: Postgres
) -> None:
    tables = postgres.sql("select tablename from pg_tables where tablename like 'alembic%'", "team").split()
    assert sorted(tables) == ["alembic_version", "alembic_version_auth"]

    def ask(_: int) -> int:
        return team_server.ask("GET", "/api/2.0/mlflow/registered-models/search").status_code

    with ThreadPoolExecutor(24) as pool:
        assert set(pool.map(ask, range(96))) == {200}
    used = int(postgres.sql("select count(*) from pg_stat_activity where datname = 'team'"))
    # Two workers, three engines in each, up to fifteen connections in one; and three of MLflow's first process.
    assert 3 <= used <= 93


def test_a_socket_answers_without_a_stall(team_server: Team) -> None:
    def request_ms() -> float:
        times = []
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(team_server.socket))
            for _ in range(30):
                begun = time.perf_counter()
                connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
                answer = b""
                while not answer.endswith(b"\r\n\r\nOK"):
                    answer += connection.recv(1000)
                times.append((time.perf_counter() - begun) * 1000)
        return _quicker_ones_ms(times)

    wait_for(lambda: request_ms() < 5, 60, "a request takes less than 5 ms")

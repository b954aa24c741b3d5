"""An address that leads nowhere: one error that says what is wrong with it, within seconds, and no secret in it."""

from __future__ import annotations

import importlib.util
import time

import pytest

from lossy_mlflow.errors import LossyError
from lossy_mlflow.tracking.connection import connect

DRIVERS = {"psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient", "pymysql": "pymysql", "pyodbc": "pyodbc"}


def _connecting(uri: str, monkeypatch: pytest.MonkeyPatch) -> LossyError:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    begin = time.monotonic()
    with pytest.raises(LossyError) as refused:
        connect()
    assert time.monotonic() - begin < 30
    assert "hunter2" not in str(refused.value)
    assert "\n" not in refused.value.what
    return refused.value


@pytest.mark.parametrize(
    ("uri", "code", "says"),
    [
        ("https://[bad", 2, "Invalid IPv6 URL"),
        ("outbox+https://[bad", 2, "Invalid IPv6 URL"),
        ("http://", 2, "it names no host"),
        ("http://me:hunter2@host:port", 2, "'port'"),
        ("http://host:99999", 2, "Port out of range"),
        ("foo://me:hunter2@host", 2, "'foo://host' is of no kind"),
        ("outbox+ftp://host", 2, "of no kind"),
        ("sqlite:/x", 2, "Could not parse"),
        ("postgresql+nothing://me:hunter2@host/x", 2, "postgresql.nothing"),
        ("sqlite+pysqlite:////dev/null/x/mlflow.db", 5, "unable to open database file"),
        ("http://me:hunter2@127.0.0.1:9", 5, "127.0.0.1:9 doesn't answer"),
    ],
)
def test_an_address_that_leads_nowhere(
    uri: str, code: int, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = _connecting(uri, monkeypatch)
    assert error.exit_code == code
    assert says in error.what
    assert "MLFLOW_TRACKING_URI" in error.hint


def test_a_password_with_a_slash_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    error = _connecting("http://me:hunter2/hunter2@host", monkeypatch)
    assert "can't be told from its user and password" in error.what
    assert "%2F" in error.hint


@pytest.mark.parametrize(
    ("dialect", "module"),
    [
        ("postgresql+psycopg2", "psycopg2"),
        ("mysql", "MySQLdb"),
        ("mysql+pymysql", "pymysql"),
        ("mssql", "pyodbc"),
    ],
)
def test_a_database_without_its_driver_names_the_package(
    dialect: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if importlib.util.find_spec(module):
        pytest.skip(f"{module} is installed here")
    error = _connecting(f"{dialect}://me:hunter2@127.0.0.1:9/x", monkeypatch)
    assert module in error.what
    assert error.hint.replace("'", "").endswith(f"pip install {DRIVERS[module]}")

"""The way to the tracking server: which one, whether it answers, what its clock says; and its faults in plain words."""

from __future__ import annotations

import email.utils
import errno
import logging
import os
import re
import shlex
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, urlsplit

from lossy_mlflow.errors import ConflictError, LossyError, NotFoundError, UnreachableError, UsageError
from lossy_mlflow.outbox.address import PREFIX, server_uri

if TYPE_CHECKING:
    import requests
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    from lossy_mlflow.outbox.program import Outbox

log = logging.getLogger("lossy_mlflow")

T = TypeVar("T")

_ANSWER_WITHIN_S = 10
# How long what has finished waits for its decoders and files to be delivered, where the server answers.
_DELIVERED_WITHIN_S = 30
_VARIABLE = "MLFLOW_TRACKING_URI"
_HTTP = ("http://", "https://")
ADDRESSES = (
    "MLFLOW_TRACKING_URI is one like http://HOST:PORT, https://HOST, outbox+https://HOST, sqlite:////ABSOLUTE/PATH/mlflow.db;"
    " unset, it is ./mlflow.db"
)
_HOW_TO_REACH_ONE = (
    "Start it, or name another: export MLFLOW_TRACKING_URI=... (unset, runs go to ./mlflow.db)"
)
_ASK_FOR_RIGHT = "Check MLFLOW_TRACKING_USERNAME and _PASSWORD, or ask for the right."
_WITHOUT_IT = "Training goes on without it: what is logged waits on this machine (lossy outbox status)."
DATABASES = ("postgresql", "mysql", "mssql", "sqlite")
# Drivers whose package has another name, or needs to be told to bring its library.
_PACKAGES = {"psycopg": "psycopg[binary]", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}


class ServerClock:
    """The clock of the server `uri`, as it was last seen; where it was never seen, or there is none, this machine's."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._offset = time.time() - _uptime()

    def look(self) -> None:
        """See what it says now. Raises UnreachableError."""
        self._offset = (_probe(self._uri) if is_server(self._uri) else time.time()) - _uptime()

    def now(self) -> float:
        """Seconds since 1970; setting this machine's clock meanwhile changes nothing."""
        return self._offset + _uptime()


def _uptime() -> float:
    """Seconds by a clock that nobody can set, and that goes on, where the system has such a one, while the machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


@dataclass(slots=True)
class Connection:
    """A tracking server, and its clock.

    `outbox`: the way by which all that `client` logs goes there; None where it goes directly. Only with an outbox may it be that
    the server didn't answer (`answers`), at first or when it was asked later.
    """

    client: MlflowClient
    uri: str
    clock: ServerClock
    outbox: Outbox | None = None
    answers: bool = True

    def now(self) -> float:
        """The time by the server's clock, in seconds since 1970."""
        return self.clock.now()

    def unless_away(self, question: Callable[[], T]) -> T | None:
        """What the server answers to what can be done without; None where it is away, which one line says.

        Without an outbox nothing can be done without the server: raises UnreachableError.
        """
        if not self.answers:
            return None
        try:
            with explained():
                return question()
        except UnreachableError as error:
            if self.outbox is None:
                raise
            self.answers = False
            log.warning("%s %s", error.what, _WITHOUT_IT)
            return None

    def keeping(self, run_id: str, what: str) -> AbstractContextManager[None]:
        """For a block that stores `what` of the run: where a disk is full, a training by way of the outbox goes on (see
        `outbox.unsaved`), any other ends.
        """
        return self.outbox.journal(run_id).unsaved.keeping(what) if self.outbox else nullcontext()

    def delivered(self, run_id: str) -> tuple[bool, str]:
        """Whether all of the run is on the server, for which it is waited a while; and the run's id, the server's where it is."""
        if self.outbox is None:
            return True, run_id
        if not self.outbox.has_delivered(run_id, _DELIVERED_WITHIN_S):
            return False, run_id
        self.answers = True
        # A run that was started while the server was away has got the server's id meanwhile.
        return True, self.outbox.server_run_id(run_id) or run_id


def connect() -> Connection:
    """The server that MLflow's own settings name (MLFLOW_TRACKING_URI, else ./mlflow.db).

    Raises UnreachableError where it doesn't answer, within seconds: MLflow alone would try for minutes. UsageError for what is no
    address of any, LossyError where a database's driver isn't installed.
    """
    import mlflow
    from mlflow.tracking.registry import UnsupportedModelRegistryStoreURIException

    uri = tracking_uri()
    clock = ServerClock(uri)
    if is_server(uri):
        check_address(uri)
        clock.look()
    elif file := sqlite_file(uri):
        check_sqlite_file(file)
    elif uri.partition(":")[0].partition("+")[0] in DATABASES:
        check_database(uri)
    try:
        return Connection(mlflow.MlflowClient(uri), uri, clock)
    except UnsupportedModelRegistryStoreURIException:
        raise UsageError(
            f"The tracking URI {without_password(uri)!r} is of no kind that is known here.", ADDRESSES
        ) from None


@contextmanager
def connected_for_logging() -> Iterator[Connection]:
    """The same for a program that logs: to a server (http, https) by way of the outbox, also while the server doesn't answer.

    Where the outbox can't be written at all, one line says so, and what is logged goes to the server directly.

    Within the block MLflow's own tracking URI is the outbox's, so that what a user's model logs goes the same way.
    """
    import mlflow

    before = mlflow.get_tracking_uri()
    uri = before.removeprefix(PREFIX)
    if not is_server(uri):
        yield connect()
        return
    from lossy_mlflow.outbox.folder import ServerFolder
    from lossy_mlflow.outbox.program import outbox_for

    check_address(uri)
    try:
        ServerFolder.of(uri).prepare(uri)
    except OSError as error:
        log.warning(
            "The outbox %s can't be written (%s): what is logged goes to the server directly, while that answers.",
            ServerFolder.of(uri).path,
            error.strerror,
        )
        with tracking_to(uri):
            yield connect()
        return
    clock, answers = ServerClock(uri), True
    try:
        clock.look()
        _check_answers(uri)
    except UnreachableError as error:
        answers = False
        log.warning("%s %s", error.what, _WITHOUT_IT)
    with tracking_to(PREFIX + uri):
        yield Connection(mlflow.MlflowClient(), uri, clock, outbox_for(uri), answers)


@contextmanager
def tracking_to(uri: str) -> Iterator[None]:
    """MLflow's own tracking URI is `uri` within the block. After it that is again what it was, whoever had set it."""
    import mlflow
    from mlflow.tracking._tracking_service import utils

    set_by_call: Any = utils._tracking_uri
    in_environment = os.environ.get(_VARIABLE)
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(set_by_call)
        if in_environment is not None:
            os.environ[_VARIABLE] = in_environment
        else:
            os.environ.pop(_VARIABLE, None)


def tracking_uri() -> str:
    """The address that MLflow's own settings name, as it is without an outbox. It may hold a password."""
    import mlflow

    return str(mlflow.get_tracking_uri()).removeprefix(PREFIX)


def is_server(uri: str) -> bool:
    """Whether it is a server's address, and not a database's."""
    return uri.startswith(_HTTP)


def sqlite_file(uri: str) -> Path | None:
    """The file of an SQLite database's URI, in which MLflow has quoted blanks and the like; None for any other URI."""
    prefix = "sqlite:///"
    return Path(unquote(uri.removeprefix(prefix))) if uri.startswith(prefix) else None


def without_password(text: str) -> str:
    """The same text with the user:password part of every URL in it left out."""
    # A database's may hold a slash.
    text = re.sub(rf"((?:{'|'.join(DATABASES[:3])})\S*?://)\S+@", r"\1", text)
    return re.sub(r"(\w://)[^\s/]+@", r"\1", text)


def check_address(uri: str) -> None:
    """Raises UsageError where `uri` (http, https) names no server that could be asked."""
    try:
        parts = urlsplit(uri)
        if "@" in parts.path + parts.query + parts.fragment:
            server_uri(uri)  # refuses it without showing what may be a part of the password
        host, _port = parts.hostname, parts.port
    except ValueError as error:
        reason = str(error)
    else:
        if host:
            return
        reason = "it names no host"
    raise UsageError(f"The tracking URI {without_password(uri)!r} can't be read: {reason}.", ADDRESSES)


def check_database(uri: str, variable: str = _VARIABLE) -> None:
    """Find out at once what MLflow would retry for minutes, or fail at: a driver, a server, a password.

    Raises LossyError, UsageError, UnreachableError, with what to set `variable` to.
    """
    import sqlalchemy
    from sqlalchemy.exc import ArgumentError, SQLAlchemyError

    shown = without_password(uri)
    timeout = {"connect_timeout": _ANSWER_WITHIN_S} if uri.startswith(("postgresql", "mysql")) else {}
    try:
        engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool, connect_args=timeout)
        engine.connect().close()
    except ImportError as error:
        package = _PACKAGES.get(error.name or "", error.name)
        raise LossyError(
            f"The driver of the database {shown} isn't installed: {error}.",
            f"Install it beside lossy: pip install {shlex.quote(str(package))}",
        ) from None
    except (ArgumentError, ValueError) as error:
        raise UsageError(
            f"{variable} is {shown!r}, which can't be read: {_first_line(error)}.", ADDRESSES
        ) from None
    except SQLAlchemyError as error:
        raise UnreachableError(
            f"The database {shown} can't be reached: {_first_line(error)}.",
            f"Start it, check its address, user and password, or name another: export {variable}=...",
        ) from None


def _first_line(error: Exception) -> str:
    return next(iter(without_password(str(error)).splitlines()), type(error).__name__).rstrip(".")


def ask(uri: str, path: str, **arguments: Any) -> requests.Response:
    """What the server `uri` answers to GET `path`, whatever its status.

    It is asked with MLflow's own settings for certificates and credentials; `arguments` are those of requests.
    Raises UnreachableError where it doesn't answer, within seconds.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    from lossy_mlflow.outbox.api import in_short

    arguments = {"timeout": _ANSWER_WITHIN_S} | arguments
    try:
        reply: requests.Response = http_request(
            get_default_host_creds(uri), path, "GET", max_retries=0, retry_codes=(), **arguments
        )
    except MlflowException as error:
        cause = error.__cause__ or error.__context__ or error
        raise UnreachableError(
            f"The tracking server {without_password(uri)} doesn't answer ({in_short(cause)}).",
            _HOW_TO_REACH_ONE,
        ) from None
    return reply


def _probe(uri: str) -> float:
    """What the server's clock says, in seconds since 1970; raises UnreachableError."""
    reply = ask(uri, "/health")
    if not reply.ok:
        raise UnreachableError(
            f"The tracking server {without_password(uri)} answers {reply.status_code} to /health.",
            _HOW_TO_REACH_ONE,
        )
    return server_time(reply) or time.time()


def _check_answers(uri: str) -> None:
    """Raises UnreachableError for a server that says it is well, and whose database is away: /health doesn't look.

    LossyError where it refuses: what would be logged could wait for ever.
    """
    reply = ask(uri, "/api/2.0/mlflow/experiments/search", params={"max_results": 1})
    if reply.status_code in (401, 403):
        raise LossyError(
            f"{without_password(uri)} refuses: {reply.text.splitlines()[0] if reply.text else reply.reason}",
            _ASK_FOR_RIGHT,
        )
    if reply.status_code >= 500:
        raise UnreachableError(
            f"The tracking server {without_password(uri)} answers {reply.status_code} to a question.",
            "Look at its log, and whether its database is there.",
        )


def server_time(reply: requests.Response) -> float | None:
    """What the server's clock said, in seconds since 1970, to half a second; None where its answer doesn't tell."""
    try:
        sent = email.utils.parsedate_to_datetime(reply.headers["Date"]).timestamp()
    except (KeyError, ValueError):
        return None
    # The header has whole seconds: on average it is half a second old.
    return sent + 0.5


def check_sqlite_file(path: Path) -> None:
    """Find out at once what SQLAlchemy would retry for minutes: a folder or a file that can't be written.

    Raises LossyError, ConflictError, UnreachableError. Afterwards the file is there.
    """
    hint = "Work in a folder you can write to, or set MLFLOW_TRACKING_URI=sqlite:////ABSOLUTE/PATH/mlflow.db"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path, timeout=20, isolation_level=None)) as connection:
            connection.execute("begin immediate")
            connection.execute("create table lossy_mlflow_probe (x)")
            connection.execute("rollback")
    except sqlite3.DatabaseError as error:
        if "locked" in str(error):
            raise UnreachableError(
                f"The database {path} is locked by another program.", "Try again."
            ) from None
        if "not a database" in str(error):
            raise ConflictError(
                f"{path.resolve()} is not an SQLite database.", f"Move it away. {hint}"
            ) from None
        raise LossyError(
            f"The database {path.resolve()} can't be opened or written: {error}.", hint
        ) from None
    except OSError as error:
        raise LossyError(f"The database {path.resolve()} can't be written: {error.strerror}.", hint) from None


@contextmanager
def explained() -> Iterator[None]:
    """What MLflow, the network and the disk raise in here, as a LossyError that says what to do; bugs pass through."""
    import requests
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        raise _explain(error) from error
    except requests.RequestException as error:
        raise _explain_files(error) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise LossyError(*_DISK_FULL) from error
        if error.errno in (errno.EROFS, errno.EACCES):
            where = f"{error.filename or 'the artifact folder'}"
            raise LossyError(
                f"There is no access to {where}: {error.strerror}.",
                "Work in a folder that you may read and write.",
            ) from error
        raise


_DISK_FULL = (
    "The disk is full: nothing more can be stored.",
    "Free some space and start the same command again: it goes on where it stopped.",
)


_AGAIN = "Start the same command again when the server is well: it goes on where it stopped."


def _explain(error: MlflowException) -> LossyError:
    import mlflow

    text = without_password(str(error))
    uri = without_password(tracking_uri())
    first_line = text.splitlines()[0] if text else type(error).__name__
    if error.error_code in ("PERMISSION_DENIED", "UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED"):
        return LossyError(f"{uri} refuses: {first_line}", _ASK_FOR_RIGHT)
    if "out-of-date database schema" in text:
        return ConflictError(
            f"The database {uri} was written by another version of MLflow than {mlflow.__version__}.",
            f"By an older one: back it up, then mlflow db upgrade {uri}    By a newer one: upgrade MLflow here.",
        )
    if "disk is full" in text or "No space left" in text:
        return LossyError(*_DISK_FULL)
    if "readonly database" in text or "unable to open database" in text:
        return LossyError(f"The database {uri} can't be written.", "Work in a folder you can write to.")
    if error.error_code == "TEMPORARILY_UNAVAILABLE":
        return UnreachableError(first_line, _AGAIN)
    if "API request to" in text or "Max retries exceeded" in text:
        return _unreachable(first_line)
    if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND"):
        return NotFoundError(f"{uri}: {first_line}")
    if error.error_code == "INVALID_PARAMETER_VALUE":
        return UsageError(f"{uri} refuses: {first_line}")
    return LossyError(f"{uri}: {first_line}")


def _explain_files(error: requests.RequestException) -> LossyError:
    """What the artifact proxy answers comes as it is."""
    reason = without_password(str(error))
    if error.response is not None and error.response.status_code in (401, 403):
        return LossyError(
            f"The tracking server refuses: {reason}",
            "Check MLFLOW_TRACKING_USERNAME and _PASSWORD, or ask for the right on the experiment: files are the experiment's,"
            " a model's too.",
        )
    return _unreachable(reason)


def _unreachable(reason: str) -> UnreachableError:
    return UnreachableError(
        f"The tracking server didn't do as it was asked: {reason}",
        f"Look at its log. {_AGAIN}",
    )

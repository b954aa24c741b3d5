"""A database brought to the schema of the MLflow that is installed here, or left as it was: what `lossy upgrade` does."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import psutil

from lossy_mlflow.errors import ConflictError, LossyError
from lossy_mlflow.service.alone import alone
from lossy_mlflow.service.backup import BackedUp, back_up
from lossy_mlflow.service.database import (
    TRACKING_VERSIONS,
    USERS_VERSIONS,
    engine_of,
    head_of,
    knows_revision,
    revision_of,
)
from lossy_mlflow.service.dumps import by_hand, check_put_back, dumped, put_back
from lossy_mlflow.service.postgres import check_client, postgres_client
from lossy_mlflow.service.private import opener
from lossy_mlflow.service.stores import Stores
from lossy_mlflow.tracking.connection import sqlite_file, without_password

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Step:
    """A schema that is behind. `holds`: tracking or users."""

    holds: str
    uri: str
    table: str
    revision: str
    head: str


@dataclass(frozen=True, slots=True)
class Upgraded:
    """What was upgraded: nothing where all was at the head. `kept_at`: where the databases lie as they were before."""

    upgraded: list[str]
    revisions: dict[str, str]
    kept_at: str
    mlflow: str


def behind(stores: Stores) -> list[Step]:
    """The schemas that are older than the MLflow that is installed here.

    Raises ConflictError for one that a newer MLflow has made, or where the database holds none at all.
    """
    steps = []
    for holds, uri, table in (
        ("tracking", stores.database, TRACKING_VERSIONS),
        ("users", stores.users, USERS_VERSIONS),
    ):
        revision, head = revision_of(uri, table), head_of(table)
        if revision is None:
            if holds == "tracking":
                raise ConflictError(
                    f"The database {without_password(uri)} holds no runs of MLflow's: there is nothing to upgrade.",
                    "Name the one that does: --backend-store-uri ...",
                )
            continue  # a server without users
        if not knows_revision(table, revision):
            raise ConflictError(
                f"The database {without_password(uri)} was made by a newer MLflow: its revision {revision} isn't known here.",
                "Install the newer one: pip install -U mlflow",
            )
        if revision != head:
            steps.append(Step(holds, uri, table, revision, head))
    return steps


def upgrade(stores: Stores, say: Say, to_backup: str | None = None) -> Upgraded:
    """Upgrade what is behind, the server being stopped; each step is told to `say`.

    First the databases are copied to a folder beside the working one, and with `to_backup` all of the server there. SQLite's is
    upgraded in a copy, which takes its place when it is found good. PostgreSQL's is upgraded in place, in one transaction of
    MLflow's, and put back from its dump if it isn't good then.
    Raises ConflictError where a server is at work on it, LossyError where the upgrade fails: the databases are then as before.
    """
    steps = behind(stores)
    if not steps:
        return Upgraded([], _revisions(stores), "", importlib.metadata.version("mlflow"))
    for step in steps:
        _check_unused(step.uri)
        if not sqlite_file(step.uri):
            check_client(step.uri, puts_back=True)
    if to_backup:
        say(f"Backing up {stores} to {to_backup} ...")
        _check_whole(back_up(stores, to_backup))
    with alone(stores, "upgrade"):
        for step in steps:
            _check_unused(step.uri)
        folder = Path(f"before-upgrade-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}").absolute()
        with _explained(folder):
            folder.mkdir(mode=0o700)
        dumps = {uri: _dump(uri, folder / f"{holds}.dump", say) for holds, uri in stores.databases.items()}
        for step in steps:
            check_put_back(step.uri, dumps[step.uri])
        for uri in {step.uri: None for step in steps}:
            try:
                _upgrade_database(uri, [step for step in steps if step.uri == uri], dumps[uri], say)
            except LossyError:
                _put_back_others([step for step in steps if step.uri != uri], dumps, say)
                raise
    return Upgraded(
        [step.holds for step in steps], _revisions(stores), str(folder), importlib.metadata.version("mlflow")
    )


def _check_whole(done: BackedUp) -> None:
    if not done.is_whole:
        lacks = [*done.unreadable, *done.elsewhere]
        raise LossyError(
            f"The backup {done.name} in {done.target} isn't whole: it lacks {len(lacks)} files or addresses, {lacks[0]} first."
            " Nothing was upgraded.",
            f"All of them: lossy backup {done.target}    Or upgrade without it: lossy upgrade",
        )


def _revisions(stores: Stores) -> dict[str, str]:
    found = {"tracking": revision_of(stores.database), "users": revision_of(stores.users, USERS_VERSIONS)}
    return {holds: revision for holds, revision in found.items() if revision}


def _dump(uri: str, file: Path, say: Say) -> Path:
    say(f"Copying {without_password(uri)} to {file} ...")
    with _explained(file), dumped(uri) as stream, open(file, "wb", opener=opener) as copy:
        shutil.copyfileobj(stream, copy, 1 << 20)
        copy.flush()
        os.fsync(copy.fileno())
    return file


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LossyError(
            f"{path} can't be written: {error.strerror}. Nothing was changed.",
            "Free some space, or start this in another folder.",
        ) from error


def _upgrade_database(uri: str, steps: list[Step], dump: Path, say: Say) -> None:
    file = sqlite_file(uri)
    if file is None:
        try:
            _migrate(uri, steps, say)
        except LossyError:
            if _is_untouched(steps):
                say("The database has taken back what was begun: it is as it was.")
            else:
                _put_back(uri, dump, say)
            raise
        return
    copy = file.with_name(f"{file.name}.lossy-upgrade")
    try:
        # Held until the new one is in its place: what others would write meanwhile would be lost.
        with closing(sqlite3.connect(file, timeout=5, isolation_level=None)) as held:
            held.execute("begin immediate")
            with _explained(copy), dumped(uri) as source, open(copy, "wb", opener=opener) as target:
                shutil.copyfileobj(source, target, 1 << 20)
            _migrate(f"sqlite:///{quote(str(copy))}", steps, say)
            put_back(uri, copy)
    except sqlite3.Error as error:
        raise ConflictError(
            f"The database {file} can't be held: {error}.", "Stop the server first."
        ) from error
    except LossyError:
        say(f"{file} is as it was: it was upgraded in a copy.")
        raise
    finally:
        for ending in ("", "-journal", "-wal", "-shm"):
            copy.with_name(copy.name + ending).unlink(missing_ok=True)


def _put_back_others(steps: list[Step], dumps: dict[str, Path], say: Say) -> None:
    """Where one database failed, one that was upgraded before it goes back as well: users and runs are of one MLflow."""
    for uri in {step.uri for step in steps}:
        if not _is_untouched([step for step in steps if step.uri == uri]):
            _put_back(uri, dumps[uri], say)


def _put_back(uri: str, dump: Path, say: Say) -> None:
    """Raises LossyError with what is left to do by hand."""
    say(f"Putting {without_password(uri)} back from {dump} ...")
    try:
        put_back(uri, dump)
    except LossyError as error:
        raise LossyError(
            f"{error.what} So {without_password(uri)} isn't as it was: that lies in {dump}.",
            by_hand(uri, dump),
        ) from error


def _is_untouched(steps: list[Step]) -> bool:
    return all(revision_of(step.uri, step.table) == step.revision for step in steps)


def _migrate(uri: str, steps: list[Step], say: Say) -> None:
    """By MLflow's own commands, in processes of their own; afterwards it is read. Raises LossyError."""
    for step in steps:
        say(f"Upgrading the schema of the {step.holds} database from {step.revision} to {step.head} ...")
        if step.holds == "tracking":
            _run(uri, "mlflow db upgrade", "mlflow", "db", "upgrade")
        else:
            _run(uri, "mlflow.server.auth db upgrade", "mlflow.server.auth", "db", "upgrade", "--url")
        if (found := revision_of(uri, step.table)) != step.head:
            raise LossyError(
                f"The {step.holds} database is at the revision {found} after that, not at {step.head}."
            )
    if any(step.holds == "tracking" for step in steps):
        say("Reading it ...")
        _run(uri, "reading it", "lossy_mlflow.service.reading")


def _run(uri: str, what: str, module: str, *words: str) -> None:
    if sqlite_file(uri) is None:
        address, environment = postgres_client(uri)
        # Its driver as it was named; the password by a variable.
        address = uri.partition("://")[0] + "://" + address.partition("://")[2]
    else:
        address, environment = uri, {}
    done = subprocess.run(
        [sys.executable, "-m", module, *words, address],
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        # An exception's own line, behind its traceback; what SQLAlchemy adds to it begins with brackets.
        named = re.findall(r"^[\w.]+: .*", done.stderr, re.MULTILINE)
        why = without_password(named[-1] if named else f"exit code {done.returncode}")
        raise LossyError(f"{what} failed: {why}", "The databases are as they were.")


def _check_unused(uri: str) -> None:
    """Raises ConflictError where another program has the database open, as far as that can be seen."""
    file = sqlite_file(uri)
    users = _holders_of(file) if file else _connected_to(uri)
    if users:
        raise ConflictError(
            f"{without_password(uri)} is being used by {', '.join(sorted(set(users))[:5])}.",
            "Stop the server, then start this again.",
        )


def _holders_of(file: Path) -> list[str]:
    found = []
    for process in psutil.process_iter(["pid", "name"]):
        if process.pid == os.getpid():
            continue
        try:
            if any(Path(opened.path) == file.resolve() for opened in process.open_files()):
                found.append(f"process {process.pid} ({process.info['name']})")
        except (psutil.Error, OSError):
            continue  # another user's, or gone
    return found


def _connected_to(uri: str) -> list[str]:
    import sqlalchemy

    statement = (
        "select coalesce(nullif(application_name, ''), 'a program') || ' at ' || coalesce(client_addr::text, 'this machine')"
        " from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
        " and backend_type = 'client backend' and application_name not like 'lossy upgrade %'"
    )
    with engine_of(uri).connect() as connection:
        return [str(who) for (who,) in connection.execute(sqlalchemy.text(statement))]

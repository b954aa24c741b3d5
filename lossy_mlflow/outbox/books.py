"""What an outbox holds, sending it by hand, and throwing it away: what `lossy outbox` does."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lossy_mlflow.errors import ConflictError, NotFoundError, UnreachableError, UsageError, did_you_mean
from lossy_mlflow.outbox.address import outbox_root, server_uri
from lossy_mlflow.outbox.folder import RunFolder, ServerFolder, server_folders
from lossy_mlflow.outbox.writers import is_being_written

if TYPE_CHECKING:
    from lossy_mlflow.outbox.deliver import RunDelivery

_LOOK_EVERY_S = 0.1


@dataclass(frozen=True, slots=True)
class OutboxRun:
    """One run of an outbox. `waiting`: records that the server doesn't have; `oldest_s`: the age of the oldest, in seconds.

    `error`: why they wait, as the last sender found. `being_written`: a program of this machine is at work on it.
    """

    run_name: str
    key: str
    server_run_id: str
    server: str
    waiting: int
    oldest_s: float | None
    refused: int
    error: str
    being_written: bool
    folder: str


@dataclass(frozen=True, slots=True)
class Sent:
    """What `send` did: runs that the server has whole now, and what it refused for good."""

    server: str
    runs: int
    refused: int
    waiting: int


def list_outbox(root: Path | None = None) -> list[OutboxRun]:
    """Every run that lies in the outbox `root` (the user's own, if None), those that wait first."""
    found = [
        _describe(run, server.uri() or "")
        for server in server_folders(root or outbox_root())
        for run in server.runs()
    ]
    return sorted(found, key=lambda run: (not run.waiting, run.server, run.run_name))


def _describe(run: RunFolder, uri: str) -> OutboxRun:
    definition, state = run.definition(), run.delivered(uri)
    oldest = [record.time for record in run.waiting(uri)]
    return OutboxRun(
        run_name=str(definition.get("run_name", "")),
        key=run.key,
        server_run_id=state.server_run_id or str(definition.get("server_run_id", "")),
        server=uri,
        waiting=len(oldest),
        oldest_s=max(0.0, time.time() - min(oldest) / 1000) if oldest else None,
        refused=state.refused,
        error=state.error,
        being_written=is_being_written(run),
        folder=str(run.path),
    )


def send(folder: Path, to: str | None, named: str, progress: Callable[[str], None] | None = None) -> Sent:
    """Deliver what lies in `folder`: an outbox, a server's folder in one, or a run's, wherever it was copied.

    `to`: the server; None: the one that it was logged for, if `named` (MLFLOW_TRACKING_URI) means the same, since credentials of
    one server must not go to another. May be repeated, and done while a program still logs; nothing is deleted.
    Raises NotFoundError, UsageError, and UnreachableError where the server can't take it now.
    """
    from lossy_mlflow.outbox.api import Api, WaitingError
    from lossy_mlflow.outbox.deliver import RunDelivery

    runs = list(_runs_in(folder))
    if not runs:
        raise NotFoundError(
            f"No outbox in {folder}: there is neither a server.json nor a run.json in it.",
            f"Yours is {outbox_root()}    What waits in it: lossy outbox status",
        )
    uri = _server_for(runs, to, named)
    api = Api(uri)
    problems = []
    for server, run in runs:
        if progress:
            progress(f"{run.definition().get('run_name') or run.key}: {len(run.waiting(uri))} records")
        try:
            _deliver_whole(RunDelivery(server, run, api, uri))
        except WaitingError as error:
            problems.append(str(error))
            if error.everything:
                break
    waiting = sum(len(run.waiting(uri)) for _, run in runs)
    if problems:
        raise UnreachableError(
            f"{waiting} records of {folder} can't be delivered to {uri} now: {problems[0]}",
            "Nothing is lost. When that is mended, start the same command again.",
        )
    return Sent(uri, len(runs), sum(run.delivered(uri).refused for _, run in runs), waiting)


def _deliver_whole(delivery: RunDelivery) -> None:
    """Its values and files, and its deferred calls to their end. Raises WaitingError."""
    from lossy_mlflow.outbox.api import WaitingError

    delivery.check_kept()
    while delivery.deliver(last=True):
        if delivery.error:
            raise WaitingError(delivery.error)
        time.sleep(_LOOK_EVERY_S)


def _runs_in(folder: Path) -> Iterator[tuple[ServerFolder, RunFolder]]:
    if (folder / "run.json").exists():
        yield ServerFolder(folder.absolute().parent.parent), RunFolder(folder)
        return
    for server in server_folders(folder):
        for run in server.runs():
            yield server, run


def _server_for(runs: list[tuple[ServerFolder, RunFolder]], to: str | None, named: str) -> str:
    if to is not None:
        if not server_uri(to).startswith(("http://", "https://")):
            raise UsageError(f"--to takes a server's address, not {to!r}.", "--to http://HOST:PORT")
        return server_uri(to)
    wanted = {uri for server, _ in runs if (uri := server.uri())}
    if wanted == {server_uri(named)}:
        return server_uri(named)
    raise UsageError(
        f"This was logged for {', '.join(sorted(wanted)) or 'a server that is not named in it'}, which"
        " MLFLOW_TRACKING_URI doesn't name: its credentials are kept from going anywhere else.",
        f"Say where it goes: --to {next(iter(sorted(wanted)), 'http://HOST:PORT')}",
    )


def find_outbox_run(name: str, root: Path | None = None) -> OutboxRun:
    """The run of the outbox with this key, server's id or name. Raises NotFoundError, or ConflictError where several have it."""
    runs = list_outbox(root)
    found = [run for run in runs if name in (run.key, run.server_run_id, run.run_name)]
    if len(found) > 1:
        keys = ", ".join(run.key for run in found)
        raise ConflictError(
            f"{len(found)} runs of the outbox are called {name!r}.", f"Name one by its key: {keys}"
        )
    if not found:
        raise NotFoundError(
            f"No run {name!r} in the outbox {root or outbox_root()}."
            + (f" {meant}" if (meant := did_you_mean(name, [run.run_name for run in runs])) else ""),
            "What is in it: lossy outbox status",
        )
    return found[0]


def discard(run: OutboxRun) -> None:
    """Delete the run's folder, and with it whatever the server doesn't have. Raises ConflictError while a program writes it."""
    if run.being_written:
        raise ConflictError(
            f"A program is writing the run {run.run_name or run.key}.", "End that program first."
        )
    shutil.rmtree(run.folder)

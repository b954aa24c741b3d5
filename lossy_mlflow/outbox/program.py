"""The outbox as a program that logs sees it: one object per server, shared by MLflow's store and its artifact repositories."""

from __future__ import annotations

import atexit
import contextlib
import logging
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, unquote, urlsplit

from lossy_mlflow.outbox.address import PREFIX, server_uri
from lossy_mlflow.outbox.api import Api, WaitingError
from lossy_mlflow.outbox.folder import RunFolder, ServerFolder
from lossy_mlflow.outbox.journal import Journal, Journals
from lossy_mlflow.outbox.records import Kind
from lossy_mlflow.outbox.start import ensure_sender, sending_delay, something_waits
from lossy_mlflow.outbox.unsaved import in_words

T = TypeVar("T")
ARTIFACT_SCHEME = "outbox-artifacts"
log = logging.getLogger("lossy_mlflow.outbox")

# A program asks the server only where it reads, or makes a run; it waits this long for it, and not again for a while.
_ANSWER_WITHIN_S = (2.0, 5.0)
_ASK_AGAIN_AFTER_S = 15.0
_TRUST_S = 2.0
_READ_AFTER_WRITE_S = 5.0
_AT_EXIT_S = 10.0
_SENDER_AGAIN_AFTER_S = 5.0
_LOOK_EVERY_S = 0.05


class Outbox:
    """What this process logs for one server. Raises UsageError where the environment says something odd of its sender."""

    def __init__(self, uri: str) -> None:
        sending_delay()
        self.uri = uri
        self.folder = ServerFolder.of(uri)
        self._api = Api(uri, _ANSWER_WITHIN_S)
        self._away_until = 0.0
        self._answered = float("-inf")
        self._journals = Journals(self._look_after_sender)
        self._used = False
        self._sender_due = 0.0
        self._prepared = False
        try:
            self._prepare()
        except OSError as error:
            log.warning("the outbox %s can't be made (%s)", self.folder.path, error.strerror)
        atexit.register(self._finish)

    def _prepare(self) -> None:
        if not self._prepared:
            self.folder.prepare(self.uri)
            self._prepared = True

    # Writing

    def append(self, run_id: str, kind: Kind, content: Any) -> None:
        self.journal(run_id).append(kind, content)

    def journal(self, run_id: str, definition: Mapping[str, Any] | None = None) -> Journal:
        """The journal that this process has of the run. `definition`: what a new one is known by."""
        # Called for every value that is logged: a look at the disk would cost more than writing it does.
        if found := self._journals.get(run_id):
            return found
        run = self.folder.run(run_id)
        if definition is None and not (run.path / "run.json").exists():
            definition = {"server_run_id": run_id}
        journal = self._journals.open(run_id, run, definition)
        self._used = True
        # At once: it is also the one who notices when this process is killed.
        self._look_after_sender()
        return journal

    def knows(self, run_id: str) -> bool:
        """Whether something of the run lies here, or waits in memory to be written."""
        return self._journals.get(run_id) is not None or self.folder.run(run_id).path.exists()

    def artifact_uri(self, run_id: str) -> str:
        """Where the program finds the run's artifacts, and puts them; `read_artifact_uri` reads it."""
        return f"{ARTIFACT_SCHEME}://{quote(str(self.folder.path))}/runs/{run_id}/artifacts"

    def flush(self) -> None:
        """All that was logged is on the disk when this returns."""
        for journal in self._journals.all():
            journal.keep()

    # Asking

    def ask(self, question: Callable[[Api], T]) -> T:
        """The server's answer; raises WaitingError, at once where it was away a moment ago."""
        if time.monotonic() < self._away_until:
            raise WaitingError("the server was away a moment ago", everything=True)
        try:
            answer = question(self._api)
        except WaitingError as error:
            if error.everything:
                self.has_gone()
            raise
        self._answered = time.monotonic()
        return answer

    def has_gone(self) -> None:
        """Note that the server didn't answer just now."""
        self._answered = float("-inf")
        self._away_until = time.monotonic() + _ASK_AGAIN_AFTER_S

    def check_server(self) -> None:
        """Raises WaitingError where the server doesn't answer now: MLflow's own client would try for minutes to find that out."""
        if time.monotonic() - self._answered > _TRUST_S:
            self.ask(lambda api: api.get("experiments/search", {"max_results": 1}))

    def server_run_id(self, run_id: str) -> str | None:
        """The id by which the server knows the run; None where it doesn't yet."""
        run = self.folder.run(run_id)
        if not run.path.exists():
            return run_id
        known = run.delivered(self.uri).server_run_id or run.definition().get("server_run_id")
        return str(known) if known else None

    def wait_until_delivered(self, limit_s: float = _READ_AFTER_WRITE_S) -> bool:
        """Whether what this process has logged so far arrives within `limit_s`; not waited for where the server is away."""
        self.flush()
        ends = [(journal.folder, *journal.end()) for journal in self._journals.all()]
        until = time.monotonic() + limit_s
        while self._in_memory() or not all(
            _has_arrived(folder, self.uri, name, size) for folder, name, size in ends
        ):
            if time.monotonic() > until or time.monotonic() < self._away_until:
                return False
            self._look_after_sender()
            self.folder.ask()
            time.sleep(_LOOK_EVERY_S)
        return True

    def has_delivered(self, run_id: str, limit_s: float) -> bool:
        """Whether the server answers, and has all of the run, deferred calls included, within `limit_s`."""
        try:
            self.check_server()
        except WaitingError:
            return False
        return self.wait_until_delivered(limit_s) and not something_waits(self.folder.run(run_id), self.uri)

    def _in_memory(self) -> bool:
        return any(journal.waiting_in_memory for journal in self._journals.all())

    def _look_after_sender(self) -> None:
        # One that ends at once, since it may not work here, must not be started twice a second.
        if self._used and time.monotonic() >= self._sender_due:
            try:
                self._prepare()
                if ensure_sender(self.folder, self.uri):
                    self._sender_due = time.monotonic() + _SENDER_AGAIN_AFTER_S
            except OSError as error:
                log.debug("no sender could be started: %s", error)

    # The end

    def _finish(self) -> None:
        if not self._used:
            return
        _end_active_runs()
        for journal in self._journals.all():
            journal.close()
        self._away_until = 0.0
        # Where the server is away the sender waits for it, and nobody else.
        with contextlib.suppress(WaitingError):
            self.check_server()
            self.wait_until_delivered(_AT_EXIT_S)
        for line in self._last_words(self._journals.all()):
            print(f"lossy_mlflow.outbox: {line}", file=sys.stderr)

    def _last_words(self, journals: Iterable[Journal]) -> list[str]:
        runs = {journal.folder.path: journal.folder for journal in journals}.values()
        waiting = sum(len(run.waiting(self.uri)) for run in runs)
        states = [run.delivered(self.uri) for run in runs]
        refused = sum(state.refused for state in states)
        in_memory = sum(journal.waiting_in_memory for journal in journals)
        lost = [name for journal in journals for name in journal.unsaved.names()]
        lost += [f"{in_memory} values"] if in_memory else []
        words = []
        if waiting:
            why = next((state.error for state in states if state.error), "not delivered yet")
            words.append(
                f"{waiting} records wait in {self.folder.path} for {server_uri(self.uri)} ({why}); a sender goes on"
                f" in the background, or send them: lossy outbox send {self.folder.path}"
            )
        if refused:
            words.append(f"{refused} values were refused by the server for good; see: lossy outbox status")
        if lost:
            words.append(f"could not be written to {self.folder.path} and is lost: {in_words(lost)}")
        return words


def read_artifact_uri(artifact_uri: str) -> tuple[str, str, str]:
    """The server's address, the run, and the path below its artifacts ('' for all), of an outbox's artifact URI."""
    path = unquote(urlsplit(artifact_uri).path)
    found = re.fullmatch(r"(.*)/runs/([^/]+)/artifacts(?:/(.*))?", path)
    folder = Path(found[1]) if found else Path()
    # What a full disk had no room for is known all the same to the process that uses it.
    uri = server_uri(_outboxes[folder].uri) if folder in _outboxes else ServerFolder(folder).uri()
    if found is None or uri is None:
        raise ValueError(f"no outbox's artifact URI: {artifact_uri}")
    return uri, found[2], (found[3] or "").strip("/")


def _has_arrived(run: RunFolder, uri: str, segment: str, size: int) -> bool:
    has_records = size == 0 or run.delivered(uri).reached(segment) >= size
    return has_records and not run.waiting_calls(uri)


def _end_active_runs() -> None:
    """What MLflow does at exit as well, but after this: what it says then must still be delivered."""
    import mlflow

    while mlflow.active_run() is not None:
        mlflow.end_run()


_lock = threading.Lock()


# By their folders: whoever knows a server by its plain address alone gets the one that has its credentials.
_outboxes: dict[Path, Outbox] = {}


def outbox_for(uri: str) -> Outbox:
    """The process's outbox for the server that `uri` names, with or without `outbox+`."""
    folder = ServerFolder.of(uri).path
    with _lock:
        if folder not in _outboxes:
            _outboxes[folder] = Outbox(uri if uri.startswith(PREFIX) else PREFIX + uri)
        return _outboxes[folder]

"""The process that delivers one server's folder, and ends the runs of programs that died: one a folder and machine.

    python -m lossy_mlflow.outbox.sender SERVER_FOLDER

It ends when all is delivered and no program writes any more; until then it tries again, however long the server is away. Where
it is killed, the next program that logs, or the next `lossy` command, starts another.
"""

from __future__ import annotations

import math
import os
import shutil
import sys
import time
from pathlib import Path

from lossy_mlflow.errors import LossyError, UsageError
from lossy_mlflow.outbox.address import server_uri
from lossy_mlflow.outbox.api import Api, ExistsError, MissingError, RefusedError, WaitingError
from lossy_mlflow.outbox.claim import claim, release, sender_file
from lossy_mlflow.outbox.deliver import RunDelivery
from lossy_mlflow.outbox.folder import RunFolder, ServerFolder
from lossy_mlflow.outbox.start import DELAY_S, sending_delay, something_waits
from lossy_mlflow.outbox.writers import close_as_failed, is_being_written, lives, owner_that_died

_TURN_S = 0.5
_IDLE_TURNS = 6
_LONGEST_WAIT_S = 30.0
_GIVE_UP_AFTER_S = 24 * 3600
_KEEP_DELIVERED_S = 7 * 24 * 3600
# In no less time is a server stopped, restored from a backup, and started.
_TRUST_S = 3.0


class Sender:
    """The turns of one sender over a server's folder.

    `delay`: what a living program logs goes out at most so often, in seconds, unless somebody waits for it. A request with many
    values costs the server hardly more than one with a single value.
    """

    def __init__(self, folder: ServerFolder, uri: str, delay: float = DELAY_S) -> None:
        self._delay = delay
        self._folder = folder
        self._uri = uri
        self._api = Api(uri)
        self._deliveries: dict[Path, RunDelivery] = {}
        self._done: set[Path] = set()
        self._try_run_at: dict[Path, float] = {}
        self._sent_at: dict[Path, float] = {}
        self._asked = 0
        self._judged: dict[Path, list[tuple[int, bool]]] = {}
        # What the server has acknowledged is compared with what it has, once for each number of this.
        self._doubts = 0
        self._checked: dict[Path, int] = {}

    def turn(self) -> tuple[bool, bool]:
        """Deliver what can be; returns whether anything waits still, and whether a program is at work that may log more.

        Raises WaitingError where the server takes nothing now.
        """
        waits = alive = False
        asked_before, self._asked = self._asked, self._folder.asked()
        delay = self._delay if self._asked == asked_before else 0.0
        for run in self._folder.runs():
            if not (run.path / "run.json").exists() and not run.segments():
                continue  # its program is creating it at this moment
            if run.path in self._done:
                if not something_waits(run, self._uri) and self._checked.get(run.path) == self._doubts:
                    continue
                self._done.discard(run.path)
            living = is_being_written(run)
            alive = alive or living
            if living and time.monotonic() < self._sent_at.get(run.path, -math.inf) + delay:
                continue
            self._sent_at[run.path] = time.monotonic()
            if self._deliver(run, last=not living):
                waits = True
            elif not living:
                self._deliveries.pop(run.path)
                self._done.add(run.path)
        return waits, alive

    def _deliver(self, run: RunFolder, *, last: bool) -> bool:
        """Whether something of the run waits still."""
        now = time.monotonic()
        if self._try_run_at.get(run.path, 0) > now:
            return True
        try:
            if not run.segments() and is_being_written(run):
                return True  # it is being created at this moment
            self._close_if_dead(run)
            delivery = self._deliveries.setdefault(
                run.path, RunDelivery(self._folder, run, self._api, self._uri)
            )
            self._check_kept(run, delivery)
            return delivery.deliver(last=last)
        except WaitingError as error:
            if error.everything:
                raise
            self._try_run_at[run.path] = now + _LONGEST_WAIT_S
            return True
        except (OSError, LossyError, RefusedError, MissingError, ExistsError):
            # A disk that can't take the note of what was delivered, a folder of a newer version, a run that somebody removes at
            # this moment: not the others' fault.
            self._try_run_at[run.path] = now + _LONGEST_WAIT_S
            return True

    def doubt(self) -> None:
        """The server was away: it may be back from a backup, without what it acknowledged last."""
        if self._api.silent_s > _TRUST_S:
            self._doubts += 1

    def _check_kept(self, run: RunFolder, delivery: RunDelivery) -> None:
        """Before anything is sent that would hide what is missing: when there is a doubt, or nothing was heard for a while."""
        doubted = self._checked.get(run.path) != self._doubts
        if not doubted and not (self._api.silent_s > _TRUST_S and something_waits(run, self._uri)):
            return
        kept = delivery.check_kept()
        if not kept and not doubted:
            self._doubts += 1  # then the others are doubtful too
        self._checked[run.path] = self._doubts

    def _close_if_dead(self, run: RunFolder) -> None:
        """Judge the run anew whenever it has grown and one of its writers is dead: to do so takes reading all of it."""
        segments = run.segments()
        alive = {owner: lives(run, owner) for segment in segments if (owner := segment.owner)}
        if segments and all(alive.values()):
            return
        facts = [(segment.size(), segment.owner is None or alive[segment.owner]) for segment in segments]
        if self._judged.get(run.path) != facts:
            if dead := owner_that_died(run, self._uri, alive):
                close_as_failed(run, dead)
            self._judged[run.path] = facts

    def remove_old(self) -> None:
        """Remove what was delivered a week ago; until then a server that was restored from a backup can have it again."""
        for path in self._done:
            run = RunFolder(path)
            try:
                if time.time() - run.delivered_time(self._uri) > _KEEP_DELIVERED_S:
                    shutil.rmtree(path)
            except OSError:
                continue


def main() -> None:
    folder = ServerFolder(Path(sys.argv[1]))
    uri = folder.uri()
    # What the environment names as credentials belongs to the server that it names, and to no other.
    if uri is None or server_uri(os.environ.get("MLFLOW_TRACKING_URI", "")) != uri:
        sys.exit(f"{folder.path} waits for {uri}, which MLFLOW_TRACKING_URI doesn't name")
    if not claim(sender_file(folder.path)):
        return
    try:
        _run(Sender(folder, uri, _delay()))
    finally:
        release(sender_file(folder.path))


def _delay() -> float:
    try:
        return sending_delay()
    except UsageError:
        # Who logs has been told; what waits goes out all the same.
        return DELAY_S


def _run(sender: Sender) -> None:
    idle, pause = 0, _TURN_S
    delivered_last = time.monotonic()
    while idle < _IDLE_TURNS and time.monotonic() - delivered_last < _GIVE_UP_AFTER_S:
        try:
            waits, alive = sender.turn()
            pause = _TURN_S
            idle = 0 if waits or alive else idle + 1
            if not waits:
                delivered_last = time.monotonic()
        except WaitingError:
            sender.doubt()
            idle, pause = 0, min(2 * pause, _LONGEST_WAIT_S)
        time.sleep(pause)
    sender.remove_old()


if __name__ == "__main__":
    main()

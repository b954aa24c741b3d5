"""Where what stands in a run's folder goes: which run of the server has it, and what goes to another run instead."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from lossy_mlflow.outbox.api import Api, MissingError, RefusedError
from lossy_mlflow.outbox.fences import Fence, destination, judge
from lossy_mlflow.outbox.folder import RunFolder, ServerFolder
from lossy_mlflow.outbox.kept import has_lost, progress_in
from lossy_mlflow.outbox.target import (
    PROGRESS_TAG,
    Target,
    experiment_id_of,
    find_or_create_run,
    get_run,
    superseded_definition,
    tags_of_run,
)

_PARENT_TAG = "mlflow.parentRunId"


class Destination:
    """The run of one server that takes what stands in `folder`, and the books of how far it has it (`delivered`)."""

    def __init__(self, server: ServerFolder, folder: RunFolder, api: Api, uri: str) -> None:
        self.folder = folder
        self.api = api
        self.uri = uri
        self.delivered = folder.delivered(uri)
        self._server = server
        self._run: Target | None = None
        self._fences: list[Fence] = []

    # The run

    @property
    def is_known(self) -> bool:
        return self._run is not None

    def run(self) -> Target:
        """The run on the server, found or made. Raises MissingError and WaitingError."""
        if self._run is None:
            self._run = self._find()
            if self.delivered.server_run_id not in ("", self._run.run_id):
                # A racing sender's run has gone, or a server was restored: all of it goes to the one that stays.
                self.delivered.forget()
            self.delivered.server_run_id = self._run.run_id
            self.save()
            self._server.remember_id(self._run.run_id, self.folder.key)
        return self._run

    def is_another_by_now(self) -> bool:
        """Look again: of several runs that racing senders made another one may have stayed."""
        before, self._run = self.delivered.server_run_id, None
        return self.run().run_id != before

    def forget(self) -> None:
        """The server has nothing of it any more: it is to be made again."""
        self.delivered.forget()
        self._run = None

    def is_kept(self) -> bool:
        """Whether the server still has what it has acknowledged. Where not, it is noted that all is to be sent again."""
        if not has_lost(self.api, self.folder, self.delivered):
            return True
        self.delivered.send_again()
        # Looked for anew: it may be gone altogether.
        self._run = None
        self.save()
        return False

    def check_is_active(self) -> None:
        """A deleted run refuses whatever it is given: that is not the values' fault. Raises WaitingError."""
        get_run(self.api, self.run().run_id)

    def _find(self) -> Target:
        definition = self.folder.definition()
        if foreign := definition.get("server_run_id"):
            try:
                return get_run(self.api, str(foreign))
            except MissingError:
                # Only what was known of its experiment can bring it back.
                if not definition.get("experiment_name"):
                    raise
        experiment_id = experiment_id_of(self.api, definition)
        definition = {**definition, "tags": self.translated(definition.get("tags", []))}
        return find_or_create_run(self.api, self.folder.key, experiment_id, definition)

    def translated(self, tags: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The same tags, with a parent run that was made offline under the id that the server gave it."""
        return [
            {**tag, "value": self._server_id_of(str(tag["value"]))} if tag["key"] == _PARENT_TAG else tag
            for tag in tags
        ]

    def _server_id_of(self, run_id: str) -> str:
        try:
            parent = self._server.run(run_id)
        except ValueError:
            return run_id
        if parent.key == self.folder.key or not (parent.path / "run.json").exists():
            return run_id
        return Destination(self._server, parent, self.api, self.uri).run().run_id

    def tell_progress(self) -> None:
        """Have a tag of the run say how far it is delivered, where that is news. Raises WaitingError and MissingError."""
        progress, run_id = self.delivered.progress, self.run().run_id
        if progress <= self.delivered.told:
            return
        try:
            # Of two senders of copies of a folder the one that is behind must not come last.
            if progress > progress_in(tags_of_run(self.api, run_id)):
                self.api.post("runs/set-tag", {"run_id": run_id, "key": PROGRESS_TAG, "value": str(progress)})
        except RefusedError:
            self.check_is_active()
            return
        self.delivered.told = progress
        self.save()

    # What belongs to another run

    def judge_fences(self) -> None:
        """Whose the run is by now, by the attempts that stand in the folder and the tag on the server (see `fences`)."""
        self._fences = self.folder.fences()
        if not self._fences:
            return
        tag, run_id = self._fences[-1].tag, self.run().run_id
        while True:
            there = tags_of_run(self.api, run_id).get(tag, "")
            verdicts, holder = judge(self._fences, self.delivered.verdicts, there, self.folder.key)
            if holder == there:
                break
            # Then it is looked at again: of two that set it at once the later has it.
            self.api.post("runs/set-tag", {"run_id": run_id, "key": tag, "value": holder})
        if verdicts != self.delivered.verdicts:
            self.delivered.verdicts = verdicts
            self.save()

    def other_run(self, owner: str, time: int) -> str:
        """The key of the run that has what `owner` wrote at `time`; '' where it is this one."""
        return destination(self._fences, self.delivered.verdicts, owner, time)

    def folder_of(self, key: str) -> RunFolder:
        """The folder of the run that takes what a superseded attempt logs; the server's run says what it is."""
        other = RunFolder(self.folder.path.with_name(key))
        if not other.definition():
            other.define(superseded_definition(self.api, self.run(), self.folder.definition()))
        return other

    # Books

    def refuse(self, what: str, content: dict[str, Any], why: object) -> None:
        """Set aside what the server refused for good."""
        with contextlib.suppress(OSError):
            self.folder.refuse({"what": what, "content": content, "why": str(why)[:2000]})
        self.delivered.refused += 1

    def note(self, error: str) -> None:
        """Why the rest waits, or ''."""
        if self.delivered.error != error:
            self.delivered.error = error
            self.save()

    def save(self) -> None:
        # A disk that is full, or mounted to be read only, is not in the way: what isn't noted is sent again.
        with contextlib.suppress(OSError):
            self.folder.save_delivered(self.delivered)

"""One run's way to a server: what of its folder the server doesn't have yet, in order, in batches, each value once.

Whatever is sent may be sent again: the server keeps a metric of the same key, step, time and value once, takes the same param
twice, and a tag's or state's newest word comes last. So progress is noted after the fact, and a kill at any moment loses nothing.
"""

from __future__ import annotations

import contextlib
import heapq
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from lossy_mlflow.outbox.api import Api, MissingError, RefusedError, WaitingError
from lossy_mlflow.outbox.calls import CallRunner
from lossy_mlflow.outbox.fences import Fence, destination, judge
from lossy_mlflow.outbox.folder import RunFolder, ServerFolder
from lossy_mlflow.outbox.journal import now_ms
from lossy_mlflow.outbox.records import Record, RunView, fold
from lossy_mlflow.outbox.start import something_waits
from lossy_mlflow.outbox.target import (
    Target,
    experiment_id_of,
    find_or_create_run,
    get_run,
    model_outputs_of_run,
    superseded_definition,
    tags_of_run,
)
from lossy_mlflow.outbox.upload import upload_with_mlflow

_READ_BYTES = 4_000_000
_BODY_BYTES = 800_000
_BATCH = {"metrics": 1000, "params": 100, "tags": 100}
_PARENT_TAG = "mlflow.parentRunId"
_ENDED = ("FINISHED", "FAILED", "KILLED")


@dataclass(frozen=True, slots=True)
class _Item:
    """A record on its way. `end`: the offset behind it in its segment. `to`: the key of its run, if it is another."""

    segment: str
    end: int
    record: Record
    to: str

    @property
    def ends_the_run(self) -> bool:
        return self.record.kind == "state" and self.record.content.get("status") in _ENDED


class RunDelivery:
    """The delivery of one run folder to one server, from whatever stands delivered already."""

    def __init__(self, server: ServerFolder, folder: RunFolder, api: Api, uri: str) -> None:
        self._server = server
        self._folder = folder
        self._api = api
        self._uri = uri
        self._delivered = folder.delivered(uri)
        self._target: Target | None = None
        self._settled = False
        self._ended = False
        self._sizes: dict[str, int] = {}
        self._fences: list[Fence] = []
        self._calls = CallRunner(folder, uri)
        self._call_error = ""

    def deliver(self, *, last: bool = False) -> bool:
        """Deliver all that stands in the folder now; whether deferred calls are left, which go on meanwhile.

        `last`: nobody writes any more. The first time it is asked whether the server still has the run, though nothing waits: it
        may have been restored from a backup. Raises WaitingError where something can't be delivered yet: the folder then says
        why, and the rest is through.
        """
        try:
            self._deliver_again_if_missing(last)
        except WaitingError as error:
            if not error.everything and not something_waits(self._folder, self._uri):
                return False  # somebody has deleted a run that is delivered: that is no fault
            self._note(str(error))
            raise
        left = self._carry_out_calls()
        self._note(self._call_error)
        return left

    @property
    def error(self) -> str:
        """Why the rest waits, or ''."""
        return self._delivered.error

    def resolve(self) -> Target:
        """The run on the server, found or made."""
        if self._target is None:
            self._target = self._find_target()
            if self._delivered.server_run_id not in ("", self._target.run_id):
                # A racing sender's run has gone, or a server was restored: all of it goes to the one that stays.
                self._delivered.forget()
            self._delivered.server_run_id = self._target.run_id
            self._delivered.experiment_id = self._target.experiment_id
            self._save()
            self._server.remember_id(self._target.run_id, self._folder.key)
        return self._target

    def _deliver_again_if_missing(self, last: bool) -> None:
        try:
            self._deliver(last)
        except WaitingError as error:
            if error.everything or not self._is_another_by_now():
                raise
            self._deliver(last)
        except MissingError:
            # The server was restored from a backup, or somebody purged the run: it is made again, with all there was.
            self._delivered.forget()
            self._target = None
            try:
                self._deliver(last)
            except MissingError as error:
                raise WaitingError(f"the server doesn't know it: {error}") from error

    def _is_another_by_now(self) -> bool:
        """Whether the run that was found is one of several that racing senders made, and another sender has soft-deleted it."""
        if self._target is None:
            return False
        before, self._target = self._target.run_id, None
        return self.resolve().run_id != before

    def _deliver(self, last: bool) -> None:
        if self._target is not None and not something_waits(self._folder, self._uri):
            if last:
                self._settle()
            return
        self.resolve()
        self._judge_fences()
        # Up to here, and not after a program that goes on writing: each of its records would be sent by itself.
        self._sizes = {segment.name: segment.size() for segment in self._folder.segments()}
        self._deliver_values(through_the_end=False)
        blocked: WaitingError | None = None
        try:
            self._deliver_files()
        except WaitingError as error:
            if error.everything:
                raise
            # What is in a file's way is not in the way of the run's values, nor of its end.
            blocked = error
        self._deliver_values(through_the_end=True)
        if blocked:
            raise blocked
        if self._ended or last:
            self._settle()

    def _settle(self) -> None:
        """After the last batch: where another sender has made the run as well, all goes to the one that stays."""
        if self._settled:
            return
        before = self._delivered.server_run_id
        self._target = None
        after = self.resolve()
        self._settled = True
        if after.run_id != before:
            self._deliver(last=False)

    def _find_target(self) -> Target:
        definition = self._folder.definition()
        if foreign := definition.get("server_run_id"):
            try:
                return get_run(self._api, str(foreign))
            except MissingError:
                # Only what was known of its experiment can bring it back.
                if not definition.get("experiment_name"):
                    raise
        experiment_id = experiment_id_of(self._api, definition)
        definition = {**definition, "tags": self._translated(definition.get("tags", []))}
        return find_or_create_run(self._api, self._folder.key, experiment_id, definition)

    # Values

    def _deliver_values(self, *, through_the_end: bool) -> None:
        while True:
            items = self._undelivered(files=False)
            if not through_the_end:
                ends = next((place for place, item in enumerate(items) if item.ends_the_run), len(items))
                items = items[:ends]
            if not items:
                return
            self._settled = False
            self._ended = self._ended or any(item.ends_the_run for item in items)
            for group in _groups(items):
                self._send(group)
                for item in group:
                    self._delivered.offsets[item.segment] = item.end
                self._save()

    def _undelivered(self, *, files: bool) -> list[_Item]:
        """The next records of all segments, in the order of their times."""
        streams = []
        for segment in self._folder.segments():
            offset = self._offset(segment.name, files=files)
            length = min(_READ_BYTES, self._sizes.get(segment.name, 0) - offset)
            if length <= 0:
                continue
            records, end, damaged = segment.read(offset, length)
            if damaged and not files:
                self._refuse("journal", {"segment": segment.name}, f"{damaged} lines fail their checksum")
            if not records and damaged:
                (self._delivered.file_offsets if files else self._delivered.offsets)[segment.name] = end
            owner = str(segment.owner)
            streams.append(
                [
                    _Item(segment.name, behind, record, self._destination(owner, record.time))
                    for behind, record in records
                ]
            )
        return list(heapq.merge(*streams, key=lambda item: item.record.time))

    def _offset(self, segment: str, *, files: bool) -> int:
        return (self._delivered.file_offsets if files else self._delivered.offsets).get(segment, 0)

    def _send(self, group: Sequence[_Item]) -> None:
        kind = group[0].record.kind
        if group[0].to:
            if kind != "artifact":
                self._divert(group)
            return
        contents = [item.record.content for item in group]
        match kind:
            case "metrics":
                self._log_batch("metrics", [_metric(entry) for content in contents for entry in content])
            case "params":
                self._log_batch(
                    "params", [{"key": k, "value": v} for content in contents for k, v in content]
                )
            case "tags":
                self._send_tags({key: value for content in contents for key, value in content})
            case "delete_tag":
                for key in contents:
                    self._delete_tag(key)
            case "state":
                self._send_state(_merged(contents))
            case "inputs":
                for content in contents:
                    self._post_or_refuse("runs/log-inputs", content)
            case "outputs":
                self._send_outputs(contents)
            case _:  # artifacts go their own way; "closed" is for whoever looks after the dead
                pass

    def _send_tags(self, tags: dict[str, Any]) -> None:
        """The newest values of these tags. Another sender may have sent newer ones already: an older one must not come last."""
        sent: dict[str, Any] = {}
        while (newest := self._newest(tags)) != sent:
            entries = [
                {"key": key, "value": value} for key, value in newest.items() if sent.get(key) != value
            ]
            self._log_batch("tags", self._translated(entries))
            sent = newest

    def _newest(self, tags: dict[str, Any]) -> dict[str, Any]:
        news = self._news().tags
        return {key: news.get(key, value) for key, value in tags.items()}

    def _send_state(self, state: dict[str, Any]) -> None:
        """The state, unless it is RUNNING and the run has ended since: its end comes by itself, after its values.

        Then, as with tags, what is newer.
        """
        if state.get("status") == "RUNNING" and self._news().status in _ENDED:
            state = {key: value for key, value in state.items() if key != "status"}
        sent: dict[str, Any] = {}
        while state != sent:
            self._post_or_refuse("runs/update", state)
            sent = state
            news = self._news()
            if "status" in state and news.status not in ("", state["status"]):
                state = {**state, "status": news.status}
                if news.end_time:
                    state["end_time"] = news.end_time

    def _news(self) -> RunView:
        """What the records add up to that are not delivered yet, those included that were written a moment ago."""
        return fold(self._folder.own_records(self._delivered.verdicts, self._delivered.offsets))

    def _log_batch(self, field: str, entries: Sequence[dict[str, Any]]) -> None:
        for piece in _pieces(entries, _BATCH[field]):
            self._log_piece(field, piece)

    def _log_piece(self, field: str, piece: Sequence[dict[str, Any]]) -> None:
        body = {"run_id": self.resolve().run_id, field: list(piece)}
        try:
            self._api.post("runs/log-batch", body)
        except RefusedError as error:
            self._check_run_is_active()
            if len(piece) == 1:
                self._refuse(field, piece[0], error)
                return
            # One bad value must not take the good ones with it.
            half = len(piece) // 2
            self._log_piece(field, piece[:half])
            self._log_piece(field, piece[half:])

    def _post_or_refuse(self, method: str, content: dict[str, Any]) -> None:
        try:
            self._api.post(method, {"run_id": self.resolve().run_id, **content})
        except RefusedError as error:
            self._check_run_is_active()
            self._refuse(method, content, error)

    def _send_outputs(self, contents: Sequence[dict[str, Any]]) -> None:
        """Those that the run doesn't have: unlike all else, the server refuses them a second time."""
        there = model_outputs_of_run(self._api, self.resolve().run_id)
        models = [model for content in contents for model in content.get("models", [])]
        if new := [model for model in models if model.get("model_id") not in there]:
            self._post_or_refuse("runs/outputs", {"models": new})

    def _delete_tag(self, key: str) -> None:
        try:
            self._api.post("runs/delete-tag", {"run_id": self.resolve().run_id, "key": key})
        except MissingError:
            # It is gone already, or the run is: then this says so.
            self._check_run_is_active()
        except RefusedError as error:
            self._check_run_is_active()
            self._refuse("delete_tag", {"key": key}, error)

    def _check_run_is_active(self) -> None:
        """A deleted run refuses whatever it is given: that is not the values' fault. Raises WaitingError."""
        get_run(self._api, self.resolve().run_id)

    def _refuse(self, what: str, content: dict[str, Any], why: object) -> None:
        with contextlib.suppress(OSError):
            self._folder.refuse({"what": what, "content": content, "why": str(why)[:2000]})
        self._delivered.refused += 1

    def _translated(self, tags: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
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
        if parent.key == self._folder.key or not (parent.path / "run.json").exists():
            return run_id
        return RunDelivery(self._server, parent, self._api, self._uri).resolve().run_id

    # Files

    def _deliver_files(self) -> None:
        while items := self._undelivered(files=True):
            files = [item for item in items if item.record.kind == "artifact" and not item.to]
            newest = fold([(item.segment, item.record) for item in files]).artifacts
            for item in items:
                if item.record.kind == "artifact" and item.to:
                    self._diverted(item.to).take_file(item.record.content["file"], self._folder)
                    self._divert([item])
                elif (
                    item.record.kind == "artifact"
                    and newest[item.record.content["path"]] is item.record.content
                ):
                    self._deliver_file(item.record.content)
                self._delivered.file_offsets[item.segment] = item.end
                if item.record.kind == "artifact":
                    self._save()
            self._save()

    def _deliver_file(self, content: Mapping[str, Any]) -> None:
        path = self._folder.files / content["file"]
        if not path.exists() and self._folder.is_superseded(content, self._delivered.verdicts):
            return
        if not path.exists() or path.stat().st_size != content["size"]:
            raise WaitingError(f"the file {path} is not there, or not whole yet: copy the folder again")
        target = urlsplit(self.resolve().artifact_uri)
        if target.scheme != "mlflow-artifacts" or target.netloc:
            upload_with_mlflow(self.resolve().artifact_uri, path, content["path"], self._uri)
            return
        try:
            with path.open("rb") as file:
                self._api.put_artifact(f"{target.path.lstrip('/')}/{content['path']}", file)
        except RefusedError as error:
            self._refuse("artifact", {"path": content["path"]}, error)

    # Deferred calls

    def _carry_out_calls(self) -> bool:
        """Whether some are left."""
        names = []
        # What was done is known here, also where a disk that is full doesn't keep the note.
        for call in self._folder.calls(self._delivered.calls):
            if to := self._destination(call.owner, call.time):
                self._diverted(to).take_call(call, self._folder)
                self._delivered.calls.append(call.name)
                self._save()
            else:
                names.append(call.name)
        if not names:
            return False
        done, error = self._calls.poll(names, self.resolve().run_id)
        if done:
            self._delivered.calls += done
            self._save()
        if done or error:
            self._call_error = error
        return len(done) < len(names)

    # What belongs to another run

    def _judge_fences(self) -> None:
        self._fences = self._folder.fences()
        if not self._fences:
            return
        tag, run_id = self._fences[-1].tag, self.resolve().run_id
        while True:
            there = tags_of_run(self._api, run_id).get(tag, "")
            verdicts, holder = judge(self._fences, self._delivered.verdicts, there, self._folder.key)
            if holder == there:
                break
            # Then it is looked at again: of two that set it at once the later has it.
            self._api.post("runs/set-tag", {"run_id": run_id, "key": tag, "value": holder})
        if verdicts != self._delivered.verdicts:
            self._delivered.verdicts = verdicts
            self._save()

    def _destination(self, owner: str, time: int) -> str:
        return destination(self._fences, self._delivered.verdicts, owner, time)

    def _diverted(self, key: str) -> RunFolder:
        """The folder of the run that takes what a superseded attempt logs; the server's run says what it is."""
        other = RunFolder(self._folder.path.with_name(key))
        if not other.definition():
            other.define(superseded_definition(self._api, self.resolve(), self._folder.definition()))
        return other

    def _divert(self, group: Sequence[_Item]) -> None:
        other = self._diverted(group[0].to)
        for item in group:
            other.append(item.segment, item.record)

    # Books

    def _note(self, error: str) -> None:
        if self._delivered.error != error:
            self._delivered.error = error
            self._save()

    def _save(self) -> None:
        # A disk that is full, or mounted to be read only, is not in the way: what isn't noted is sent again.
        with contextlib.suppress(OSError):
            self._folder.save_delivered(self._delivered)


def _metric(entry: Sequence[Any]) -> dict[str, Any]:
    key, value, timestamp, step, *model = entry
    metric = {"key": key, "value": _number(value), "timestamp": timestamp, "step": step}
    return metric | dict(zip(("model_id", "dataset_name", "dataset_digest"), model, strict=False))


def _number(value: Any) -> Any:
    """JSON has no NaN: protobuf's JSON has names for the three."""
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[str(value)]
    return value


def _merged(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for state in states:
        merged |= {key: value for key, value in state.items() if value is not None}
    return merged


def _groups(items: Sequence[_Item]) -> Iterator[list[_Item]]:
    """Neighbours that can be sent in one call: of one kind, up to a full batch."""
    group: list[_Item] = []
    entries = 0
    for item in items:
        kind = item.record.kind
        size = len(item.record.content) if kind in _BATCH else 1
        full = group and entries + size > _BATCH.get(kind, 1000)
        if group and ((kind, item.to) != (group[0].record.kind, group[0].to) or full):
            yield group
            group, entries = [], 0
        group.append(item)
        entries += size
    if group:
        yield group


def _pieces(entries: Sequence[dict[str, Any]], limit: int) -> Iterator[Sequence[dict[str, Any]]]:
    """Runs of entries, at most `limit` of them, and no longer than a request's body may be."""
    start, size = 0, 0
    for place, entry in enumerate(entries):
        length = len(json.dumps(entry))
        if place > start and (place - start == limit or size + length > _BODY_BYTES):
            yield entries[start:place]
            start, size = place, 0
        size += length
    if start < len(entries):
        yield entries[start:]


def owner_that_died(folder: RunFolder, uri: str, lives: Callable[[str], bool | None]) -> str:
    """The process in whose hands the run says RUNNING still though it is dead, and didn't end in order; '' where none is."""
    definition, verdicts = folder.definition(), folder.delivered(uri).verdicts
    view = fold(folder.own_records(verdicts))
    owner = view.state_owner or str(definition.get("owner", ""))
    running = view.status == "RUNNING" or (not view.status and bool(definition.get("owner")))
    if not running or owner in view.closed or lives(owner) is not False:
        return ""
    # One that had lost the run to another machine has not left it in any state.
    return "" if destination(folder.fences(), verdicts, owner, now_ms()) else owner

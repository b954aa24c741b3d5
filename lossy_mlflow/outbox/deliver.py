"""One run's way to a server: what of its folder the server doesn't have yet, in order, in batches, each value once.

Whatever is sent may be sent again: the server keeps a metric of the same key, step, time and value once, takes the same param
twice, and a tag's or state's newest word comes last. So progress is noted after the fact, and a kill at any moment loses nothing.
"""

from __future__ import annotations

import contextlib
import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lossy_mlflow.outbox.api import Api, MissingError, WaitingError
from lossy_mlflow.outbox.calls import CallRunner
from lossy_mlflow.outbox.destination import Destination
from lossy_mlflow.outbox.folder import RunFolder, ServerFolder
from lossy_mlflow.outbox.records import Record, fold
from lossy_mlflow.outbox.start import something_waits
from lossy_mlflow.outbox.upload import send_file
from lossy_mlflow.outbox.values import BATCH, ENDED, send_values

_READ_BYTES = 4_000_000


@dataclass(frozen=True, slots=True)
class _Item:
    """A record on its way. `end`: the offset behind it in its segment. `to`: the key of its run, if it is another."""

    segment: str
    end: int
    record: Record
    to: str

    @property
    def ends_the_run(self) -> bool:
        return self.record.kind == "state" and self.record.content.get("status") in ENDED


class RunDelivery:
    """The delivery of one run folder to one server, from whatever stands delivered already."""

    def __init__(self, server: ServerFolder, folder: RunFolder, api: Api, uri: str) -> None:
        self._folder = folder
        self._uri = uri
        self._to = Destination(server, folder, api, uri)
        self._settled = False
        self._ended = False
        self._sizes: dict[str, int] = {}
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
            self._to.note(str(error))
            raise
        left = self._carry_out_calls()
        self._to.note(self._call_error)
        return left

    @property
    def error(self) -> str:
        """Why the rest waits, or ''."""
        return self._to.delivered.error

    def check_kept(self) -> bool:
        """Whether the server still has what it has acknowledged; where not, all of the run is to be sent again.

        Raises WaitingError.
        """
        kept = self._to.is_kept()
        if not kept:
            self._settled = False
        return kept

    def _deliver_again_if_missing(self, last: bool) -> None:
        try:
            self._deliver(last)
        except WaitingError as error:
            # Of several runs that racing senders made another sender may have soft-deleted the one that was found.
            if error.everything or not self._to.is_known or not self._to.is_another_by_now():
                raise
            self._deliver(last)
        except MissingError:
            # The server was restored from a backup, or somebody purged the run: it is made again, with all there was.
            self._to.forget()
            try:
                self._deliver(last)
            except MissingError as error:
                raise WaitingError(f"the server doesn't know it: {error}") from error

    def _deliver(self, last: bool) -> None:
        if self._to.is_known and not something_waits(self._folder, self._uri):
            if last:
                self._settle()
            return
        self._to.run()
        self._to.judge_fences()
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
        moved = self._to.is_another_by_now()
        self._settled = True
        if moved:
            self._deliver(last=False)
        self._to.tell_progress()

    # Values and files

    def _deliver_values(self, *, through_the_end: bool) -> None:
        while True:
            items = self._undelivered(self._to.delivered.offsets, count_damaged=True)
            if not through_the_end:
                ends = next((place for place, item in enumerate(items) if item.ends_the_run), len(items))
                items = items[:ends]
            if not items:
                return
            self._settled = False
            self._ended = self._ended or any(item.ends_the_run for item in items)
            for group in _groups(items):
                record, to = group[0].record, group[0].to
                if not to:
                    send_values(self._to, record.kind, [item.record.content for item in group])
                elif record.kind != "artifact":
                    self._divert(group)
                for item in group:
                    self._to.delivered.offsets[item.segment] = item.end
                self._to.save()

    def _deliver_files(self) -> None:
        while items := self._undelivered(self._to.delivered.file_offsets, count_damaged=False):
            files = [item for item in items if item.record.kind == "artifact" and not item.to]
            newest = fold([(item.segment, item.record) for item in files]).artifacts
            for item in items:
                is_file = item.record.kind == "artifact"
                if is_file and item.to:
                    self._to.folder_of(item.to).take_file(item.record.content["file"], self._folder)
                    self._divert([item])
                elif is_file and newest[item.record.content["path"]] is item.record.content:
                    send_file(self._to, item.record.content)
                self._to.delivered.file_offsets[item.segment] = item.end
                if is_file:
                    self._to.save()
            self._to.save()
            if files:
                self._to.tell_progress()

    def _undelivered(self, offsets: dict[str, int], *, count_damaged: bool) -> list[_Item]:
        """The next records behind `offsets` of all segments, in the order of their times."""
        streams = []
        for segment in self._folder.segments():
            offset = offsets.get(segment.name, 0)
            length = min(_READ_BYTES, self._sizes.get(segment.name, 0) - offset)
            if length <= 0:
                continue
            records, end, damaged = segment.read(offset, length)
            if damaged and count_damaged:
                why = f"{damaged} lines fail their checksum"
                self._to.refuse("journal", {"segment": segment.name}, why)
            if not records and damaged:
                offsets[segment.name] = end
            owner = str(segment.owner)
            streams.append(
                [
                    _Item(segment.name, behind, record, self._to.other_run(owner, record.time))
                    for behind, record in records
                ]
            )
        return list(heapq.merge(*streams, key=lambda item: item.record.time))

    def _divert(self, group: Sequence[_Item]) -> None:
        other = self._to.folder_of(group[0].to)
        for item in group:
            other.append(item.segment, item.record)

    # Deferred calls

    def _carry_out_calls(self) -> bool:
        """Whether some are left."""
        names = []
        # What was done is known here, also where a disk that is full doesn't keep the note.
        for call in self._folder.calls(self._to.delivered.calls):
            if to := self._to.other_run(call.owner, call.time):
                self._to.folder_of(to).take_call(call, self._folder)
                self._to.delivered.calls.append(call.name)
                self._to.save()
            else:
                names.append(call.name)
        if not names:
            return False
        done, error = self._calls.poll(names, self._to.run().run_id)
        if done:
            self._to.delivered.calls += done
            self._to.save()
            # A run that is gone by now is made again when the rest is delivered.
            with contextlib.suppress(MissingError):
                self._to.tell_progress()
        if done or error:
            self._call_error = error
        return len(done) < len(names)


def _groups(items: Sequence[_Item]) -> Iterator[list[_Item]]:
    """Neighbours that can be sent in one call: of one kind, up to a full batch."""
    group: list[_Item] = []
    entries = 0
    for item in items:
        kind = item.record.kind
        size = len(item.record.content) if kind in BATCH else 1
        full = group and entries + size > BATCH.get(kind, 1000)
        if group and ((kind, item.to) != (group[0].record.kind, group[0].to) or full):
            yield group
            group, entries = [], 0
        group.append(item)
        entries += size
    if group:
        yield group

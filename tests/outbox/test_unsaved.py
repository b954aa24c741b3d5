"""What a disk doesn't take is counted and told, in the run and at the end; and of what it has taken nothing useless stays."""

from __future__ import annotations

import io
import json
import logging
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from lossy_mlflow.outbox.folder import RunFolder
from lossy_mlflow.outbox.journal import Journal
from lossy_mlflow.outbox.records import RunView, fold
from lossy_mlflow.outbox.unsaved import UNSAVED_TAG, Unsaved, in_words
from tests.outbox.conftest import OutboxPlace
from tests.services.disk import fill, resize

DEFINITION = {"run_name": "a run"}


def _keep(journal: Journal, path: str, content: str) -> None:
    journal.keep_file(io.BytesIO(content.encode()), path)


def _copies(folder: RunFolder) -> list[str]:
    return sorted(path.read_text() for path in folder.files.glob("*"))


def _view(folder: RunFolder) -> RunView:
    return fold(folder.records())


# What is not saved


def test_a_run_says_what_of_it_is_not_saved_for_as_long_as_that_is_so(
    small_disk: Path, tmp_path: Path
) -> None:
    folder = RunFolder(small_disk / "runs" / "key")
    journal = Journal(folder, DEFINITION)
    large = tmp_path / "large"
    large.write_bytes(bytes(300_000))
    for path in ("a.bin", "b.bin"):
        journal.add_file(large, path)
    with pytest.raises(OSError, match="No space left"):
        journal.keep_file(io.BytesIO(bytes(300_000)), "c.bin")  # its caller tries again, and counts
    for _ in range(3):
        journal.keep()
    assert _view(folder).tags == {UNSAVED_TAG: "2: a.bin, b.bin"}
    assert len([record for _, record in folder.records() if record.kind == "tags"]) == 1
    resize(small_disk, "2m")
    journal.add_file(large, "b.bin")
    journal.keep()
    assert _view(folder).tags == {UNSAVED_TAG: "1: a.bin"}
    journal.add_file(large, "a.bin")
    journal.close()
    view = _view(folder)
    assert (view.tags, view.deleted_tags) == ({}, {UNSAVED_TAG})


def test_a_disk_without_room_for_another_line_is_not_asked_for_one_again_and_again(
    small_disk: Path, tmp_path: Path
) -> None:
    folder = RunFolder(small_disk / "runs" / "key")
    journal = Journal(folder, DEFINITION)
    others = fill(small_disk)
    for step in range(200):
        journal.append("metrics", [["loss", 0.5, 1, step]])
    waiting = journal.waiting_in_memory
    (tmp_path / "large").write_bytes(bytes(300_000))
    journal.add_file(tmp_path / "large", "a.bin")
    for _ in range(3):
        journal.keep()
    assert journal.waiting_in_memory == waiting > 0
    others.unlink()
    for _ in range(2):
        journal.keep()
    assert _view(folder).tags == {UNSAVED_TAG: "1: a.bin"}


def test_what_an_earlier_process_could_not_save_holds_until_it_is_saved(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "runs" / "key")
    journal = Journal(folder, DEFINITION)
    journal.remember_unsaved("3: images/a.png, version of epoch 4, 12 values")
    with journal.unsaved.keeping("version of epoch 4"):
        pass
    journal.keep()
    assert _view(folder).tags == {UNSAVED_TAG: "2: images/a.png, 12 values"}


def test_what_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    unsaved = Unsaved(tmp_path / "runs" / "key")
    names = [f"{number}.png" for number in range(25)]
    with caplog.at_level(logging.WARNING, "lossy_mlflow.outbox"):
        for name in names * 2:
            with unsaved.keeping(name):
                raise OSError(28, "No space left on device", "/elsewhere")
    assert len(caplog.records) == 1
    unsaved.add_value()
    unsaved.add_value()
    assert unsaved.names() == [*names, "2 values"]
    assert in_words(unsaved.names()) == f"26: {', '.join(names[:20])}, 6 more"
    assert in_words([]) == ""
    for error in (ValueError("a bug"), OSError("not a disk's")):
        with pytest.raises(type(error)), unsaved.keeping("x"):
            raise error
    assert "x" not in unsaved.names()


# Copies that are superseded


@pytest.mark.parametrize("seed", range(8))
def test_the_newest_copy_of_every_path_is_there_at_any_moment(tmp_path: Path, seed: int) -> None:
    """Several writers, in any order; and in the end of each writer no more than that."""
    draw = random.Random(seed)
    folder = RunFolder(tmp_path / "runs" / "key")
    journals = [Journal(folder, DEFINITION), Journal(folder, None)]
    newest: dict[tuple[int, str], str] = {}
    for number in range(60):
        writer, path = draw.randrange(2), draw.choice("abc")
        journal = journals[writer]
        if draw.random() < 0.3:
            journal.keep()
        else:
            _keep(journal, path, str(number))
            newest[writer, path] = str(number)
        copies = _copies(folder)
        assert set(newest.values()) <= set(copies)
        for content in _view(folder).artifacts.values():
            assert (folder.files / content["file"]).exists()
    for journal in journals:
        journal.keep()
    assert _copies(folder) == sorted(newest.values())


def test_a_copy_goes_only_when_the_one_that_supersedes_it_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path / "runs" / "key")
    journal = Journal(folder, DEFINITION)
    _keep(journal, "a", "first")
    journal.keep()
    fsync, there = os.fsync, []

    def traced(descriptor: int) -> None:
        there.append("first" in _copies(folder))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", traced)
    _keep(journal, "a", "second")
    journal.keep()
    assert there
    assert all(there)
    assert _copies(folder) == ["second"]


def test_a_copy_stays_while_the_record_of_the_next_one_waits_in_memory(small_disk: Path) -> None:
    folder = RunFolder(small_disk / "runs" / "key")
    journal = Journal(folder, DEFINITION)
    _keep(journal, "a", "first")
    others = fill(small_disk)
    while not journal.waiting_in_memory:
        journal.append("tags", [["key", "value"]])
    _keep(journal, "a", "")
    journal.keep()
    assert _copies(folder) == ["", "first"]
    others.unlink()
    journal.keep()
    assert _copies(folder) == [""]


def test_what_two_attempts_of_one_process_store_may_be_two_runs(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "runs" / "key")
    journal = Journal(folder, DEFINITION)
    for attempt in ("one", "two"):
        journal.take("attempt", "", attempt)
        for _ in range(2):
            _keep(journal, "a", attempt)
            journal.keep()
    assert _copies(folder) == ["one", "two"]


REPEATED = """
import sys, time, mlflow
mlflow.set_experiment("superseded")
with mlflow.start_run(run_name=sys.argv[1]):
    for number in range(4):
        mlflow.log_text(f"text {number}", "folder/a.txt")
        mlflow.log_text("always", "b.txt")
        mlflow.flush_async_logging()
"""


def test_superseded_copies_are_neither_kept_nor_missed(place: OutboxPlace, name: str, tmp_path: Path) -> None:
    """Wherever and in whatever order they are sent, also again from the start."""
    place.proxy.mode = "refuse"
    assert place.run(REPEATED, name).returncode == 0
    for sender in place.senders():
        sender.kill()
        sender.wait(10)
    (folder,) = place.root.glob("*/runs/*")
    assert _copies(RunFolder(folder)) == ["always", "text 3"]
    carried = tmp_path / "stick"
    shutil.copytree(place.root, carried)
    place.proxy.mode = "pass"
    for outbox in (carried, place.root, place.root):
        done = place.lossy("outbox", "send", str(outbox), "--to", place.server, "--json")
        assert done.returncode == 0, done.stderr
        sent = json.loads(done.stdout)
        assert (sent["refused"], sent["waiting"]) == (0, 0)
        (run,) = place.on_server(name)
        assert _texts(place, run.info.run_id) == {"b.txt": "always", "folder/a.txt": "text 3"}
        for note in folder.glob("delivered-*.json"):
            note.unlink()  # as if nothing had been sent
    # A copy that is missing though nothing has taken its place is another matter.
    newest = next(path for path in RunFolder(folder).files.iterdir() if path.read_text() == "text 3")
    newest.unlink()
    done = place.lossy("outbox", "send", str(place.root), "--to", place.server)
    assert done.returncode == 5
    assert f"{newest} is not there" in done.stderr


def _texts(place: OutboxPlace, run_id: str) -> dict[str, Any]:
    return {
        path: Path(place.client.download_artifacts(run_id, path)).read_text()
        for path in ("b.txt", "folder/a.txt")
    }

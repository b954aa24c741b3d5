"""What a program has logged lies on the disk: whole, in order, soon, private, and again as soon as the disk takes it."""

from __future__ import annotations

import logging
import os
import re
import shutil
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from lossy_mlflow.outbox import journal as journals
from lossy_mlflow.outbox import unsaved
from lossy_mlflow.outbox.folder import RunFolder, Segment, ServerFolder
from lossy_mlflow.outbox.journal import Journal, Journals, now_ms
from lossy_mlflow.outbox.owner import read_owner, this_process
from lossy_mlflow.outbox.records import Record
from tests.services.disk import fill

ROOT = Path(__file__).parents[2]
DEFINITION = {"run_name": "a run"}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "runs" / "key")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that was full is tried again at once, and what was said of it in another test is said again."""
    monkeypatch.setattr(journals, "_TRY_AGAIN_AFTER_S", 0.05)
    monkeypatch.setattr(unsaved, "_complaints", set())


def _metric(step: int, key: str = "loss") -> list[list[object]]:
    return [[key, step / 2, 1, step]]


def _read(folder: RunFolder) -> list[Record]:
    """Every record of the run; fails where a line is damaged, or a segment's times go backwards."""
    found: list[Record] = []
    for segment in folder.segments():
        records, end, damaged = segment.read(0)
        assert (damaged, end) == (0, segment.size())
        times = [record.time for _, record in records]
        assert times == sorted(times)
        found += [record for _, record in records]
    return found


def _steps(folder: RunFolder, key: str = "loss") -> list[int]:
    entries = [entry for record in _read(folder) if record.kind == "metrics" for entry in record.content]
    return [entry[3] for entry in entries if entry[0] == key]


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# What stands there


def test_a_record_is_there_when_append_returns(folder: RunFolder) -> None:
    journal = Journal(folder, DEFINITION)
    for step in range(5):
        journal.append("metrics", _metric(step))
        assert _steps(folder) == list(range(step + 1))
    assert folder.definition()["run_name"] == "a run"
    journal.close()
    (segment,) = folder.segments()
    assert segment.owner == this_process()
    assert _read(folder)[-1].kind == "closed"
    assert journal.end() == (segment.name, segment.size())
    assert (len(journal.unsaved), journal.waiting_in_memory) == (0, 0)


def test_threads_append_at_once(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every record once and whole, in several segments, while the keeper syncs all the time."""
    monkeypatch.setattr(journals, "_SEGMENT_BYTES", 5000)
    journal = Journal(folder, DEFINITION)
    number, each = 8, 250
    begin, done = threading.Barrier(number), threading.Event()

    def log(thread: int) -> None:
        begin.wait()
        for step in range(each):
            journal.append("metrics", _metric(step, f"thread {thread}"))

    def keep() -> None:
        while not done.is_set():
            journal.keep()

    threads = [threading.Thread(target=log, args=(thread,)) for thread in range(number)]
    keeper = threading.Thread(target=keep)
    for thread in [*threads, keeper]:
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    keeper.join()
    assert len(_read(folder)) == number * each
    for thread in range(number):
        assert _steps(folder, f"thread {thread}") == list(range(each))
    assert len(folder.segments()) > 10
    assert (len(journal.unsaved), journal.waiting_in_memory) == (0, 0)
    # Nothing went wrong on the way, not even where nobody would notice.
    assert unsaved._complaints == set()


def test_a_full_segment_is_followed_by_the_next(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journals, "_SEGMENT_BYTES", 300)
    journal = Journal(folder, DEFINITION)
    for step in range(50):
        journal.append("metrics", _metric(step))
    segments = folder.segments()
    assert len(segments) > 5
    assert all(segment.owner == this_process() for segment in segments)
    assert all(300 < segment.size() < 400 for segment in segments[:-1])
    # The names are in the order in which they were written.
    assert _steps(folder) == list(range(50))
    assert journal.end()[0] == segments[-1].name


def test_a_segment_that_fills_up_while_it_is_being_synced(
    folder: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large file takes its time to reach the disk, and the program goes on logging."""
    monkeypatch.setattr(journals, "_SEGMENT_BYTES", 100)
    low = os.open(os.devnull, os.O_RDONLY)
    journal = Journal(folder, DEFINITION)
    source = tmp_path / "source"
    source.write_text("hello")
    journal.add_file(source, "a.txt")
    sync, took_long = journals.sync, []

    def slow(path: Path) -> None:
        sync(path)
        if not took_long:
            took_long.append(path)
            os.close(low)  # so that the next segment doesn't get the number of the one that is closed
            for step in range(10):
                journal.append("metrics", _metric(step))

    monkeypatch.setattr(journals, "sync", slow)
    journal.keep()
    assert took_long
    assert _steps(folder) == list(range(10))
    assert len(folder.segments()) > 3
    assert unsaved._complaints == set()


def test_a_second_journal_of_the_same_run_touches_nothing_of_the_first(folder: RunFolder) -> None:
    first = Journal(folder, DEFINITION)
    first.append("metrics", _metric(0))
    second = Journal(folder, None)
    second.append("metrics", _metric(1))
    first.append("metrics", _metric(2))
    assert [_steps_in(segment) for segment in folder.segments()] == [[0, 2], [1]]


def _steps_in(segment: Segment) -> list[int]:
    return [record.content[0][3] for _, record in segment.read(0)[0] if record.kind == "metrics"]


def test_a_forked_child_has_its_own_segment(folder: RunFolder) -> None:
    all_journals = Journals(lambda: None)
    journal = all_journals.open("key", folder, DEFINITION)
    journal.append("metrics", _metric(0))
    child = os.fork()
    if not child:
        code = 1
        try:
            if all_journals.get("key") is None and not all_journals.all():
                own = all_journals.open("key", folder)
                own.append("metrics", _metric(1))
                own.close()
                code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert status == 0
    journal.append("metrics", _metric(2))
    written = {segment.owner.pid: _steps_in(segment) for segment in folder.segments() if segment.owner}
    assert written == {os.getpid(): [0, 2], child: [1]}


def test_a_child_forked_in_the_middle_of_an_append_can_log(folder: RunFolder) -> None:
    """Another thread holds a lock at that moment: in the child there is nobody who would ever let it go."""
    all_journals = Journals(lambda: None)
    journal = all_journals.open("key", folder, DEFINITION)
    held, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        with journals._clock_lock, journal._lock, all_journals._lock:
            held.set()
            go_on.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    child = os.fork()
    if not child:
        try:
            all_journals.open("key", folder).append("metrics", _metric(1))
        finally:
            os._exit(0)
    go_on.set()
    thread.join()
    until = time.monotonic() + 5
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > until:
            os.kill(child, 9)
            os.waitpid(child, 0)
            pytest.fail("the child waits for ever")
        time.sleep(0.01)
    assert _steps(folder) == [1]


def test_a_clock_that_is_set_back(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(folder, DEFINITION)
    journal.append("metrics", _metric(0))
    before = now_ms()
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() - 3600)
    journal.append("metrics", _metric(1))
    assert before <= now_ms() <= before + 1000
    monkeypatch.setattr(time, "time", clock)
    journal.append("metrics", _metric(2))
    assert _steps(folder) == [0, 1, 2]  # and `_read` has seen that no time went backwards
    assert _read(folder)[-1].time - before < 60_000


# A disk that can't take it


def test_a_full_disk_is_waited_for_in_memory(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = RunFolder(small_disk / "runs" / "key")
    journal = Journal(folder, DEFINITION)
    # Lines of odd lengths: some line meets the end of the disk in its middle.
    for step in range(20):
        journal.append("metrics", _metric(step, "loss"))
    others = fill(small_disk)
    with caplog.at_level(logging.WARNING, "lossy_mlflow.outbox"):
        for step in range(20, 1000):
            journal.append("metrics", _metric(step, "loss"))
    waiting = journal.waiting_in_memory
    assert 0 < waiting < 980  # there was room in the last page, so that a line was torn, and taken back
    assert _steps(folder) == list(range(1000 - waiting))
    assert len(caplog.records) == 1  # the log isn't flooded
    assert str(folder.path) in caplog.text
    journal.keep()
    assert journal.waiting_in_memory == waiting
    others.unlink()
    journal.keep()
    assert (journal.waiting_in_memory, len(journal.unsaved)) == (0, 0)
    assert _steps(folder) == list(range(1000))
    journal.append("metrics", _metric(1000))
    assert _steps(folder) == list(range(1001))


def test_a_disk_that_is_full_from_the_start(small_disk: Path) -> None:
    others = fill(small_disk)
    folder = RunFolder(small_disk / "runs" / "key")
    journal = Journal(folder, DEFINITION)
    for step in range(10):
        journal.append("metrics", _metric(step))
    assert journal.waiting_in_memory == 10
    others.unlink()
    time.sleep(0.06)
    journal.append("metrics", _metric(10))  # by itself, without the keeper
    assert _steps(folder) == list(range(11))
    assert folder.definition()["run_name"] == "a run"
    assert not [path for path in folder.path.iterdir() if path.name.startswith(".")]


def test_a_file_that_the_disk_has_no_room_for(small_disk: Path, tmp_path: Path) -> None:
    """It can't be saved: it is counted, the program goes on, and nothing of half a file is left."""
    folder = RunFolder(small_disk / "runs" / "key")
    journal = Journal(folder, DEFINITION)
    large, small = tmp_path / "large", tmp_path / "small"
    large.write_bytes(bytes(10_000_000))
    small.write_bytes(b"hello")
    journal.add_file(large, "large.bin")
    assert len(journal.unsaved) == 1
    assert list(folder.files.iterdir()) == []
    journal.add_file(small, "small.txt")
    (record,) = _read(folder)
    assert (record.kind, record.content["path"], record.content["size"]) == ("artifact", "small.txt", 5)
    assert (folder.files / record.content["file"]).read_bytes() == b"hello"
    assert len(journal.unsaved) == 1


def test_a_folder_that_cannot_be_written_at_first(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    in_the_way = tmp_path / "runs"
    in_the_way.write_text("a file where the folder should be")
    folder = RunFolder(tmp_path / "runs" / "key")
    source = tmp_path / "source"
    source.write_text("hello")
    with caplog.at_level(logging.WARNING, "lossy_mlflow.outbox"):
        journal = Journal(folder, DEFINITION)
        for step in range(5):
            journal.append("metrics", _metric(step))
        journal.add_file(source, "a.txt")
        journal.keep()
    assert (journal.waiting_in_memory, len(journal.unsaved)) == (5, 1)
    assert len(caplog.records) == 1
    assert str(folder.path) in caplog.text
    in_the_way.unlink()
    journal.keep()
    assert (journal.waiting_in_memory, len(journal.unsaved)) == (0, 1)
    assert folder.definition()["run_name"] == "a run"
    journal.append("metrics", _metric(5))
    journal.add_file(source, "a.txt")
    assert _steps(folder) == list(range(6))
    assert _read(folder)[-1].content["path"] == "a.txt"


def test_a_disk_that_becomes_read_only(small_disk: Path) -> None:
    folder = RunFolder(small_disk / "runs" / "key")
    folder.define(DEFINITION)
    journal = Journal(folder, None)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for step in range(3):
        journal.append("metrics", _metric(step))
    assert journal.waiting_in_memory == 3
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    journal.keep()
    assert (journal.waiting_in_memory, len(journal.unsaved)) == (0, 0)
    assert _steps(folder) == [0, 1, 2]


def test_memory_has_an_end_and_what_goes_beyond_it_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journals, "_BACKLOG_BYTES", 1000)
    in_the_way = tmp_path / "runs"
    in_the_way.write_text("")
    folder = RunFolder(tmp_path / "runs" / "key")
    journal = Journal(folder, DEFINITION)
    for step in range(100):
        journal.append("metrics", _metric(step))
    kept = journal.waiting_in_memory
    assert 5 < kept < 40
    assert len(journal.unsaved) == 100 - kept
    in_the_way.unlink()
    journal.keep()
    for step in range(100, 200):
        journal.append("metrics", _metric(step))
    assert _steps(folder) == [*range(kept), *range(100, 200)]
    assert len(journal.unsaved) == 100 - kept


def test_a_source_that_is_not_there_is_the_callers_mistake(folder: RunFolder, tmp_path: Path) -> None:
    journal = Journal(folder, DEFINITION)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        journal.add_file(tmp_path / "nowhere", "a.txt")
    with pytest.raises(IsADirectoryError):
        journal.add_file(tmp_path, "a.txt")
    assert len(journal.unsaved) == 0
    assert _read(folder) == []
    assert not folder.files.exists()


# How soon

STEADY = """
import sys, time
from pathlib import Path
from lossy_mlflow.outbox.folder import RunFolder
from lossy_mlflow.outbox.journal import Journals
journals = Journals(lambda: None)
journal = journals.open("key", RunFolder(Path(sys.argv[1])), {"run_name": "a run"})
until = time.monotonic() + 2
while time.monotonic() < until:
    journal.append("metrics", [["loss", 0.5, 1, 1]])
    time.sleep(0.037)
time.sleep(1.2)  # and then nothing more: the last ones don't wait for the next
"""


def _slowest_sync(events: list[tuple[float, str]]) -> float:
    """The longest time from a write to the end of the next sync; infinite where none came."""
    slowest, oldest = 0.0, None
    for moment, what in events:
        if what == "write":
            oldest = moment if oldest is None else oldest
        elif oldest is not None:
            slowest, oldest = max(slowest, moment - oldest), None
    return slowest if oldest is None else float("inf")


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_the_kernel_is_asked_to_bring_every_record_to_the_disk_within_a_second(folder: RunFolder) -> None:
    trace = folder.path.parent.parent / "trace"
    command = ["strace", "-f", "-ttt", "-T", "-y", "-e", "trace=write,fsync", "-o", str(trace)]
    done = subprocess.run(
        [*command, sys.executable, "-c", STEADY, str(folder.path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    if "PTRACE" in done.stderr or "ptrace" in done.stderr:
        pytest.skip("may not trace here")
    assert done.returncode == 0, done.stderr
    events = []
    unfinished: dict[str, tuple[float, str]] = {}
    for line in trace.read_text().splitlines():
        pid, moment, call = line.split(maxsplit=2)
        if call.startswith("<... fsync resumed") and pid in unfinished:
            start, _ = unfinished.pop(pid)
        elif ".log>" in call and call.startswith("write("):
            events.append((float(moment), "write"))
            continue
        elif ".log>" in call and call.startswith("fsync("):
            start = float(moment)
            if "<unfinished" in call:
                unfinished[pid] = (start, call)
                continue
        else:
            continue
        took = re.search(r"= 0 <([\d.]+)>$", call)
        assert took, line
        events.append((start + float(took[1]), "fsync"))
    assert len([what for _, what in events if what == "write"]) > 20
    assert _slowest_sync(sorted(events)) < 1


def test_files_and_folders_are_on_the_disk_after_keep(
    folder: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced in the process: what was synced, by its name, when the call returned."""
    synced: list[str] = []
    fsync = os.fsync

    def traced(descriptor: int) -> None:
        fsync(descriptor)
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))

    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc")
    monkeypatch.setattr(os, "fsync", traced)
    source = tmp_path / "source"
    source.write_text("hello")
    journal = Journal(folder, DEFINITION)
    # The run's definition, whose name changes when it is whole; the folder that has it; the folder that has that one.
    assert re.search(r"/runs/key/\.run\.json\.\w+", synced[0])
    assert str(folder.path) in synced
    assert str(folder.path.parent) in synced
    synced.clear()
    journal.append("metrics", _metric(0))
    assert str(folder.path) in synced  # a new segment's name
    synced.clear()
    journal.add_file(source, "a.txt")
    journal.keep()
    copy = folder.files / _read(folder)[-1].content["file"]
    (segment,) = folder.segments()
    # A record never comes to the disk before the file that it speaks of.
    assert synced == [str(copy), str(folder.files), str(segment.path)]
    synced.clear()
    journal.keep()
    assert synced == []  # nothing new: nothing to do


def test_a_copy_that_somebody_removed_keeps_no_record_from_the_disk(
    folder: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    journal = Journal(folder, DEFINITION)
    source = tmp_path / "source"
    source.write_text("hello")
    journal.add_file(source, "a.txt")
    shutil.rmtree(folder.files)
    fsync = os.fsync

    def traced(descriptor: int) -> None:
        fsync(descriptor)
        synced.append(os.fstat(descriptor).st_ino)

    monkeypatch.setattr(os, "fsync", traced)
    journal.append("metrics", _metric(0))
    journal.keep()
    (segment,) = folder.segments()
    assert synced == [segment.path.stat().st_ino]


# Whom it is for


def test_only_the_user_can_read_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOSSY_OUTBOX_DIR", str(tmp_path / "outbox"))
    (tmp_path / "outbox").mkdir(mode=0o755)  # made by hand before
    uri = "outbox+http://127.0.0.1:9"
    umask = os.umask(0)
    try:
        server = ServerFolder.of(uri)
        server.prepare(uri)
        journal = Journal(server.run("key"), DEFINITION)
        journal.append("metrics", _metric(0))
        source = tmp_path / "source"
        source.write_text("hello")
        journal.add_file(source, "a.txt")
        server.remember_experiment("0", {"experiment_name": "Default"})
        server.remember_id("5", "key")
        run = server.run("key")
        run.save_delivered(run.delivered(uri))
        run.refuse({"what": "metrics"})
    finally:
        os.umask(umask)
    paths = [tmp_path / "outbox", *(tmp_path / "outbox").rglob("*")]
    assert len(paths) > 12
    assert {oct(_mode(path)) for path in paths if path.is_dir()} == {"0o700"}
    assert {oct(_mode(path)) for path in paths if path.is_file()} == {"0o600"}


# All that an outbox's own processes write, with every secret that they are given; the server isn't there.
SECRETIVE = """
import os, sys, time
from pathlib import Path
from lossy_mlflow.outbox.program import outbox_for
outbox = outbox_for("outbox+http://user:secret-of-uri@127.0.0.1:9")
definition = {"run_name": "a run", "experiment_id": "0", "experiment_name": "Default"}
outbox.folder.remember_experiment("0", {"experiment_name": "Default"})
journal = outbox.journal("key", definition)
journal.append("params", [["lr", "1e-3"]])
journal.append("state", {"status": "RUNNING"})
source = Path(sys.argv[1])
source.write_text("hello")
journal.add_file(source, "a.txt")
journal.close()
until = time.monotonic() + 20
# Until the sender has written its own words as well.
while not journal.folder.delivered(outbox.uri).error:
    assert time.monotonic() < until
    time.sleep(0.05)
os._exit(0)
"""


def test_no_secret_is_ever_written(tmp_path: Path) -> None:
    variables = {
        "MLFLOW_TRACKING_URI": "outbox+http://user:secret-of-uri@127.0.0.1:9",
        "MLFLOW_TRACKING_USERNAME": "secret-name",
        "MLFLOW_TRACKING_PASSWORD": "secret-password",
        "MLFLOW_TRACKING_TOKEN": "secret-token",
        "AWS_SECRET_ACCESS_KEY": "secret-of-a-store",
        "LOSSY_OUTBOX_DIR": str(tmp_path / "outbox"),
        "HOME": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-c", SECRETIVE, str(tmp_path / "source")],
        cwd=ROOT,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=60,
    )
    try:
        assert done.returncode == 0, done.stderr
        files = [path for path in (tmp_path / "outbox").rglob("*") if path.is_file()]
        names = {re.sub(r"-.*|\..*", "", path.name) for path in files}
        assert {"server", "run", "delivered", "sender"} <= names
        assert any(path.suffix == ".log" for path in files)
        for path in files:
            assert b"secret" not in path.read_bytes(), path
            assert "secret" not in str(path.relative_to(tmp_path))
        assert "secret" not in done.stderr
    finally:
        for path in (tmp_path / "outbox").glob("*/sender-*"):
            owner = read_owner(path.read_text())
            if owner and owner.lives():
                psutil.Process(owner.pid).kill()

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lossy_mlflow.errors import LossyError, NotFoundError, UnreachableError
from lossy_mlflow.service.files import ChangedError, FilePlace, file_place


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> FilePlace:
    if request.param == "folder":
        return file_place(str(tmp_path / "place"))
    return file_place(request.getfixturevalue("s3_uri"))


def test_a_file_is_written_found_listed_read_and_deleted(place: FilePlace) -> None:
    assert list(place.files()) == []
    assert place.find("a/b.txt") is None
    place.write("a/b.txt", io.BytesIO(b"one"))
    place.write("a.txt", io.BytesIO(b"three"))
    found = place.find("a/b.txt")
    assert found
    assert (found.path, found.size) == ("a/b.txt", 3)
    assert abs(found.modified - time.time()) < 60
    assert {file.path: file.size for file in place.files()} == {"a.txt": 5, "a/b.txt": 3}
    assert [file.path for file in place.files("a")] == ["a/b.txt"]
    with place.open("a/b.txt") as stream:
        assert stream.read() == b"one"
    place.write("a/b.txt", io.BytesIO(b"two"))
    again = place.find("a/b.txt")
    assert again
    assert again.mark != found.mark
    place.delete("a/b.txt")
    place.delete("a/b.txt")
    assert [file.path for file in place.files()] == ["a.txt"]
    with pytest.raises(FileNotFoundError), place.open("a/b.txt"):
        pass


def test_ten_megabytes_and_names_of_all_kinds(place: FilePlace) -> None:
    content = bytes(range(256)) * 40_000
    names = ["with blank", "ä/ö.txt", "percent%2F", "plus+", "q?x=1&y", "hash#"]
    place.write("big", io.BytesIO(content))
    for name in names:
        place.write(name, io.BytesIO(b"x"))
    with place.open("big") as stream:
        assert stream.read() == content
    assert {file.path for file in place.files()} == {"big", *names}
    for name in names:
        with place.open(name) as stream:
            assert stream.read() == b"x"


@pytest.mark.parametrize("path", ["../out", "/etc/passwd", "a/../../out", "", ".", "./"])
def test_no_path_leads_out_of_a_folder(tmp_path: Path, path: str) -> None:
    with pytest.raises(ValueError, match="no path below"):
        file_place(str(tmp_path / "place")).write(path, io.BytesIO(b"x"))


def test_links_are_no_files_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    folder = tmp_path / "place"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "folder").symlink_to(tmp_path)
    place = file_place(str(folder))
    assert list(place.files()) == []
    assert place.find("link") is None


def test_a_full_disk_leaves_nothing_half(tmpfs: Callable[[str], Path]) -> None:
    folder = tmpfs("size=1m")
    with pytest.raises(LossyError, match="can't be written: No space left"):
        file_place(str(folder)).write("big", io.BytesIO(bytes(3_000_000)))
    assert list(folder.iterdir()) == []


def test_what_is_wrong_with_a_bucket_is_said(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotFoundError, match="no bucket elsewhere at http://127"):
        list(file_place("s3://elsewhere/x").files())
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(LossyError, match="refuses: SignatureDoesNotMatch"):
        list(file_place(s3_uri).files())
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(LossyError, match="no keys for the bucket"):
        list(file_place(s3_uri).files())
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    with pytest.raises(UnreachableError, match="can't be reached"):
        list(file_place(s3_uri).files())


def test_what_a_killed_writer_left_is_cleared_and_a_living_ones_is_not(tmp_path: Path) -> None:
    host = socket.gethostname()
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    dead, living = f".lossy-part-{ended.pid}-aa-{host}", f".lossy-part-{os.getpid()}-bb-{host}"
    (tmp_path / "a").mkdir()
    for name in (dead, living, ".lossy-part-1-cc-elsewhere", "mine"):
        (tmp_path / "a" / name).write_text("x")
    place = file_place(str(tmp_path))
    assert [file.path for file in place.files()] == ["a/mine"]
    place.clear()
    assert {path.name for path in (tmp_path / "a").iterdir()} == {
        living,
        ".lossy-part-1-cc-elsewhere",
        "mine",
    }
    old = time.time() - 2 * 86400
    os.utime(tmp_path / "a" / ".lossy-part-1-cc-elsewhere", (old, old))
    place.clear()
    assert {path.name for path in (tmp_path / "a").iterdir()} == {living, "mine"}


def test_a_file_that_is_written_while_it_is_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"one")
    place = file_place(str(tmp_path))
    told = pytest.raises(ChangedError)
    with told, place.open("a"):
        (tmp_path / "a").write_bytes(b"two and more")


def test_a_name_that_is_known_at_the_end_alone(place: FilePlace) -> None:
    for number, size in enumerate((3, 10_000_000)):
        content = os.urandom(size)
        source = io.BytesIO(content)
        names = iter([f"kept/{number}", None])
        place.write_as(names.__next__, source)
        assert source.read() == b""
        place.write_as(names.__next__, io.BytesIO(b"not kept"))
        with place.open(f"kept/{number}") as stream:
            assert stream.read() == content
    place.sync()
    assert [file.path for file in place.files()] == ["kept/0", "kept/1"]

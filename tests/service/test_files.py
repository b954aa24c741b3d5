from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lossy_mlflow.errors import LossyError, NotFoundError, UnreachableError
from lossy_mlflow.service.files import FilePlace, file_place


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


@pytest.mark.parametrize("path", ["../out", "/etc/passwd", "a/../../out", ""])
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

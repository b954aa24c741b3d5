"""Files on disk: fetched whole, mended where they are damaged, or a clear error; never bad data."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lossy_mlflow.data import fetch
from lossy_mlflow.data.fetch import verified_files
from lossy_mlflow.errors import LossyError, NotFoundError, UnreachableError


@pytest.fixture(params=["two_archives", "one_tar"])
def served(request):
    return request.getfixturevalue(request.param)


def laid_out(served, folder: Path) -> Path:
    """The files put there by hand: without notes of their digests."""
    home = folder / served.dataset.home
    home.mkdir(parents=True)
    for name, content in served.contents.items():
        (home / name).write_bytes(content)
    return home


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


def test_empty_folder_is_filled_once(served, server, tmp_path):
    folder = tmp_path / "not" / "yet"
    assert verified_files(served.dataset, folder) == served.contents
    assert verified_files(served.dataset, folder) == served.contents
    assert set(server.requests.values()) == {1}
    notes = {f"{name}.sha256" for name in served.contents}
    assert names_in(folder) == {".lock", *served.contents, *notes}


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs the sha256sum command")
def test_notes_are_what_sha256sum_reads(served, tmp_path):
    verified_files(served.dataset, tmp_path)
    home = tmp_path / served.dataset.home
    notes = sorted(path.name for path in home.glob("*.sha256"))
    assert len(notes) == len(served.contents)
    subprocess.run(["sha256sum", "--check", "--strict", *notes], cwd=home, check=True, capture_output=True)


def test_files_put_there_by_hand_are_read_without_a_download(served, server, tmp_path):
    laid_out(served, tmp_path)
    assert verified_files(served.dataset, tmp_path) == served.contents
    assert not server.requests
    assert names_in(tmp_path) == set(served.contents)


def test_files_put_there_by_hand_are_held_against_their_form(two_archives, server, tmp_path):
    """Labels of the right size in the images' place, say: without a digest, the header tells."""
    home = laid_out(two_archives, tmp_path)
    content = two_archives.contents["test-images"]
    (home / "test-images").write_bytes(b"\0\0\x08\x01" + content[4:])
    server.fault = "unavailable"
    with pytest.raises(UnreachableError, match=r"test-images is damaged \(its header"):
        verified_files(two_archives.dataset, tmp_path)
    server.fault = ""
    assert verified_files(two_archives.dataset, tmp_path) == two_archives.contents
    assert server.requests == {"/test-images.gz": 2}


def test_progress_names_what_is_downloaded(two_archives, tmp_path):
    lines: list[str] = []
    verified_files(two_archives.dataset, tmp_path, lines.append)
    assert lines == [f"downloading {archive.urls[0]}" for archive in two_archives.dataset.archives]


# The examples may share the server: each sets its state.
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_is_found_and_mended(two_archives, server, data):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server.fault = ""
        verified_files(two_archives.dataset, folder)
        path = folder / two_archives.dataset.home / data.draw(st.sampled_from(sorted(two_archives.contents)))
        content = bytearray(path.read_bytes())
        at = data.draw(st.integers(0, len(content) - 1))
        match data.draw(st.sampled_from(["flip", "cut", "longer"])):
            case "flip":
                content[at] ^= data.draw(st.integers(1, 255))
            case "cut":
                del content[at:]
            case "longer":
                content += b"\0"
        path.write_bytes(content)

        server.fault = "unavailable"
        with pytest.raises(UnreachableError, match=f"{path.name} (is damaged|has [0-9,]+ bytes)"):
            verified_files(two_archives.dataset, folder)
        assert path.read_bytes() == content

        server.fault = ""
        assert verified_files(two_archives.dataset, folder) == two_archives.contents
        assert path.read_bytes() == two_archives.contents[path.name]


def test_only_the_damaged_archive_is_downloaded_again(two_archives, server, tmp_path):
    verified_files(two_archives.dataset, tmp_path)
    (tmp_path / two_archives.dataset.home / "test-images").unlink()
    verified_files(two_archives.dataset, tmp_path)
    assert server.requests == {"/train-images.gz": 1, "/test-images.gz": 2}


def test_damaged_note_is_mended(served, tmp_path):
    verified_files(served.dataset, tmp_path)
    note = next((tmp_path / served.dataset.home).glob("*.sha256"))
    whole = note.read_text()
    note.write_bytes(b"\xff")
    assert verified_files(served.dataset, tmp_path) == served.contents
    assert note.read_text() == whole


@pytest.mark.parametrize("fault", ["cut", "flipped", "unavailable"])
def test_nothing_half_made_remains_of_a_bad_download(served, server, tmp_path, fault):
    server.fault = fault
    with pytest.raises(UnreachableError):
        verified_files(served.dataset, tmp_path)
    assert names_in(tmp_path) == {".lock"}


def test_archive_of_other_files_than_the_catalogue_says_is_refused(two_archives, server, tmp_path):
    archive = two_archives.dataset.archives[1]
    file = dataclasses.replace(archive.files[0], sha256=hashlib.sha256(b"another").hexdigest())
    dataset = two_archives.with_archive(1, files=(file,))
    with pytest.raises(UnreachableError, match="test-images in it is damaged"):
        verified_files(dataset, tmp_path)
    assert names_in(tmp_path) == {".lock", "train-images", "train-images.sha256"}


def test_archive_that_is_none_is_refused(two_archives, server, tmp_path):
    (file,) = two_archives.dataset.archives[0].files
    archive = server.archive("/none.gz", b"no gzip", file)
    dataset = two_archives.with_archive(0, urls=archive.urls, md5=archive.md5)
    with pytest.raises(UnreachableError, match=r"none\.gz: can't be unpacked: Not a gzipped file"):
        verified_files(dataset, tmp_path)


def test_nothing_in_an_archive_reaches_out_of_the_folder(one_tar, server, tmp_path):
    outside = {"../outside": b"x", "/outside": b"x", "../../test_batch.bin": b"x"}
    files = one_tar.dataset.archives[0].files
    archive = server.tar("/evil.tar.gz", outside | one_tar.contents, *files)
    folder = tmp_path / "deep" / "inside"
    assert (
        verified_files(one_tar.with_archive(0, urls=archive.urls, md5=archive.md5), folder)
        == one_tar.contents
    )
    notes = {f"{name}.sha256" for name in one_tar.contents}
    assert names_in(tmp_path) == {".lock", *one_tar.contents, *notes}


def test_no_network_and_no_file_names_the_files_their_sizes_and_the_way_on(two_archives, server, tmp_path):
    server.close()
    with pytest.raises(UnreachableError) as caught:
        verified_files(two_archives.dataset, tmp_path)
    assert caught.value.what == (
        f"no small in {tmp_path}: Small/raw/train-images isn't there; Small/raw/test-images isn't there; "
        f"and it can't be downloaded: {server.url('/train-images.gz')}: [Errno 111] Connection refused"
    )
    assert caught.value.hint == (
        "put Small/raw/train-images (6,016 bytes), Small/raw/test-images (1,216 bytes) there, or run "
        "`lossy data fetch small` where there is a network and name that folder by --data-dir or "
        "LOSSY_DATA_DIR"
    )


def test_whole_files_on_a_read_only_disk_are_read(served, server, tmpfs):
    folder = tmpfs("size=1m")
    laid_out(served, folder)
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    assert verified_files(served.dataset, folder) == served.contents
    assert not server.requests


def test_missing_file_on_a_read_only_disk_is_said(two_archives, tmpfs):
    folder = tmpfs("size=1m")
    (laid_out(two_archives, folder) / "test-images").unlink()
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    with pytest.raises(NotFoundError) as caught:
        verified_files(two_archives.dataset, folder)
    assert caught.value.what == (
        f"no small in {folder}: Small/raw/test-images isn't there; "
        "and can't write there: Read-only file system"
    )
    assert "LOSSY_DATA_DIR" in caught.value.hint


def test_folder_that_is_a_file_is_said(two_archives, tmp_path):
    folder = tmp_path / "file"
    folder.write_text("")
    with pytest.raises(NotFoundError, match="can't write there: Not a directory"):
        verified_files(two_archives.dataset, folder)


@pytest.mark.parametrize("kilobytes", [4, 12])  # too small for the archive; for what is unpacked from it
def test_full_disk_is_said_and_nothing_half_made_remains(two_archives, tmpfs, kilobytes):
    folder = tmpfs(f"size={kilobytes}k")
    with pytest.raises(LossyError) as caught:
        verified_files(two_archives.dataset, folder)
    assert str(caught.value) == (
        f"no space left in {folder} for small: 7,232 bytes, and its archive for a while\n"
        "make room there, or name another folder by --data-dir or LOSSY_DATA_DIR"
    )
    assert caught.value.exit_code == 1
    assert names_in(folder) <= {".lock"}


def test_digits_need_no_files(tmp_path):
    fetch("digits", tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_fetching_loads_neither_torch_nor_numpy():
    code = (
        "import sys; from lossy_mlflow.data import data_folder, dataset_names, fetch; "
        "fetch(dataset_names()[0], data_folder()); "
        "print({'torch', 'torchvision', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"

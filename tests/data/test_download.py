"""One archive from a server that goes wrong."""

from __future__ import annotations

import dataclasses
import re
import time
from pathlib import Path

import pytest

from lossy_mlflow.data.catalogue import Archive, idx_file
from lossy_mlflow.data.download import DownloadError, download, unpack


@pytest.fixture
def archive(server) -> Archive:
    return server.archive("/images.gz", bytes(range(256)) * 4000, idx_file("images", 1, 1, 1))


def ignore(line: str) -> None:
    pass


def test_whole_archive_is_written_after_one_request(server, archive, tmp_path):
    lines: list[str] = []
    download(archive, tmp_path / "archive", lines.append)
    assert (tmp_path / "archive").read_bytes() == server.bodies["/images.gz"]
    assert server.requests == {"/images.gz": 1}
    assert lines == [f"downloading {archive.urls[0]}"]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("cut", "cut after 512,000 of 1,024,000 bytes"),
        ("flipped", "1,024,000 bytes with MD5 [0-9a-f]{32} came, not [0-9a-f]{32}"),
        ("unavailable", "HTTP Error 503: Service Unavailable"),
    ],
)
def test_what_a_server_did_instead_is_said(server, archive, tmp_path, fault, message):
    server.fault = fault
    with pytest.raises(DownloadError, match=f"^{re.escape(archive.urls[0])}: {message}$"):
        download(archive, tmp_path / "archive", ignore)


def test_nobody_listening_is_said(server, archive, tmp_path):
    server.close()
    with pytest.raises(DownloadError, match="Connection refused"):
        download(archive, tmp_path / "archive", ignore)


def test_silent_server_is_left_after_a_while(server, archive, tmp_path):
    server.fault = "silent"
    start = time.monotonic()
    with pytest.raises(DownloadError, match="timed out"):
        download(archive, tmp_path / "archive", ignore, silence_s=0.3)
    assert time.monotonic() - start < 10


def test_next_address_is_tried(server, archive, tmp_path):
    twice = dataclasses.replace(archive, urls=(server.url("/gone.gz"), *archive.urls))
    download(twice, tmp_path / "archive", ignore)
    assert (tmp_path / "archive").read_bytes() == server.bodies["/images.gz"]


def test_every_address_is_in_the_error(server, archive, tmp_path):
    nowhere = dataclasses.replace(archive, urls=(server.url("/a.gz"), server.url("/b.gz")))
    with pytest.raises(DownloadError) as caught:
        download(nowhere, tmp_path / "archive", ignore)
    assert str(caught.value) == (
        f"{server.url('/a.gz')}: HTTP Error 404: Not Found; {server.url('/b.gz')}: HTTP Error 404: Not Found"
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_is_not_the_servers_fault(archive):
    with pytest.raises(OSError, match="No space left on device"):
        download(archive, Path("/dev/full"), ignore)


def test_links_in_an_archive_are_not_followed(server, tmp_path):
    archive = server.tar("/evil.tar.gz", {}, idx_file("images", 1, 1, 1), link="images")
    download(archive, tmp_path / "archive", ignore)
    assert dict(unpack(archive, tmp_path / "archive")) == {}


def test_no_more_is_read_than_a_file_should_hold(server, tmp_path):
    file = idx_file("images", 1, 1, 1)
    archive = server.tar("/bomb.tar.gz", {"images": bytes(10_000_000)}, file)
    download(archive, tmp_path / "archive", ignore)
    assert dict(unpack(archive, tmp_path / "archive")) == {"images": bytes(file.size + 1)}

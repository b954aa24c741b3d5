"""One archive: downloaded, held against its MD5, and the wanted files taken out of it.

Not by torchvision's download_url: it sets no time limit, so a server that falls silent would hold everybody
up for ever; it asks for each file twice, draws its bar into pipes too, and costs the 3 s of importing torch.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from lossy_mlflow.data.catalogue import Archive

SILENCE_S = 30.0  # a server that sends nothing for so long has gone
_CHUNK = 1 << 18
_REPORT_S = 5.0


class DownloadError(Exception):
    """What a server did not give: no answer, part of the file, or another file."""


def download(archive: Archive, path: Path, say: Callable[[str], None], silence_s: float = SILENCE_S) -> None:
    """Write the archive to `path`, from the first of its addresses that gives what its MD5 says.

    DownloadError says what each address did instead; OSError comes from writing.
    """
    failures = []
    for url in archive.urls:
        say(f"downloading {url}")
        try:
            _download(url, path, archive.md5, say, silence_s)
            return
        except DownloadError as error:
            failures.append(f"{url}: {error}")
    raise DownloadError("; ".join(failures))


def _download(url: str, path: Path, md5: str, say: Callable[[str], None], silence_s: float) -> None:
    digest = hashlib.md5(usedforsecurity=False)
    n_bytes, reported = 0, time.monotonic()
    with path.open("wb") as file:
        for chunk in _body(url, silence_s):
            file.write(chunk)
            digest.update(chunk)
            n_bytes += len(chunk)
            if time.monotonic() - reported > _REPORT_S:
                say(f"{n_bytes / 1e6:.0f} MB so far")
                reported = time.monotonic()
    if digest.hexdigest() != md5:
        raise DownloadError(f"{n_bytes:,} bytes with MD5 {digest.hexdigest()} came, not {md5}")


def _body(url: str, silence_s: float) -> Iterator[bytes]:
    """The bytes at `url`, as they come. What is wrong with the server, and only that, is a DownloadError."""
    opener = urllib.request.build_opener()
    opener.addheaders = [("User-Agent", "lossy_mlflow")]
    try:
        with opener.open(url, timeout=silence_s) as response:
            announced, n_bytes = response.length, 0
            while chunk := response.read(_CHUNK):
                n_bytes += len(chunk)
                yield chunk
    except (OSError, http.client.HTTPException) as error:
        # A plain URLError wraps the reason in "<urlopen error ...>"; an HTTPError says more than its reason.
        raise DownloadError(str(error.reason if type(error) is urllib.error.URLError else error)) from error
    # http.client takes a connection that closes early for the end of the body.
    if announced is not None and n_bytes != announced:
        raise DownloadError(f"cut after {n_bytes:,} of {announced:,} bytes")


def unpack(archive: Archive, path: Path) -> Iterator[tuple[str, bytes]]:
    """(name, content) of each of the archive's files that is found in the one at `path`.

    Names inside the archive never become paths, so nothing in it can reach out of a folder; and nothing is
    read further than a byte beyond its due size. DownloadError where `path` can't be unpacked.
    """
    try:
        if archive.urls[0].endswith(".tar.gz"):
            sizes = {file.name: file.size for file in archive.files}
            with tarfile.open(path, "r:gz") as tar:
                for member in tar:
                    name = PurePosixPath(member.name).name
                    stream = tar.extractfile(member) if member.isfile() and name in sizes else None
                    if stream is not None:
                        yield name, stream.read(sizes[name] + 1)
        else:
            (file,) = archive.files
            with gzip.open(path) as unzipped:
                yield file.name, unzipped.read(file.size + 1)
    except (gzip.BadGzipFile, tarfile.TarError, EOFError, zlib.error) as error:
        raise DownloadError(f"{archive.urls[0]}: can't be unpacked: {error}") from error

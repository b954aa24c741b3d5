"""A small data set of real files on a real server whose faults the tests choose."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from lossy_mlflow.data.catalogue import Archive, Dataset, ImageFile, idx_file


class ArchiveServer:
    """Serves `bodies` by path on a loopback port, counts requests, and goes wrong as `fault` says.

    Faults: "cut" closes after half the body, "silent" sends nothing more after half until `go_on` is set,
    "unavailable" answers 503, "flipped" changes one byte.
    """

    def __init__(self) -> None:
        self.bodies: dict[str, bytes] = {}
        self.requests: Counter[str] = Counter()
        self.fault = ""
        self.go_on = threading.Event()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                owner.answer(self)

            def log_message(self, *args: object) -> None:
                """Keep the tests' output free of requests."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self._server.server_port}{path}"

    def archive(self, path: str, body: bytes, *files: ImageFile) -> Archive:
        """Serve `body` at `path`, as the archive of `files`."""
        self.bodies[path] = body
        return Archive((self.url(path),), hashlib.md5(body, usedforsecurity=False).hexdigest(), files)

    def tar(self, path: str, members: dict[str, bytes], *files: ImageFile, link: str = "") -> Archive:
        """Serve a tar.gz of `members`, and of a symbolic link to /etc/hostname where `link` names one."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
            for name, body in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(body)
                tar.addfile(info, io.BytesIO(body))
            if link:
                info = tarfile.TarInfo(link)
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/hostname"
                tar.addfile(info)
        return self.archive(path, buffer.getvalue(), *files)

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        fault = self.fault
        self.requests[request.path] += 1
        body = self.bodies.get(request.path)
        if body is None or fault == "unavailable":
            request.send_error(503 if body else 404)
            return
        if fault == "flipped":
            body = body[:-1] + bytes([body[-1] ^ 1])
        request.send_response(200)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        half = len(body) // 2
        request.wfile.write(body[:half])
        request.wfile.flush()
        if fault == "cut":
            return
        if fault == "silent":
            self.go_on.wait()
        request.wfile.write(body[half:])

    def close(self) -> None:
        """Stop listening: from here on, connections are refused."""
        self.go_on.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ArchiveServer]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = ArchiveServer()
    yield server
    server.close()


@dataclasses.dataclass(frozen=True)
class Served:
    """A data set, and what its files must hold."""

    dataset: Dataset
    contents: dict[str, bytes]

    def with_archive(self, index: int, **changes: object) -> Dataset:
        """The data set with one of its archives changed."""
        archives = list(self.dataset.archives)
        archives[index] = dataclasses.replace(archives[index], **changes)
        return dataclasses.replace(self.dataset, archives=tuple(archives))


def _pixels(seed: int, n_images: int, n_values: int) -> np.ndarray:
    """Images that are all different: noise doesn't repeat."""
    return np.random.default_rng(seed).integers(0, 256, (n_images, n_values), np.uint8)


@pytest.fixture
def two_archives(server: ArchiveServer) -> Served:
    """Formed like MNIST: 300 images of 1x4x5 to train on and 60 to test on, an archive for each file."""
    contents, archives = {}, []
    for name, n_images in (("train-images", 300), ("test-images", 60)):
        file = idx_file(name, n_images, 4, 5)
        contents[name] = file.header + _pixels(n_images, n_images, 20).tobytes()
        archives.append(server.archive(f"/{name}.gz", gzip.compress(contents[name]), file))
    return Served(Dataset("small", (1, 4, 5), 50, "Small/raw", tuple(archives), ("test-images",)), contents)


@pytest.fixture
def one_tar(server: ArchiveServer) -> Served:
    """Formed like CIFAR-10: labelled colour images in three files of one archive, one of them to test on."""
    files, contents = [], {}
    for seed, name in enumerate(("batch_1.bin", "batch_2.bin", "test_batch.bin")):
        files.append(ImageFile(name, 30, 3 * 4 * 4, n_labels=1))
        labels = np.full((30, 1), seed, np.uint8)
        contents[name] = np.hstack([labels, _pixels(seed, 30, 48)]).tobytes()
    members = {f"somewhere/{name}": body for name, body in contents.items()}
    archive = server.tar("/colours.tar.gz", members, *files)
    return Served(Dataset("colours", (3, 4, 4), 6, "colours-bin", (archive,), ("test_batch.bin",)), contents)

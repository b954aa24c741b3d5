"""A place of files, a folder or an S3 bucket, in one way: listed, opened, written whole or not at all, deleted."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar

COPY_BYTES = 1 << 20
# What a thread is given at once. Of small files the handing over costs more than the copying.
_BUNDLE_FILES, _BUNDLE_BYTES = 64, 8 << 20

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class ChangedError(Exception):
    """A file was written to while it was read: what was read is of no one moment."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file: its path below the place (with /), size in bytes, time of its writing in seconds since 1970, and a mark that is
    another one as soon as its content is.
    """

    path: str
    size: int
    modified: float
    mark: str


@dataclass(frozen=True, slots=True)
class Survey:
    """All that lies in a place: its files, by path, and what there is of writings that haven't come to an end.

    In a bucket the size of those isn't known (0), and their time is that of their beginning.
    """

    files: list[StoredFile]
    unfinished: list[StoredFile]


class FilePlace(Protocol):
    """Files below one address. Each method raises UnreachableError and LossyError with what to do."""

    uri: str
    # So many are best at work in it at once.
    threads: int

    def files(self, under: str = "", *, links: bool = False) -> Iterator[StoredFile]:
        """All files in the folder `under` and its folders, by path; with `links` those as well, which can't be opened.

        Raises LossyError where a folder can't be listed.
        """
        ...

    def survey(self) -> Survey:
        """What lies there at all, in one pass."""
        ...

    def now(self) -> float:
        """The time by the place's own clock, which dates its files, in seconds since 1970. Writes nothing that stays."""
        ...

    def find(self, path: str) -> StoredFile | None:
        """The file of that path, if it is there."""
        ...

    def open(self, path: str) -> AbstractContextManager[BinaryIO]:
        """Its bytes. Raises FileNotFoundError, OSError where it can't be read, and ChangedError at the end of the block."""
        ...

    def write(self, path: str, source: BinaryIO) -> None:
        """What `source` has left becomes the file, at once; before that there is none, or the old one. It is on the disk then."""
        ...

    def write_as(self, name: Callable[[], str | None], source: BinaryIO) -> None:
        """The same under the path that is known once `source` is read: `name` is asked for it; None: it isn't kept.

        `source` is read to its end either way. Such files are on the disk after `sync`.
        """
        ...

    def sync(self) -> None:
        """All that was written is on the disk when this returns."""
        ...

    def clear(self) -> None:
        """Remove what writers that were killed have left behind."""
        ...

    def delete(self, path: str) -> None:
        """Nothing is there afterwards; also where nothing was."""
        ...

    def abandon(self, unfinished: StoredFile) -> None:
        """Free what is left of a writing that hasn't come to an end, as `survey` gave it; whoever still writes it fails."""
        ...


def file_place(uri: str) -> FilePlace:
    """The place that an absolute folder or s3://BUCKET/PATH names. Of S3, AWS's variables and MLFLOW_S3_ENDPOINT_URL tell how."""
    from lossy_mlflow.service.bucket import Bucket
    from lossy_mlflow.service.folder import Folder

    return Bucket(uri) if uri.startswith("s3://") else Folder(Path(uri))


@contextmanager
def threads_between(*places: FilePlace) -> Iterator[Executor]:
    """Threads that copy between these places. Where the block fails, what hasn't begun by then isn't begun."""
    with ThreadPoolExecutor(max(place.threads for place in places)) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def for_each_file(
    pool: Executor,
    do: Callable[[_Item], _Result],
    files: Iterable[_Item],
    size: Callable[[_Item], int],
) -> Iterator[_Result]:
    """What `do` returns for each file, in their order; `size` tells its bytes. What it raises ends the iteration."""

    def do_all(bundle: list[_Item]) -> list[_Result]:
        return [do(file) for file in bundle]

    bundles = portions(files, size, _BUNDLE_FILES, _BUNDLE_BYTES)
    return itertools.chain.from_iterable(pool.map(do_all, bundles))


def portions(
    files: Iterable[_Item], size: Callable[[_Item], int], most: int, n_bytes: int
) -> Iterator[list[_Item]]:
    """The files in lists of at most so many, each of which ends with the file that brings it to `n_bytes`."""
    portion: list[_Item] = []
    total = 0
    for file in files:
        portion.append(file)
        total += size(file)
        if len(portion) >= most or total >= n_bytes:
            yield portion
            portion, total = [], 0
    if portion:
        yield portion


def read_up_to(source: BinaryIO, size: int) -> bytes:
    """The next `size` bytes; fewer at the end alone."""
    whole = io.BytesIO()
    while (missing := size - whole.tell()) and (data := source.read(missing)):
        whole.write(data)
    return whole.getvalue()

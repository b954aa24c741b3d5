"""What a backup says of itself: each file it holds, and what it was made of. Pure: values and bytes."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlsplit

from lossy_mlflow.errors import ConflictError, LossyError

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Entry:
    """A file. `root`: '' where `path` lies below the server's artifacts, else the absolute folder that it lies below.

    `size` in bytes; `sha256` of its content; `mark`: see `StoredFile`.
    """

    root: str
    path: str
    size: int
    sha256: str
    mark: str


@dataclass(frozen=True, slots=True)
class Digest:
    """A file of the backup itself: its name in the backup's folder, size in bytes, SHA-256 of its content."""

    file: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Source:
    """The stores that were backed up: their addresses, without passwords. `kinds`: each database's, sqlite or postgresql."""

    database: str
    users: str
    artifacts: str
    kinds: dict[str, str]

    @property
    def identity(self) -> tuple[str, str]:
        """What tells a server's stores from another's, whoever connects to them, and how."""
        parts = urlsplit(self.database)
        # Without a host it is said behind the ?, or there is none.
        where = parts.netloc.rpartition("@")[2] or parts.query
        return f"{parts.scheme.partition('+')[0]} {where} {parts.path}", self.artifacts

    def __str__(self) -> str:
        return f"{self.database} and {self.artifacts}"


@dataclass(frozen=True, slots=True)
class Manifest:
    """A whole backup. `name`: when it began, UTC; `begun` and `ended`: seconds since 1970.

    `dumps` by what the database holds; `revisions`: the schema of each. `files`, `bytes`: all it holds; `new_files`, `new_bytes`:
    what no earlier backup in the place had. `vanished`: how many files were deleted while it was made; `unreadable`: those that
    could not be read; `elsewhere`: addresses in the database that it holds no files of; `fixed`: how many addresses name the
    place of artifacts by its own address, and so mean the old place wherever it is restored. Long lists are cut.
    """

    name: str
    begun: float
    ended: float
    source: Source
    dumps: dict[str, Digest]
    revisions: dict[str, str | None]
    parts: list[Digest]
    files: int
    bytes: int
    new_files: int
    new_bytes: int
    vanished: int
    unreadable: list[str]
    elsewhere: list[str]
    fixed: int
    versions: dict[str, str]


def encode_part(entries: Iterable[Entry]) -> bytes:
    """A part of the list of files: gzip of JSON, one file a line."""
    # Not asdict, which would copy each value: there may be millions.
    lines = [
        json.dumps(
            {
                "root": item.root,
                "path": item.path,
                "size": item.size,
                "sha256": item.sha256,
                "mark": item.mark,
            }
        )
        for item in entries
    ]
    return gzip.compress("".join(f"{line}\n" for line in lines).encode(), 6, mtime=0)


def decode_part(data: bytes, where: str) -> list[Entry]:
    """Raises LossyError for what is damaged."""
    try:
        # Split at the newlines alone: a name may hold what other programs end a line with.
        lines = gzip.decompress(data).decode().split("\n")
        return [Entry(**json.loads(line)) for line in lines if line]
    except (OSError, EOFError, zlib.error, ValueError, TypeError) as error:
        raise LossyError(f"{where} is damaged: {error}.") from error


def encode_manifest(manifest: Manifest) -> bytes:
    return (json.dumps({"format": FORMAT, **asdict(manifest)}, indent=1) + "\n").encode()


def decode_manifest(data: bytes, where: str) -> Manifest:
    """Raises LossyError for what is damaged, ConflictError for what a newer version has written."""
    content = _decode(data, where)
    try:
        return Manifest(
            **content
            | {
                "source": Source(**content["source"]),
                "dumps": {name: Digest(**dump) for name, dump in content["dumps"].items()},
                "parts": [Digest(**part) for part in content["parts"]],
            }
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise LossyError(f"{where} is damaged: {error}.") from error


def encode_source(source: Source) -> bytes:
    return (json.dumps({"format": FORMAT, **asdict(source)}) + "\n").encode()


def decode_source(data: bytes, where: str) -> Source:
    """Raises as `decode_manifest` does."""
    try:
        return Source(**_decode(data, where))
    except TypeError as error:
        raise LossyError(f"{where} is damaged: {error}.") from error


def check_format(content: Mapping[str, Any], where: str) -> None:
    """Raises ConflictError for what a newer version has written."""
    if content.get("format", FORMAT) != FORMAT:
        raise ConflictError(
            f"{where} was written by a newer version of lossy_mlflow (format {content['format']}, here {FORMAT}).",
            "Read it with that version: pip install -U lossy-mlflow",
        )


def _decode(data: bytes, where: str) -> dict[str, Any]:
    try:
        content = json.loads(data)
        if not isinstance(content, dict):
            raise ValueError("no object")
    except ValueError as error:
        raise LossyError(f"{where} is damaged: {error}.") from error
    check_format(content, where)
    content.pop("format", None)
    return content

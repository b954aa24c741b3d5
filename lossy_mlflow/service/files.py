"""A place of files, a folder or an S3 bucket, in one way: listed, opened, written whole or not at all, deleted."""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import posixpath
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Protocol, cast
from urllib.parse import urlsplit

import psutil

from lossy_mlflow.errors import LossyError, NotFoundError, UnreachableError

_PART = ".lossy-part-"
_COPY_BYTES = 1 << 20
_DAY_S = 86400.0
_ANSWER_WITHIN_S = 10
# So many may be at work in one place at once.
THREADS = 16
# What is smaller is held in memory and sent in one request; boto3 would start threads for each.
_SMALL_BYTES = 8 << 20


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

    def files(self, under: str = "") -> Iterator[StoredFile]:
        """All files in the folder `under` and its folders, by path. Raises LossyError where a folder can't be listed."""
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

        Such files are on the disk after `sync`.
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
    return Bucket(uri) if uri.startswith("s3://") else Folder(Path(uri))


class Folder:
    """A folder of this machine. Links are no files of it."""

    def __init__(self, folder: Path) -> None:
        self.uri = str(folder)
        self._folder = folder

    def files(self, under: str = "") -> Iterator[StoredFile]:
        walk = self._walk(self._path(under) if under else self._folder, under)
        return (file for file in walk if not _is_part(file))

    def survey(self) -> Survey:
        found: tuple[list[StoredFile], list[StoredFile]] = ([], [])
        for file in self._walk(self._folder, ""):
            found[_is_part(file)].append(file)
        return Survey(*found)

    def now(self) -> float:
        try:
            # It has no name, where the file system can do that.
            with tempfile.TemporaryFile(dir=self._folder, prefix=_PART) as probe:
                return os.fstat(probe.fileno()).st_mtime
        except (
            OSError
        ):  # there is no such folder, or it can't be written: then nothing will be deleted either
            return time.time()

    def _walk(self, folder: Path, prefix: str) -> Iterator[StoredFile]:
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise LossyError(
                f"The folder {folder} can't be listed: {error.strerror}.",
                "Start this as the user that the server runs as.",
            ) from error
        for entry in entries:
            path = f"{prefix}/{entry.name}" if prefix else entry.name
            if entry.is_dir(follow_symlinks=False):
                yield from self._walk(folder / entry.name, path)
            elif entry.is_file(follow_symlinks=False):
                with contextlib.suppress(FileNotFoundError):
                    yield _stored(path, entry.stat(follow_symlinks=False))

    def find(self, path: str) -> StoredFile | None:
        file = self._path(path)
        return _stored(path, file.lstat()) if file.is_file() and not file.is_symlink() else None

    @contextmanager
    def open(self, path: str) -> Iterator[BinaryIO]:
        with self._path(path).open("rb") as stream:
            before = _stored(path, os.fstat(stream.fileno()))
            yield stream
            if _stored(path, os.fstat(stream.fileno())) != before:
                raise ChangedError(path)

    def write(self, path: str, source: BinaryIO) -> None:
        target = self._path(path)
        with self._part_of(target.parent, str(target)) as part:
            with part.open("wb") as stream:
                shutil.copyfileobj(source, stream, _COPY_BYTES)
                stream.flush()
                os.fsync(stream.fileno())
            part.replace(target)

    def write_as(self, name: Callable[[], str | None], source: BinaryIO) -> None:
        with self._part_of(self._folder, f"A file of {self.uri}") as part:
            with part.open("wb") as stream:
                shutil.copyfileobj(source, stream, _COPY_BYTES)
            if path := name():
                target = self._path(path)
                target.parent.mkdir(parents=True, exist_ok=True)
                part.replace(target)

    def sync(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            folder = os.open(self._folder, os.O_RDONLY)
            try:
                # One call for thousands of files: each by itself would cost more than copying it.
                if getattr(ctypes.CDLL(None), "syncfs", os.fsync)(folder) != 0:
                    os.sync()
            finally:
                os.close(folder)

    def clear(self) -> None:
        for folder, _, names in os.walk(self._folder):
            for name in names:
                if name.startswith(_PART) and _is_abandoned(part := Path(folder, name)):
                    part.unlink(missing_ok=True)

    @contextmanager
    def _part_of(self, folder: Path, what: str) -> Iterator[Path]:
        """The path of a file to be written and renamed in the block; else it is gone after it. Raises LossyError."""
        part = folder / f"{_PART}{os.getpid()}-{uuid.uuid4().hex}-{socket.gethostname()}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            yield part
        except OSError as error:
            raise LossyError(
                f"{what} can't be written: {error.strerror}.", "Free some space, or name another place."
            ) from error
        finally:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)

    def delete(self, path: str) -> None:
        file = self._path(path)
        file.unlink(missing_ok=True)
        for folder in file.parents:
            if folder == self._folder or not folder.is_relative_to(self._folder):
                return
            try:
                folder.rmdir()
            except OSError:
                return  # others are in it

    def abandon(self, unfinished: StoredFile) -> None:
        self.delete(unfinished.path)

    def _path(self, path: str) -> Path:
        parts = PurePosixPath(path).parts
        if not parts or ".." in parts or path.startswith("/"):
            raise ValueError(f"{path!r} is no path below {self.uri}")
        return self._folder.joinpath(*parts)


def _is_abandoned(part: Path) -> bool:
    """Whether its writer has died; of another machine's nothing is known, but that a day is enough for any file."""
    pid, _, host = part.name.removeprefix(_PART).split("-", 2)
    if host == socket.gethostname():
        return not psutil.pid_exists(int(pid))
    with contextlib.suppress(OSError):
        return time.time() - part.stat().st_mtime > _DAY_S
    return False


def _is_part(file: StoredFile) -> bool:
    return posixpath.basename(file.path).startswith(_PART)


def _stored(path: str, stat: os.stat_result) -> StoredFile:
    mark = f"{stat.st_mtime_ns}-{stat.st_ctime_ns}-{stat.st_ino}"
    return StoredFile(path, stat.st_size, stat.st_mtime, mark)


class Bucket:
    """The objects of an S3 bucket below a prefix."""

    def __init__(self, uri: str) -> None:
        parts = urlsplit(uri)
        self.uri = uri.rstrip("/")
        self.bucket = parts.netloc
        self._prefix = f"{path}/" if (path := parts.path.strip("/")) else ""
        self.client = s3_client()

    def files(self, under: str = "") -> Iterator[StoredFile]:
        prefix = self._prefix + (f"{under.strip('/')}/" if under else "")
        with self._explained():
            pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
            for page in pages:
                for item in page.get("Contents", []):
                    # A key that ends with a slash is how some programs draw a folder.
                    if not item["Key"].endswith("/"):
                        path = item["Key"][len(self._prefix) :]
                        yield StoredFile(path, item["Size"], item["LastModified"].timestamp(), item["ETag"])

    def survey(self) -> Survey:
        uploads = self.client.get_paginator("list_multipart_uploads")
        unfinished = []
        with self._explained():
            for page in uploads.paginate(Bucket=self.bucket, Prefix=self._prefix):
                for item in page.get("Uploads", []):
                    path, begun = item["Key"][len(self._prefix) :], item["Initiated"].timestamp()
                    unfinished.append(StoredFile(path, 0, begun, item["UploadId"]))
        return Survey(list(self.files()), unfinished)

    def now(self) -> float:
        with self._explained():
            reply = self.client.list_objects_v2(Bucket=self.bucket, Prefix=self._prefix, MaxKeys=1)
        return parsedate_to_datetime(reply["ResponseMetadata"]["HTTPHeaders"]["date"]).timestamp()

    def find(self, path: str) -> StoredFile | None:
        try:
            with self._explained():
                found = self.client.head_object(Bucket=self.bucket, Key=self._prefix + path)
        except FileNotFoundError:
            return None
        return StoredFile(path, found["ContentLength"], found["LastModified"].timestamp(), found["ETag"])

    @contextmanager
    def open(self, path: str) -> Iterator[BinaryIO]:
        with self._explained():
            body = self.client.get_object(Bucket=self.bucket, Key=self._prefix + path)["Body"]
            with contextlib.closing(body):
                yield body

    def write(self, path: str, source: BinaryIO) -> None:
        head = _read(source, _SMALL_BYTES)
        with self._explained():
            if len(head) < _SMALL_BYTES:
                self.client.put_object(Bucket=self.bucket, Key=self._prefix + path, Body=head)
            else:
                self.client.upload_fileobj(_Joined(head, source), self.bucket, self._prefix + path)

    def write_as(self, name: Callable[[], str | None], source: BinaryIO) -> None:
        # An object can't be renamed.
        with tempfile.SpooledTemporaryFile(_SMALL_BYTES) as spool:
            try:
                shutil.copyfileobj(source, spool, _COPY_BYTES)
            except OSError as error:
                raise LossyError(
                    f"A file can't be kept in {tempfile.gettempdir()} before it is sent: {error.strerror}.",
                    "Free some space, or name another folder for such files: export TMPDIR=...",
                ) from error
            spool.seek(0)
            if path := name():
                self.write(path, cast(BinaryIO, spool))

    def sync(self) -> None:
        pass  # what S3 has answered for is kept

    def clear(self) -> None:
        pass  # an upload that was cut off is no object; S3 has rules that end such

    def delete(self, path: str) -> None:
        with self._explained():
            self.client.delete_object(Bucket=self.bucket, Key=self._prefix + path)

    def abandon(self, unfinished: StoredFile) -> None:
        # Another may have ended it meanwhile, well or not.
        with contextlib.suppress(FileNotFoundError), self._explained():
            self.client.abort_multipart_upload(
                Bucket=self.bucket, Key=self._prefix + unfinished.path, UploadId=unfinished.mark
            )

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """What boto3 raises, as FileNotFoundError for an object that isn't there, else as a LossyError."""
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

        where = f"the bucket {self.bucket} at {self.client.meta.endpoint_url}"
        try:
            yield
        except ClientError as error:
            raise _refused(error.response, where) from error
        except Boto3Error as error:
            cause = error.__context__
            if isinstance(cause, ClientError):
                raise _refused(cause.response, where) from error
            raise UnreachableError(f"{where} doesn't do as it is asked: {error}", _LOOK_AT_S3) from error
        except NoCredentialsError as error:
            raise LossyError(
                f"There are no keys for {where}.", "export AWS_ACCESS_KEY_ID=... AWS_SECRET_ACCESS_KEY=..."
            ) from error
        except BotoCoreError as error:
            raise UnreachableError(f"{where} can't be reached: {error}", _LOOK_AT_S3) from error


_LOOK_AT_S3 = "Start it, or name another: export MLFLOW_S3_ENDPOINT_URL=http://HOST:PORT"


def s3_client() -> Any:
    """A client of the S3 server that AWS's variables and MLFLOW_S3_ENDPOINT_URL name, as MLflow's server makes one."""
    try:
        import boto3
        from botocore.config import Config
    except ImportError as error:
        raise LossyError(
            f"A place in S3 needs a package that isn't installed: {error}.",
            "pip install 'lossy-mlflow[server]'",
        ) from None
    endpoint = os.environ.get("MLFLOW_S3_ENDPOINT_URL") or None
    config = Config(
        connect_timeout=_ANSWER_WITHIN_S,
        read_timeout=60,
        max_pool_connections=THREADS,
        retries={"max_attempts": 3},
        s3={"addressing_style": "path"} if endpoint else {},
    )
    # boto3's own session would remember the keys that it has found first.
    return boto3.session.Session().client("s3", endpoint_url=endpoint, config=config)


def _refused(response: dict[str, Any], where: str) -> Exception:
    code = str(response.get("Error", {}).get("Code", ""))
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    if code == "NoSuchBucket":
        return NotFoundError(f"There is no {where.removeprefix('the ')}.", "Make it, or name another.")
    if code in ("NoSuchKey", "NoSuchUpload", "404") or status == 404:
        return FileNotFoundError(code)
    if code == "RequestTimeTooSkewed":
        return LossyError(f"The clock of this machine is not that of {where}.", "Set the clock: timedatectl")
    if status == 403:
        return LossyError(
            f"{where[0].upper()}{where[1:]} refuses: {code}.",
            "Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or ask for the right to list, read and write.",
        )
    return UnreachableError(f"{where[0].upper()}{where[1:]} answers {status} {code}.", _LOOK_AT_S3)


def _read(source: BinaryIO, size: int) -> bytes:
    """The next `size` bytes; fewer at the end alone."""
    whole = io.BytesIO()
    while (missing := size - whole.tell()) and (data := source.read(missing)):
        whole.write(data)
    return whole.getvalue()


class _Joined:
    """`head`, then what `rest` has left. boto3 would seek in a stream that can, and close it."""

    def __init__(self, head: bytes, rest: BinaryIO) -> None:
        self._head = io.BytesIO(head)
        self._rest = rest

    def read(self, size: int = -1) -> bytes:
        return self._head.read(size) or self._rest.read(size)

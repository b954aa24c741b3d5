"""A real nginx with TLS on a free port, as docker/nginx.conf.template has it, in front of a server."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

from tests.conftest import ROOT, free_port

TEMPLATE = ROOT / "docker" / "nginx.conf.template"


@dataclass(frozen=True)
class Nginx:
    """`certificate` is what a client has to trust. `log`: what it says of requests and of itself."""

    uri: str
    certificate: Path
    log: Path
    process: subprocess.Popen[bytes]


@contextmanager
def start_nginx(folder: Path, upstream: str) -> Iterator[Nginx]:
    """`upstream` as nginx names one: 127.0.0.1:5000, or unix:/PATH. It answers within the block, if that does."""
    port = free_port()
    configuration = write_configuration(folder, upstream, port)
    log = folder / "nginx.log"
    with log.open("wb") as output:
        process = subprocess.Popen(nginx_command(configuration), stdout=output, stderr=output)
    uri, certificate = f"https://localhost:{port}", folder / "certificate.pem"
    try:
        for _ in range(100):
            try:
                requests.get(f"{uri}/health", verify=str(certificate), timeout=5).raise_for_status()
                break
            except requests.RequestException:
                assert process.poll() is None, log.read_text()
                time.sleep(0.1)
        else:
            pytest.fail(f"nginx didn't answer: {log.read_text()}")
        yield Nginx(uri, certificate, log, process)
    finally:
        process.terminate()
        process.wait(20)


def write_configuration(folder: Path, upstream: str, port: int) -> Path:
    """nginx.conf in `folder`, from the template, beside a new certificate for localhost."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl: apt-get install openssl")
    folder.mkdir(exist_ok=True)
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
            "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate),
        ],
        check=True,
        capture_output=True,
    )  # fmt: skip
    variables = {
        "LOSSY_LISTEN": f"127.0.0.1:{port}",
        "LOSSY_UPSTREAM": upstream,
        "LOSSY_CERTIFICATE": str(certificate),
        "LOSSY_CERTIFICATE_KEY": str(key),
    }
    configuration = folder / "nginx.conf"
    configuration.write_text(render(TEMPLATE.read_text(), variables))
    return configuration


def render(template: str, variables: Mapping[str, str]) -> str:
    """As envsubst does it in nginx's image, for these variables alone."""
    return re.sub(r"\$\{(\w+)\}", lambda found: variables.get(found[1], found[0]), template)


def nginx_command(configuration: Path, *more: str) -> list[str]:
    """nginx in the foreground, as the user who runs the tests: whose folders no other user may enter."""
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        pytest.skip("needs nginx: apt-get install nginx")
    user = " user root;" if os.geteuid() == 0 else ""
    return [
        program, "-p", f"{configuration.parent}/", "-c", str(configuration), "-g", f"daemon off;{user}", *more,
    ]  # fmt: skip

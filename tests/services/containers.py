"""Real containers of docker/compose.yaml, by podman, on a base that debootstrap makes: no image registry is asked."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT, wait_for

_BASE = "localhost/debian-python:bookworm"
# In the order in which they need each other: podman 4 waits for no health.
_ORDER = (["database", "store"], ["server"], ["proxy"])
_CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"


@dataclass(frozen=True)
class Containers:
    """`folder` has a copy of docker/, with its .env."""

    folder: Path
    environment: dict[str, str]

    def podman(self, *words: str, check: bool = True) -> str:
        done = subprocess.run(["podman", *words], env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0 or not check, (
            f"{' '.join(words)}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
        )
        return done.stdout

    def compose(self, *words: str) -> None:
        program = str(Path(sys.executable).with_name("podman-compose"))
        subprocess.run(
            [program, "--file", str(self.folder / "docker" / "compose.yaml"), *words],
            env=self.environment,
            check=True,
            capture_output=True,
        )

    def up(self) -> None:
        """All services, each once those before it are healthy by their own health checks."""
        for services in _ORDER:
            self.compose("up", "--no-build", "--detach", "--no-deps", *services)
            for service in services:
                wait_for(lambda name=service: self.healthy(name), 180, f"{service} is healthy")

    def healthy(self, service: str) -> bool:
        check = ["podman", "healthcheck", "run", f"lossy_{service}_1"]
        return subprocess.run(check, env=self.environment, capture_output=True).returncode == 0

    def build(self, *words: str) -> None:
        options = ["--quiet", "--format", "docker", "--network", "host", "--build-arg", f"BASE={_BASE}"]
        self.podman("build", *options, *words)


@contextmanager
def start_containers(folder: Path, settings: str) -> Iterator[Containers]:
    """Build the images and start the team service with `settings` as its .env. It takes minutes, and root."""
    for program in ("podman", "runc", "debootstrap", "aardvark-dns"):
        if not shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/usr/lib/podman"):
            pytest.skip(f"needs {program}: apt-get install podman runc debootstrap netavark aardvark-dns")
    if os.geteuid() != 0:
        pytest.skip("needs root, for debootstrap")
    containers = Containers(folder, os.environ | _configure(folder))
    shutil.copytree(ROOT / "docker", folder / "docker")
    (folder / "docker" / ".env").write_text(settings)
    try:
        _make_images(containers)
        containers.up()
        yield containers
    finally:
        containers.compose("down", "--volumes")
        containers.podman("unshare", "true", check=False)
        containers.podman("system", "reset", "--force", check=False)


def _configure(folder: Path) -> dict[str, str]:
    """podman's own files in `folder` alone."""
    runtime = folder / "runtime"
    runtime.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(__file__).with_name("runtime.py")} "$@"\n')
    runtime.chmod(0o755)
    storage, engine = folder / "storage.conf", folder / "containers.conf"
    storage.write_text(
        f'[storage]\ndriver = "overlay"\ngraphroot = "{folder / "images"}"\nrunroot = "{folder / "run"}"\n'
    )
    engine.write_text(
        '[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\nruntime = "lossy"\n'
        f'[engine.runtimes]\nlossy = ["{runtime}"]\n[network]\nnetwork_backend = "netavark"\n'
        f'network_config_dir = "{folder / "networks"}"\n'
    )
    return {"CONTAINERS_STORAGE_CONF": str(storage), "CONTAINERS_CONF": str(engine)}


def _make_images(containers: Containers) -> None:
    base = containers.folder / "base"
    packages = "python3,python3-venv,ca-certificates"
    subprocess.run(
        ["debootstrap", "--variant=minbase", f"--include={packages}", "bookworm", str(base)],
        check=True,
        capture_output=True,
    )
    archive = containers.folder / "base.tar"
    subprocess.run(["tar", "-C", str(base), "-cf", str(archive), "."], check=True)
    containers.podman("import", str(archive), _BASE)
    shutil.rmtree(base)
    archive.unlink()
    services = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["services"]
    certificates = ["--volume", f"{_CERTIFICATES}:{_CERTIFICATES}:ro"]
    for name in ("store", "server"):
        image = services[name]["image"]
        containers.build(
            *("--target", name, "--tag", f"localhost/{image}", *certificates),
            *("--file", str(ROOT / "docker" / "Dockerfile"), str(ROOT)),
        )
    stand_ins = Path(__file__).with_name("images")
    for name, target in (("database", "postgres"), ("proxy", "nginx")):
        tag = f"docker.io/library/{services[name]['image']}"
        containers.build("--target", target, "--tag", tag, str(stand_ins))

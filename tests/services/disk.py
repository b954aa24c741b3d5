"""A file system in memory: small, so that it can be full, or read-only. Mounting it needs root."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """`folder`, made where it isn't there, with a file system of its own: mount's `options`, such as size=256k or ro."""
    folder.mkdir(exist_ok=True)
    if shutil.which("mount") is None:
        pytest.skip("needs the mount command")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"needs root, to mount a file system: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        # Journals end with the process: until then theirs is still open.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def resize(disk: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)


def fill(disk: Path) -> Path:
    """The file that takes all the room there is."""
    path = disk / "others"
    with path.open("ab", buffering=0) as file:
        for n_bytes in (1 << 20, 100):
            try:
                while True:
                    file.write(b"x" * n_bytes)
            except OSError:
                pass
    return path

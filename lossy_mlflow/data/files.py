"""A data set's files as they lie on disk: which are whole, and what is wrong with the others."""

from __future__ import annotations

import hashlib
from pathlib import Path

from lossy_mlflow.data.catalogue import Dataset, ImageFile


def read_files(dataset: Dataset, home: Path) -> tuple[dict[str, bytes], dict[str, str]]:
    """What the whole files hold, and what is wrong with the others, both by name."""
    contents: dict[str, bytes] = {}
    faults: dict[str, str] = {}
    for file in dataset.files:
        try:
            content = (home / file.name).read_bytes()
            fault = fault_of(file, content, file.sha256 or _noted_sha256(home / file.name))
        except FileNotFoundError:
            fault = "isn't there"
        except OSError as error:
            fault = f"can't be read: {error.strerror}"
        if fault:
            faults[file.name] = fault
        else:
            contents[file.name] = content
    return contents, faults


def fault_of(file: ImageFile, content: bytes, sha256: str | None) -> str | None:
    """What is wrong with this content of the file. Without a digest, what its form alone can tell."""
    if len(content) != file.size:
        return f"has {len(content):,} bytes, not {file.size:,}"
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        return "is damaged (its SHA-256 is another)"
    if not content.startswith(file.header):
        return "is damaged (its header is another)"
    return None


def _note_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _noted_sha256(path: Path) -> str | None:
    """The digest noted beside a downloaded file; None without a note, as for a file put there by hand."""
    try:
        return _note_of(path).read_text(encoding="ascii", errors="replace").partition(" ")[0]
    except FileNotFoundError:
        return None


def note_sha256(path: Path, content: bytes, written_in: Path) -> None:
    """Note the digest of the file `path` beside it, in the form of sha256sum.

    The note is written in another folder of the same file system first, so that nobody reads half of it.
    """
    note = written_in / _note_of(path).name
    note.write_text(f"{hashlib.sha256(content).hexdigest()}  {path.name}\n", encoding="ascii")
    note.replace(_note_of(path))

"""A zip of unknown origin: looked over as a whole before any of it is read, and read member by member, never unpacked."""

from __future__ import annotations

import re
import stat
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PureWindowsPath
from typing import IO

from lossy_mlflow.checkpoints.foreign.contents import UnreadableError, explained_format, refuse_beyond_memory

# The most by which deflate can shrink anything, and what it may add to a small thing.
_DEFLATE_RATIO, _DEFLATE_EXTRA = 1032, 1024
_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}


@contextmanager
def open_zip(file: IO[bytes], what: str) -> Iterator[zipfile.ZipFile]:
    """The zip, if its list of members is one that can be believed.

    Raises UnreadableError where it can't be read; where a member's name leads out of the folder it would be unpacked in, is a
    link, or is there twice; and where a member is said to be longer than its bytes can make it.
    """
    with explained_format(what), zipfile.ZipFile(file) as opened:
        members = opened.infolist()
        for member in members:
            _check(member, what)
        twice = [name for name, count in Counter(member.filename for member in members).items() if count > 1]
        if twice:
            raise UnreadableError(f"{what} holds {twice[0]!r} twice.", _DISTRUST)
        yield opened


def read_member(opened: zipfile.ZipFile, member: zipfile.ZipInfo, what: str) -> bytes:
    """Its bytes, whose checksum has been verified. Raises UnreadableError."""
    name = f"{member.filename} in {what}"
    refuse_beyond_memory(name, member.file_size)
    with explained_format(name):
        return opened.read(member)


def names_a_place_outside(name: str) -> bool:
    """Whether the path of a member leads out of the folder that a program would unpack it in, on any system."""
    # As PureWindowsPath splits it, which takes both kinds of slashes; a colon alone is in names of TensorFlow's too.
    return bool(re.match(r"[/\\]|[A-Za-z]:[/\\]", name)) or ".." in PureWindowsPath(name).parts


_DISTRUST = "It was not written by a program that packs files: don't unpack it."


def _check(member: zipfile.ZipInfo, what: str) -> None:
    name = member.filename
    if names_a_place_outside(name):
        raise UnreadableError(f"{what} would write outside its folder: it holds {name!r}.", _DISTRUST)
    if stat.S_ISLNK(member.external_attr >> 16):
        raise UnreadableError(f"{what} holds a symbolic link: {name!r}.", "Pack the files themselves.")
    if member.flag_bits & 1:
        raise UnreadableError(f"{what} is encrypted.", "Decrypt it first.")
    if member.compress_type not in _METHODS:
        raise UnreadableError(
            f"{name} in {what} is packed by a method that isn't known here.",
            "Pack it by deflate, as zip does.",
        )
    stored = member.compress_type == zipfile.ZIP_STORED
    most = member.compress_size if stored else member.compress_size * _DEFLATE_RATIO + _DEFLATE_EXTRA
    if member.file_size > most:
        raise UnreadableError(
            f"{name} in {what} promises {member.file_size:,} bytes and has {member.compress_size:,} that can't hold them.",
            _DISTRUST,
        )

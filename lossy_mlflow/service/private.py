"""Files and folders that their owner alone may read: a server's rows and artifacts are not everybody's on the machine."""

from __future__ import annotations

import os
from pathlib import Path


def opener(path: str, flags: int) -> int:
    """For `open`: what it makes has the mode 0600."""
    return os.open(path, flags, 0o600)


def make_folder(folder: Path) -> None:
    """Make it, and those above it, where they aren't there, with the mode 0700."""
    if folder.is_dir():
        return
    for missing in reversed([place for place in (folder, *folder.parents) if not place.exists()]):
        missing.mkdir(mode=0o700, exist_ok=True)
    if not folder.is_dir():
        raise NotADirectoryError(20, os.strerror(20), str(folder))


def give_as(old: Path, new: Path) -> None:
    """Give `new` the owner and the mode of `old`, which it replaces. Raises OSError where this user can't."""
    its, mine = old.stat(), new.stat()
    if (its.st_uid, its.st_gid) != (mine.st_uid, mine.st_gid):
        os.chown(new, its.st_uid, its.st_gid)
    new.chmod(its.st_mode & 0o7777)

"""One sender a folder and place: a file that holds its owner, made by an atomic link, taken over when that owner is dead."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from lossy_mlflow.outbox.disk import open_private
from lossy_mlflow.outbox.owner import Owner, read_owner, this_place, this_process


def sender_file(server_folder: Path) -> Path:
    return server_folder / f"sender-{this_place()}"


def holder_lives(path: Path) -> bool:
    holder = _holder(path)
    return holder is not None and holder.lives() is not False


def _holder(path: Path) -> Owner | None:
    """None where there is no such file, or one that a crash of the machine has spoilt."""
    try:
        return read_owner(path.read_text(errors="replace"))
    except OSError:
        return None


def claim(path: Path) -> bool:
    """Make `path` this process's own; False where a living process has it, or is about to."""
    if (holder := _holder(path)) and holder.lives() is not False:
        return holder == this_process()
    if path.exists() and not _remove_dead(path):
        return False
    mine = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    with os.fdopen(open_private(mine, os.O_WRONLY | os.O_EXCL), "w") as file:
        file.write(str(this_process()))
    try:
        path.hardlink_to(mine)
    except FileExistsError:
        return False
    finally:
        mine.unlink()
    return True


def release(path: Path) -> None:
    """Give up what this process has claimed."""
    if _holder(path) == this_process():
        path.unlink(missing_ok=True)


def _remove_dead(path: Path) -> bool:
    """Remove a dead owner's file. False where another process is at it.

    One at a time, by a claim of its own: else a second one, which has seen the dead owner too, would remove what a first one has
    put in its place.
    """
    turn = path.with_name(f".{path.name}.removing")
    if not claim(turn):
        return False
    try:
        # Read once: a dead owner's file stays what it is until whoever has the turn removes it.
        found = read_owner(path.read_text(errors="replace"))
        if found is None or found.lives() is False:
            path.unlink()
    except FileNotFoundError:
        pass
    finally:
        release(turn)
    return True

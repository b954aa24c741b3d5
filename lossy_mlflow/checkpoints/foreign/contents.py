"""What a file of another codebase holds, and how one that can't be taken is told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lossy_mlflow.errors import LossyError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Contents:
    """Named tensors on the CPU. `epoch` and `val_loss` (nats per image) are None where the file doesn't say them."""

    tensors: Mapping[str, Tensor]
    epoch: int | None = None
    val_loss: float | None = None
    notes: tuple[str, ...] = field(default=())


class UnreadableError(LossyError):
    """A file that is damaged, dishonest or of no format that is known: nothing of it has been taken."""


@contextmanager
def explained_format(what: str) -> Iterator[None]:
    """Whatever a parser raises over bytes that aren't its own, as an UnreadableError that begins with `what`.

    Damaged bytes can break a parser at any of its lines, so that no list of exceptions would be whole.
    """
    try:
        yield
    except LossyError:
        raise
    except (Exception, MemoryError) as error:
        line = next(iter(str(error).splitlines()), "")[:200]
        raise UnreadableError(
            f"{what} can't be read: {type(error).__name__}: {line}".rstrip(": "),
            "Is it whole? Compare its size, or its SHA-256, with the original's.",
        ) from error


def refuse_beyond_memory(what: str, n_bytes: int) -> None:
    """Raises UnreadableError where `n_bytes` are more than this machine can hold three times: read, unpacked, loaded."""
    import psutil

    available = psutil.virtual_memory().available
    if n_bytes > available // 3:
        raise UnreadableError(
            f"{what} says that it holds {n_bytes / 1e9:,.1f} GB; this machine has {available / 1e9:,.1f} GB of memory free.",
            "Take a machine with more memory, if the file is what it should be.",
        )

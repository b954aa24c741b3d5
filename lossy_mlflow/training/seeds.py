"""Randomness by counter: a resumed run needs no generator's state, only the seed and the epoch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derived_seed(seed: int, purpose: str, epoch: int = 0) -> int:
    """A seed of its own (63 bits) for each purpose and epoch of a run."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{epoch}".encode()).digest()
    return int.from_bytes(digest[:8]) >> 1


def generator_for(
    seed: int, purpose: str, epoch: int = 0, device: torch.device | str = "cpu"
) -> torch.Generator:
    """A fresh generator on `device`: equal arguments give equal numbers (on the same kind of device)."""
    return torch.Generator(device).manual_seed(derived_seed(seed, purpose, epoch))


@contextmanager
def seeded(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Within, torch's global generators of the CPU and of `device` start from `seed`.

    Layers draw their first weights from them, and dropout its noise. Afterwards they are as they were.
    """
    on = torch.device(device)
    with torch.random.fork_rng(devices=[on] if on.type == "cuda" else []):
        # Not torch.manual_seed: it reaches every device, also those that are not put back.
        torch.default_generator.manual_seed(seed)
        if on.type == "cuda":
            torch.cuda.set_rng_state(torch.Generator(on).manual_seed(seed).get_state(), on)
        yield

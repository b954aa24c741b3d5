"""Numbers that follow from the seed, the purpose and the epoch."""

from __future__ import annotations

import pytest
import torch

from lossy_mlflow.training import derived_seed, generator_for, seeded


def test_each_seed_purpose_and_epoch_has_numbers_of_its_own():
    keys = [
        (seed, purpose, epoch) for seed in (-1, 0, 6) for purpose in ("noise", "order") for epoch in range(50)
    ]
    drawn = {tuple(torch.rand(4, generator=generator_for(*key)).tolist()) for key in keys}
    assert len(drawn) == len(keys)
    assert torch.equal(*(torch.rand(4, generator=generator_for(6, "noise", 2)) for _ in range(2)))


def test_the_numbers_stay_what_they_are():
    """A run that was stopped under one version goes on under the next."""
    assert derived_seed(6, "noise", 1) == 3252809800162920942


def test_the_global_generator_is_put_back_even_after_an_error():
    before = torch.random.get_rng_state()
    drawn = []

    def draw_and_fail() -> None:
        with seeded(9):
            drawn.append(torch.rand(3))
            raise ZeroDivisionError

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            draw_and_fail()
    assert torch.equal(*drawn)
    assert torch.equal(torch.random.get_rng_state(), before)

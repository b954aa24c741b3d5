from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from lossy_mlflow.hparams import Hparam
from lossy_mlflow.models import build_model
from lossy_mlflow.training import Settings, seeded


class Dropping(nn.Module):
    """A model whose noise is not the generator's: its dropout draws from torch's global one."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Dropout(0.5), nn.Linear(64, 64))

    def decode(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.net(z), torch.zeros(())

    def loss(self, batch: torch.Tensor, _: torch.Generator) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return (self.net(batch) - batch).square().sum(1).mean(), {}


def _build(name: str, seed: int = 1) -> nn.Module:
    fields: dict[str, Any] = {"z_size": 3, "x_var": 0.03, "x_var_learned": True}
    tree = Hparam(
        model_name=name,
        model_train=Hparam(**fields, hidden_sizes=[16], n_filters=4),
        dataset=Hparam(input_dims=[1, 8, 8], input_vector_length=64),
    )
    with seeded(seed):
        return Dropping() if name == "dropping" else build_model(tree)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Models this small lose much to a second thread where another program has the core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def build() -> Callable[..., nn.Module]:
    """Builds a small model for images of 64 pixels, with the weights that a seed gives."""
    return _build


@pytest.fixture
def images() -> torch.Tensor:
    """70 images of 64 pixels: with batches of 20, the last one is smaller."""
    return torch.rand(70, 64, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def settings() -> Settings:
    return Settings(batch_size=20, epochs=4, learning_rate=1e-2, seed=3)

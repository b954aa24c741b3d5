from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lossy_mlflow.hparams import Hparam


def _tree(model_name: str = "deep_vae", dims: tuple[int, int, int] = (1, 8, 8), **model_train: Any) -> Hparam:
    fields: dict[str, Any] = {"z_size": 3, "x_var": 0.03, "x_var_learned": True}
    if model_name == "deep_vae":
        fields["hidden_sizes"] = [12, 7]
    if model_name == "dcgan_vae":
        fields["n_filters"] = 4
    channels, height, width = dims
    return Hparam(
        model_name=model_name,
        model_train=Hparam(**(fields | model_train)),
        dataset=Hparam(input_dims=list(dims), input_vector_length=channels * height * width),
    )


@pytest.fixture
def tree() -> Callable[..., Hparam]:
    """Makes the tree of a small model; keywords are fields of model_train."""
    return _tree

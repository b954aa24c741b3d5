import pytest

from lossy_mlflow.hparams import registry, set_names


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    """Sets that a test registers go with it."""
    set_names()
    monkeypatch.setattr(registry, "_sets", dict(registry._sets))

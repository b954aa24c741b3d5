"""A workplace with two trained decoders, made once and copied for each test."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Workplace, end_senders


@pytest.fixture(scope="session")
def two_decoders(tmp_path_factory: pytest.TempPathFactory, migrated_database: Path) -> Path:
    """vae10_digits and linear_vae10_digits of a few epochs; artifacts are named by a path below the folder."""
    folder = tmp_path_factory.mktemp("decoders") / "work"
    folder.mkdir()
    shutil.copy(migrated_database, folder / "mlflow.db")
    place = Workplace(folder, folder.parent)
    for name in ("vae10_digits", "linear_vae10_digits"):
        done = place.lossy("train", name, "--set", "model_train.epochs=12", "--set", "checkpointing_freq=12")
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def workplace(tmp_path: Path, two_decoders: Path) -> Iterator[Workplace]:
    """A copy of the database; the decoders' files are read where they were made, what is new lies beside the copy."""
    folder, home = tmp_path / "work", tmp_path / "home"
    folder.mkdir()
    home.mkdir()
    shutil.copy(two_decoders / "mlflow.db", folder / "mlflow.db")
    yield Workplace(folder, home)
    end_senders(home / "state" / "lossy_mlflow" / "outbox")


@pytest.fixture
def saves_often(workplace: Workplace) -> Path:
    """Five times a second, not every twenty seconds: a file that Python runs at its start says so."""
    site = workplace.folder.parent / "site"
    site.mkdir()
    file = site / "sitecustomize.py"
    file.write_text(
        "import sys\n"
        "if any(word == 'evaluate' for word in sys.orig_argv):\n"
        "    import lossy_mlflow.experiments.evaluation_run as run\n"
        "    run._SAVE_EVERY_S = 0.2\n"
    )
    others = workplace.environment.get("PYTHONPATH")
    workplace.environment["PYTHONPATH"] = f"{site}:{others}" if others else str(site)
    return file

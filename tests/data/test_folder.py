"""Which folder the images lie in."""

from __future__ import annotations

from pathlib import Path

import pytest

from lossy_mlflow.data import data_folder


def test_option_comes_before_the_variable(monkeypatch, tmp_path):
    monkeypatch.setenv("LOSSY_DATA_DIR", str(tmp_path / "variable"))
    assert data_folder(str(tmp_path / "option")) == tmp_path / "option"


@pytest.mark.parametrize("option", [None, ""])
def test_variable_comes_before_the_cache(monkeypatch, tmp_path, option):
    monkeypatch.setenv("LOSSY_DATA_DIR", str(tmp_path))
    assert data_folder(option) == tmp_path


@pytest.mark.parametrize("variable", [None, ""])
def test_otherwise_it_is_in_the_users_cache(monkeypatch, tmp_path, variable):
    monkeypatch.delenv("LOSSY_DATA_DIR", raising=False)
    if variable is not None:
        monkeypatch.setenv("LOSSY_DATA_DIR", variable)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = data_folder()
    assert folder.name == "data"
    assert folder.parent.name == "lossy_mlflow"
    assert folder.is_relative_to(tmp_path)


def test_home_and_relative_names_are_made_absolute(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert data_folder("~/images") == tmp_path / "home" / "images"
    assert data_folder("images") == Path.cwd() / "images"

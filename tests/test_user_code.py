"""A user's own file: run once, again when it has changed, never twice beside the program's own import."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from lossy_mlflow.errors import LossyError
from lossy_mlflow.hparams import get_hparams
from lossy_mlflow.user_code import load_user_code

SET = """
from lossy_mlflow import Hparam, register_hparams

@register_hparams
def mine() -> Hparam:
    return Hparam(x={x})
"""


def test_an_edited_file_is_run_again(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    for x in (1, 2):
        file.write_text(SET.format(x=x))
        assert load_user_code(str(file)) == file
        assert get_hparams("mine").x == x


def test_a_file_that_the_program_has_imported_is_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mine_imported.py"
    file.write_text(SET.format(x=3))
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.import_module("mine_imported")
    monkeypatch.setenv("LOSSY_USER_CODE", str(file))
    load_user_code(None)
    assert get_hparams("mine").x == 3


@pytest.mark.parametrize(("text", "line"), [("x = 1\ny = (\n", 2), ("\n\nraise ValueError('no')\n", 3)])
def test_a_fault_is_said_with_its_line(tmp_path: Path, text: str, line: int) -> None:
    file = tmp_path / "faulty.py"
    file.write_text(text)
    with pytest.raises(LossyError, match=rf"faulty.py:{line}"):
        load_user_code(str(file))

"""A user's own file: run once, again when it has changed, never twice beside the program's own import."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from lossy_mlflow.errors import LossyError
from lossy_mlflow.hparams import get_hparams
from lossy_mlflow.user_code import load_user_code
from tests.conftest import Workplace


@pytest.fixture(autouse=True)
def _path_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))


FAILS_LATER = """\
from torch import nn
from lossy_mlflow import register_hparams, register_model
from lossy_mlflow.hparams.catalogue.digits import vae2_digits

class Late(nn.Module):
    def loss(self, batch, generator):
        self.steps = getattr(self, "steps", 0) + 1
        if self.steps > 40:
            {}["paint"]
        return (self.net.bias - batch).square().mean(), {}
    def decode(self, z):
        return self.net(z), z.new_zeros(())

@register_model("late")
def late(hparams):
    model = Late()
    model.net = nn.Linear(hparams.model_train.z_size, hparams.dataset.input_vector_length)
    return model

@register_hparams
def late_set():
    tree = vae2_digits()
    tree.model_name = "late"
    return tree
"""

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


def test_a_call_of_exit_is_a_fault_whatever_its_code(tmp_path: Path) -> None:
    file = tmp_path / "leaving.py"
    for code in ("0", "3", "'enough'", ""):
        file.write_text(f"import sys\n\nsys.exit({code})\n")
        with pytest.raises(LossyError, match=rf"leaving.py:3: it calls sys.exit\({code}\)") as fault:
            load_user_code(str(file))
        assert fault.value.exit_code == 1


def test_what_lies_beside_the_file_can_be_imported_at_once_and_later(tmp_path: Path) -> None:
    (tmp_path / "beside_at_once.py").write_text("x = 4\n")
    (tmp_path / "beside_later.py").write_text("y = 5\n")
    file = tmp_path / "mine.py"
    lazily = SET.format(x="x, y=y").replace("    return", "    from beside_later import y\n    return")
    file.write_text(f"from beside_at_once import x\n{lazily}")
    load_user_code(str(file))
    assert (get_hparams("mine").x, get_hparams("mine").y) == (4, 5)


def test_it_takes_no_installed_modules_place(tmp_path: Path) -> None:
    for name in ("colorsys", "torch"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('the wrong one')\n")
    file = tmp_path / "mine.py"
    file.write_text("import colorsys, torch\n" + SET.format(x="int(colorsys.ONE_THIRD * 3)"))
    load_user_code(str(file))
    assert get_hparams("mine").x == 1


@pytest.mark.parametrize(("text", "line"), [("x = (\n", 1), ("def f():\n    1 / 0\nf()\n", 2)])
def test_a_fault_beside_the_file_is_said_with_its_place(tmp_path: Path, text: str, line: int) -> None:
    (tmp_path / "faulty_beside.py").write_text(text)
    file = tmp_path / "mine.py"
    file.write_text("import faulty_beside\n")
    with pytest.raises(LossyError, match=rf"faulty_beside.py:{line}: "):
        load_user_code(str(file))


def test_a_model_that_fails_in_mid_training_is_said_with_its_line(here: Workplace) -> None:
    file = here.folder / "mine.py"
    file.write_text(FAILS_LATER)
    done = here.lossy("train", "late_set", "--user-code", str(file))
    assert done.returncode == 1
    assert f"The training fails: {file}:9: KeyError: 'paint'" in done.stderr
    assert "Traceback" not in done.stderr
    (run,) = here.json("runs", "list")
    assert run["state"] == "FAILED"


def test_verbose_shows_the_traceback_and_nothing_else_does(tmp_path: Path) -> None:
    file = tmp_path / "faulty.py"
    file.write_text("def f():\n    return {}['paint']\nf()\n")
    words = ["hparams", "list", "--user-code", str(file)]
    for verbose in ([], ["-v"]):
        done = subprocess.run(
            [sys.executable, "-m", "lossy_mlflow", *verbose, *words], capture_output=True, text=True
        )
        assert done.returncode == 1
        assert f"{file}:2: KeyError: 'paint'" in done.stderr
        assert ("Traceback" in done.stderr) == bool(verbose)

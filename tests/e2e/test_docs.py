"""What the README tells a person to type works as it stands there."""

from __future__ import annotations

import re
import shlex
import sys

import torch

from lossy_mlflow import get_hparams
from lossy_mlflow.models import build_model, decoder_of
from tests.conftest import ROOT, Workplace

README = (ROOT / "README.md").read_text()
GUIDE = (ROOT / "docs" / "guide.md").read_text()
CURVES = (ROOT / "docs" / "rate_distortion.md").read_text()
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()


def _commands(text: str, tool: str) -> list[list[str]]:
    lines = re.findall(rf"^    ({tool} .*)$", text.replace("\\\n", ""), flags=re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


def test_the_commands_and_the_python_of_the_readme(workplace: Workplace) -> None:
    commands = _commands(README, "lossy")
    assert len(commands) >= 6
    for words in commands:
        if words[1] == "train":
            words += ["--set", "model_train.epochs=2"]
        done = workplace.lossy(*words[1:])
        assert done.returncode == 0, (words, done.stderr)
        assert done.stdout
    snippets = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(snippets) == 2
    checks = ["assert x_mean.shape == (16, 64)", "assert images.shape == (16, 64)"]
    code = "\n".join(snippet + check for snippet, check in zip(snippets, checks, strict=True))
    done = workplace.run(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr


def test_every_command_of_the_guide_is_one_that_exists(workplace: Workplace) -> None:
    for words in _commands(GUIDE, "lossy") + _commands(CURVES, "lossy") + _commands(OPERATIONS, "lossy"):
        done = workplace.lossy(*[word for word in words[1:3] if word.isalpha()], "--help")
        assert done.returncode == 0, words


def test_the_pure_part_of_the_curves_runs_as_it_stands_there() -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", CURVES, flags=re.DOTALL)
    model = build_model(get_hparams("vae10_digits"))
    names = {"decoder": decoder_of(model), "images": torch.rand(4, 64)}
    exec(snippet, names)  # noqa: S102 - it is our own text
    assert names["curve"].rate.shape == (3, 4)
    assert names["curve"].doubts() is not None


def test_the_files_that_the_docs_name_are_there() -> None:
    for file in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", file.read_text()):
            assert (file.parent / target).exists(), f"{file.name} names {target}"

"""Every command, without exception: help, an example in it, JSON where it prints results; and nothing heavy is loaded for it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import click
import pytest

from lossy_mlflow.cli.app import app
from tests.conftest import Workplace


def _commands(
    group: click.Group, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from _commands(command, (*path, name))
        else:
            yield (*path, name), command


COMMANDS = dict(_commands(app))


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_a_command_has_help_with_an_example(path: tuple[str, ...]) -> None:
    command = COMMANDS[path]
    assert command.help
    assert command.epilog
    assert (
        command.epilog.startswith(f"Example: lossy {' '.join(path)} ")
        or command.epilog == f"Example: lossy {' '.join(path)}"
    )
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{path}: {parameter.name} has no help"


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_a_command_that_prints_results_prints_json_too(path: tuple[str, ...]) -> None:
    names = {parameter.name for parameter in COMMANDS[path].params}
    # These do something, and have nothing to print.
    silent = (("data", "fetch"), ("outbox", "discard"), ("users", "passwd"), ("users", "remove"))
    assert "as_json" in names or path in silent


@pytest.mark.parametrize(
    "words", [["--help"], ["hparams", "list"], ["models", "list"], ["data", "list"], ["train", "--help"]]
)
def test_what_needs_no_torch_and_no_mlflow_loads_neither(words: list[str]) -> None:
    code = (
        "import sys\nfrom lossy_mlflow.cli import main\n"
        f"try:\n    main({words!r})\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'mlflow', 'torchvision', 'sklearn'} & sys.modules.keys()), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr == "[]\n"
    assert done.stdout


def test_resolving_and_promoting_load_no_torch(here: object) -> None:
    files = [
        "checkpoints.lookup",
        "experiments",
        *(f"checkpoints.{verb}" for verb in ("promote", "history", "lineage", "prune")),
    ]
    code = (
        "import sys\n"
        + "".join(f"import lossy_mlflow.{file}\n" for file in files)
        + "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("lossy train dcvae100_m", ["dcvae100_mnist"]),
        ("lossy train icml_vae2", ["icml_vae2_rd"]),
        ("lossy evaluate icml_vae2", ["icml_vae2_rd", "icml_vae2_rd_rerun"]),
        ("lossy hparams show vae2_rd_b", ["vae2_rd_baseline_icml"]),
    ],
)
def test_the_shell_completes_the_names_of_sets(
    workplace: Workplace, words: str, completed: list[str]
) -> None:
    assert workplace.completed(words) == completed

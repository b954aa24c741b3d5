"""MLproject and the module it calls: any value comes out byte for byte, through MLflow's template and a real shell."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tomllib

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow.projects.utils import load_project

from lossy_mlflow.cli.project import train_arguments
from lossy_mlflow.cli.train import train
from lossy_mlflow.errors import UsageError
from lossy_mlflow.hparams import MLFLOW_RUN_PARAMETERS, flatten, get_hparams, read_assignments, set_names
from tests.conftest import ROOT

# What a command line can hold: everything but NUL; bytes that are no text come as surrogates (PEP 383).
characters = st.characters(exclude_characters="\0", exclude_categories=["Cs"])
odd_characters = st.sampled_from("'\"\\$`{}()=-%!~*?#&|;<> \t\r\n\udc80\udcff")
words = st.builds(
    str.__add__, st.sampled_from(["", "-", "--", "--set="]), st.text(characters | odd_characters)
)
assignments = st.dictionaries(words.map(lambda key: f"k{key}".replace("=", "")), words, max_size=4)
parameters = st.fixed_dictionaries(
    {
        "hparam_set": words,
        "e_name": words,
        "overwrite": st.sampled_from(["true", "false", "True"]),
        "user_code": words,
        "device": st.sampled_from(["auto", "cpu", "cuda", ""]),
        "data_dir": words,
    }
)
DECLARED = yaml.safe_load((ROOT / "MLproject").read_text())["entry_points"]["main"]["parameters"]


def _by_shell(command: str) -> list[str]:
    """The words that `python` would be called with."""
    script = f"""python() {{ printf '%s\\0' "$@"; }}; {command}"""
    done = subprocess.run(["bash", "-c", script], capture_output=True, check=True)
    return [word.decode(errors="surrogateescape") for word in done.stdout.split(b"\0")[:-1]]


@settings(max_examples=200, deadline=None)
@given(parameters, assignments)
def test_any_value_reaches_the_command_byte_for_byte(
    values: dict[str, str], overrides: dict[str, str]
) -> None:
    joined = shlex.join(f"{key}={value}" for key, value in overrides.items())
    entry_point = load_project(str(ROOT)).get_entry_point("main")
    called = _by_shell(entry_point.compute_command(values | {"overrides": joined}, storage_dir=None))
    assert called[:3] == ["-m", "lossy_mlflow.cli.project", str(os.getpid())]
    command, *arguments = train_arguments(called[3:])
    assert command == "train"

    with train.make_context("train", arguments) as context:
        heard = context.params
    assert heard["hparam_set"] == values["hparam_set"]
    assert heard["e_name"] == values["e_name"]
    assert heard["overwrite"] == (values["overwrite"] != "false")
    assert (heard["user_code"] or "") == values["user_code"]
    assert (heard["data_dir"] or "") == values["data_dir"]
    assert heard["device"] == (values["device"] or "auto")
    assert read_assignments(heard["assignments"]) == overrides


def _words(**changed: str) -> list[str]:
    """The words that MLproject makes of a name alone, but for what is `changed`."""
    defaults = {name: parameter.get("default", "") for name, parameter in DECLARED.items()}
    return [f"{name}={value}" for name, value in (defaults | {"hparam_set": "vae2_digits"} | changed).items()]


def test_overrides_are_split_as_a_shell_splits_words() -> None:
    text = """model_train.epochs=5 group_list='["a b", "it'"'"'s"]' "x=two  words" y=\\$HOME"""
    assert train_arguments(_words(overrides=text)) == [
        "train",
        "--device=auto",
        "--set=model_train.epochs=5",
        """--set=group_list=["a b", "it's"]""",
        "--set=x=two  words",
        "--set=y=$HOME",
        "--",
        "vae2_digits",
    ]


@pytest.mark.parametrize(
    ("words", "what", "hint"),
    [
        (_words(overwrite="yes"), "overwrite is true or false, not 'yes'", "overwrite=true"),
        (_words(overrides="a='b"), "can't be split into words", "Close its quotes"),
        (
            [*_words(), "--override", "a=b"],
            "no parameter 'override'; did you mean overrides, overwrite?",
            "hparam_set, e_name",
        ),
        ([*_words(), "--epochs", "5"], "no parameter 'epochs'.", "A field of the set goes into overrides"),
    ],
)
def test_a_parameter_that_cannot_be_taken_is_named(words: list[str], what: str, hint: str) -> None:
    with pytest.raises(UsageError) as raised:
        train_arguments(words)
    assert what in raised.value.what
    assert hint in raised.value.hint
    done = subprocess.run(
        [sys.executable, "-m", "lossy_mlflow.cli.project", "0", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (UsageError.exit_code, "")
    assert done.stderr == f"lossy: {raised.value.what}\n  {raised.value.hint}\n"


def test_no_parameter_shares_its_name_with_a_param_of_a_run() -> None:
    """MLflow logs both into the same run, and refuses a second value."""
    for name in set_names():
        assert not DECLARED.keys() & flatten(get_hparams(name)).keys(), name
    # The names that no set of the user's own may use either.
    assert DECLARED.keys() == MLFLOW_RUN_PARAMETERS


def test_a_release_gets_an_environment_of_its_own() -> None:
    """MLflow knows an environment by the text of its requirements; the version stands in it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    *_, pip = yaml.safe_load((ROOT / "conda.yaml").read_text())["dependencies"]
    assert pip["pip"] == ["-c constraints.txt", f".[train]  # {project['name']} {project['version']}"]

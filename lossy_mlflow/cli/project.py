"""What MLproject's entry points call: parameters as NAME=VALUE words in, the same as `lossy train` on.

`mlflow run` gives every parameter as text, also those that a person left out; words that never begin with a dash pass any value.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

from lossy_mlflow.cli.app import main
from lossy_mlflow.errors import UsageError

_OPTIONS = {"e_name": "--e-name", "user_code": "--user-code", "device": "--device", "data_dir": "--data-dir"}
_FLAGS = {"true": True, "false": False}


def train_arguments(words: Sequence[str]) -> list[str]:
    """The arguments of `lossy` for the parameters `words`. `overrides` is split as a shell splits words."""
    given = dict(word.split("=", 1) for word in words)
    arguments = ["train"]
    arguments += [f"{option}={given[name]}" for name, option in _OPTIONS.items() if given[name]]
    if given["overwrite"] not in _FLAGS:
        raise UsageError(f"The parameter overwrite is true or false, not {given['overwrite']!r}.")
    if _FLAGS[given["overwrite"]]:
        arguments.append("--overwrite")
    try:
        overrides = shlex.split(given["overrides"])
    except ValueError as error:
        raise UsageError(
            f"The parameter overrides can't be split into words: {error}.", "Close its quotes."
        ) from None
    arguments += [f"--set={word}" for word in overrides]
    # After "--" a name that begins with a dash is a name.
    return [*arguments, "--", given["hparam_set"]]


if __name__ == "__main__":
    try:
        words = train_arguments(sys.argv[1:])
    except UsageError as error:
        sys.exit(f"lossy: {error}")
    main(words)

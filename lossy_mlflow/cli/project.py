"""What MLproject's entry point calls: parameters as NAME=VALUE words in, the same as `lossy train` on.

`mlflow run` gives every parameter as text, also those that a person left out; words that never begin with a dash pass any value.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

from lossy_mlflow.cli.app import fail, main
from lossy_mlflow.errors import UsageError, did_you_mean

_OPTIONS = {"e_name": "--e-name", "user_code": "--user-code", "device": "--device", "data_dir": "--data-dir"}
_FLAGS = {"true": True, "false": False}


def train_arguments(words: Sequence[str]) -> list[str]:
    """The arguments of `lossy` for the parameters `words`. `overrides` is split as a shell splits words.

    Raises UsageError for a parameter that MLproject doesn't declare, a flag that is neither true nor false, an open quote.
    """
    given = _parameters(words)
    arguments = ["train"]
    arguments += [f"{option}={given[name]}" for name, option in _OPTIONS.items() if given[name]]
    overwrite = _FLAGS.get(given["overwrite"].lower())
    if overwrite is None:
        raise UsageError(
            f"The parameter overwrite is true or false, not {given['overwrite']!r}.", "-P overwrite=true"
        )
    if overwrite:
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


def _parameters(words: Sequence[str]) -> dict[str, str]:
    """The parameters that MLproject declares: all of them come first; any other follows them as `--NAME VALUE`."""
    given: dict[str, str] = {}
    for word in words:
        name, _, value = word.partition("=")
        if name.startswith("--"):
            unknown = name.removeprefix("--")
            meant = did_you_mean(unknown, given)
            raise UsageError(
                f"The project has no parameter {unknown!r}{f'; {meant}' if meant else '.'}",
                f"Its parameters: {', '.join(given)}. A field of the set goes into overrides.",
            )
        given[name] = value
    return given


if __name__ == "__main__":
    try:
        words = train_arguments(sys.argv[1:])
    except UsageError as error:
        fail(error)
    main(words)

"""What MLproject's entry points call: a process id and parameters as NAME=VALUE words in, on to `lossy train` or `evaluate`.

`mlflow run` gives every parameter as text, also those that a person left out; words that never begin with a dash pass any value.
The id is that of `mlflow run` itself, which leaves its children behind when a signal ends it.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType

from lossy_mlflow.cli.app import exit_codes, run
from lossy_mlflow.errors import UsageError, did_you_mean
from lossy_mlflow.tracking.ending import StoppedError, state_and_reason
from lossy_mlflow.tracking.signals import terminate_with
from lossy_mlflow.tracking.watcher import Watcher

_OPTIONS = {"e_name": "--e-name", "user_code": "--user-code", "device": "--device", "data_dir": "--data-dir"}
_EVALUATE = "evaluate"  # the word before the parameters of that entry point
_FLAGS = {"true": True, "false": False}


def train_arguments(words: Sequence[str]) -> list[str]:
    """The arguments of `lossy` for the parameters `words`. `overrides` is split as a shell splits words.

    Raises UsageError for a parameter that MLproject doesn't declare, a flag that is neither true nor false, an open quote.
    """
    given = _parameters(words)
    arguments = ["train", *_options(given, _OPTIONS), *_flags(given, ["overwrite"]), *_overrides(given)]
    # After "--" a name that begins with a dash is a name.
    return [*arguments, "--", given["hparam_set"]]


def evaluate_arguments(words: Sequence[str]) -> list[str]:
    """The same for the entry point `evaluate`."""
    given = _parameters(words)
    arguments = ["evaluate", *_options(given, {"data": "--data", **_OPTIONS})]
    arguments += [*_flags(given, ["quick", "log_likelihood"]), *_overrides(given)]
    return [*arguments, "--", given["name"]]


def _options(given: Mapping[str, str], options: Mapping[str, str]) -> list[str]:
    return [f"{option}={given[name]}" for name, option in options.items() if given.get(name)]


def _flags(given: Mapping[str, str], names: Sequence[str]) -> list[str]:
    for name in names:
        if given[name].lower() not in _FLAGS:
            raise UsageError(
                f"The parameter {name} is true or false, not {given[name]!r}.", f"-P {name}=true"
            )
    return [f"--{name.replace('_', '-')}" for name in names if _FLAGS[given[name].lower()]]


def _overrides(given: Mapping[str, str]) -> list[str]:
    try:
        return [f"--set={word}" for word in shlex.split(given["overrides"])]
    except ValueError as error:
        raise UsageError(
            f"The parameter overrides can't be split into words: {error}.", "Close its quotes."
        ) from None


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


@contextmanager
def _told_why(run_id: str | None) -> Iterator[None]:
    """The run that `mlflow run` has made ends, and says why, where the block ends before a training has begun in it."""
    if run_id is None:
        yield
        return
    with Watcher(run_id, "", os.environ["MLFLOW_TRACKING_URI"]) as watcher:
        try:
            yield
        except StoppedError:  # by the training, whose run has heard of it
            watcher.run_has_ended()
            raise
        except BaseException as error:
            watcher.end_run(*state_and_reason(error))
            raise
        watcher.run_has_ended()


def _interrupt(number: int, _frame: FrameType | None) -> None:
    # Once: a batch system may send it to us as well as to `mlflow run`, whose end sends it again.
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt(signal.Signals(number).name)


def main(mlflow_run: int, words: Sequence[str]) -> None:
    """Train or evaluate as `words` say, and end with the process `mlflow_run`, unless that is 0: one outside the container."""
    # As Ctrl-C does: before the training has begun there is nothing to be saved, but a run to be ended.
    signal.signal(signal.SIGTERM, _interrupt)
    with exit_codes(), _told_why(os.environ.get("MLFLOW_RUN_ID")):
        if mlflow_run:
            terminate_with(mlflow_run)
        to_evaluate = words[:1] == [_EVALUATE]
        run(evaluate_arguments(words[1:]) if to_evaluate else train_arguments(words))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])

"""What a person calls an experiment: the name of its run and of its registered model."""

from __future__ import annotations

import contextlib
import shlex
from pathlib import Path

from lossy_mlflow.errors import ConflictError, LossyError, UsageError
from lossy_mlflow.hparams.registry import evaluates, get_hparams, set_file, set_names

_LONGEST = 250  # MLflow's limit for the name of a run or model, with room to spare


def run_label(hparam_set: str, e_name: str = "") -> str:
    """`hparam_set`, or `hparam_set_e_name`.

    Raises UsageError for an e_name that the registry or a search can't take, ConflictError where another set
    could give the same label. Without an e_name the set of exactly that name is meant.
    """
    if not e_name:
        return hparam_set
    _refuse_bad_e_name(e_name)
    label = f"{hparam_set}_{e_name}"
    if len(label) > _LONGEST:
        raise UsageError(
            f"The label {label[:40]}... has {len(label)} characters; {_LONGEST} are the most.",
            "Shorten --e-name.",
        )
    for other in set_names():
        if other != hparam_set and f"{label}_".startswith(f"{other}_"):
            raise ConflictError(
                f"The label {label!r} could also mean a run of the hparam set {other!r}.",
                f"Rename one of the two sets: {hparam_set} begins with {other}_"
                if hparam_set.startswith(f"{other}_")
                else "Choose another --e-name.",
            )
    return label


def set_of_label(label: str) -> tuple[str, str] | None:
    """The hparam set and e_name that give `label`; None where no set that is known here does."""
    for name in set_names():
        e_name = "" if label == name else label.removeprefix(f"{name}_")
        with contextlib.suppress(LossyError):
            if run_label(name, e_name) == label:
                return name, e_name
    return None


def train_command(label: str) -> str | None:
    """The command that trains `label`, as a shell takes it; None where no set that is known here, and trains, gives it."""
    found = set_of_label(label)
    if found is None or evaluates(get_hparams(found[0])):
        return None
    name, e_name = found
    return _command("train", name, *([f"--e-name={e_name}"] if e_name else []))


def evaluate_command(hparam_set: str, *options: str, reference: str = "") -> str | None:
    """The command that carries out the evaluation `hparam_set`, or evaluates the version `reference` by that set.

    None for a set that a notebook has defined.
    """
    return _command("evaluate", hparam_set, *options, name=reference)


def _command(verb: str, hparam_set: str, *options: str, name: str = "") -> str | None:
    words = ["lossy", verb, name or hparam_set, *options]
    file = set_file(hparam_set)
    if file is None:
        return shlex.join(words)
    # A set that a notebook has defined is in no file that a command could be given.
    return shlex.join([*words, f"--user-code={file}"]) if Path(file).is_file() else None


def _refuse_bad_e_name(e_name: str) -> None:
    forbidden = sorted(
        {character for character in e_name if character in "/:@?" or not character.isprintable()}
    )
    if forbidden:
        raise UsageError(
            f"The e_name {e_name!r} holds {', '.join(map(repr, forbidden))}.",
            "It becomes part of a model's name: no / : @ ?, no control characters.",
        )
    if e_name != e_name.strip():
        raise UsageError(f"The e_name {e_name!r} begins or ends with a blank.", "Write it without.")
    if "'" in e_name and '"' in e_name:
        raise UsageError(
            f"The e_name {e_name!r} holds both kinds of quotes.",
            "Use one kind: MLflow can't search for both.",
        )

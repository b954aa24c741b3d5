"""`lossy models`: the architectures that `model_name` can name."""

from __future__ import annotations

import click

from lossy_mlflow.cli.options import user_code_option
from lossy_mlflow.cli.output import json_option, print_json, print_table


@click.group()
def models() -> None:
    """The model architectures: list."""


@models.command("list", epilog="Example: lossy models list --user-code my_models.py")
@user_code_option
@json_option
def list_models(user_code: str | None, as_json: bool) -> None:
    """Every architecture that an hparam set can name in model_name, and the sets that do."""
    from lossy_mlflow.hparams import evaluates, get_hparams, set_names
    from lossy_mlflow.models import model_names
    from lossy_mlflow.user_code import load_user_code

    load_user_code(user_code)
    users: dict[str, list[str]] = {name: [] for name in model_names()}
    for hparam_set in set_names():
        if not evaluates(tree := get_hparams(hparam_set)):
            users.setdefault(str(tree.model_name), []).append(hparam_set)
    if as_json:
        print_json([{"model_name": name, "hparam_sets": sets} for name, sets in users.items()])
    else:
        print_table(
            ["model_name", "sets", "for example"],
            [[n, str(len(s)), ", ".join(s[:3])] for n, s in users.items()],
        )

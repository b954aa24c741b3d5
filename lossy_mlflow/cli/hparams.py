"""`lossy hparams`: the experiments that have a name, what each consists of, how two differ."""

from __future__ import annotations

import click

from lossy_mlflow.cli.completion import data_sets, hparam_sets
from lossy_mlflow.cli.options import user_code_option
from lossy_mlflow.cli.output import json_option, print_json, print_table


@click.group()
def hparams() -> None:
    """The hparam sets: list, show, diff."""


@hparams.command("list", epilog="Example: lossy hparams list --dataset mnist")
@click.option("--dataset", metavar="NAME", help="Only the sets of this data set.", shell_complete=data_sets)
@user_code_option
@json_option
def list_sets(dataset: str | None, user_code: str | None, as_json: bool) -> None:
    """Every hparam set, those that train first: its data set, its model, or whose decoder it evaluates, and what it is."""
    from lossy_mlflow.data import dataset_names
    from lossy_mlflow.errors import NotFoundError, did_you_mean
    from lossy_mlflow.hparams import evaluates, get_hparams, set_dataset, set_names, set_summary
    from lossy_mlflow.user_code import load_user_code

    load_user_code(user_code)
    if dataset is not None and dataset not in dataset_names():
        raise NotFoundError(
            f"There is no data set {dataset!r}; {did_you_mean(dataset, dataset_names())}".rstrip("; "),
            "List them all: lossy data list",
        )
    sets = []
    for name in set_names(dataset):
        tree = get_hparams(name)
        sets.append(
            {
                "hparam_set": name,
                "dataset": set_dataset(tree),
                "model_name": tree.model_name,
                "z_size": tree.model_train and tree.model_train.z_size,
                "evaluates": tree.load_checkpoint_name if evaluates(tree) else None,
                "description": set_summary(name),
            }
        )
    sets.sort(key=lambda item: item["evaluates"] is not None)
    if as_json:
        print_json(sets)
    else:
        print_table(
            list(sets[0]) if sets else [], [["" if v is None else str(v) for v in s.values()] for s in sets]
        )


@hparams.command(epilog="Example: lossy hparams show dcvae100_mnist --flat")
@click.argument("name", shell_complete=hparam_sets)
@click.option(
    "--flat",
    is_flag=True,
    help="One KEY=VALUE a line, as --set takes them and as the run's params have them.",
)
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Show it with this override.")
@user_code_option
@json_option
def show(name: str, flat: bool, assignments: tuple[str, ...], user_code: str | None, as_json: bool) -> None:
    """Every field of the set NAME, and who set it: the set itself, a set or part it is made from, or an override."""
    from lossy_mlflow.hparams import flatten, get_hparams, origins, read_assignments, read_value
    from lossy_mlflow.user_code import load_user_code

    load_user_code(user_code)
    tree = get_hparams(name, read_assignments(assignments))
    values, who = flatten(tree), origins(tree)
    if as_json:
        print_json({key: {"value": read_value(value), "origin": who[key]} for key, value in values.items()})
    elif flat:
        for key, value in values.items():
            click.echo(f"{key}={value}")
    else:
        print_table(["field", "value", "set by"], [[key, value, who[key]] for key, value in values.items()])


@hparams.command("diff", epilog="Example: lossy hparams diff vae10_digits vae10_mnist")
@click.argument("a", shell_complete=hparam_sets)
@click.argument("b", shell_complete=hparam_sets)
@user_code_option
@json_option
def show_difference(a: str, b: str, user_code: str | None, as_json: bool) -> None:
    """The fields in which the sets A and B differ."""
    from lossy_mlflow.hparams import diff, get_hparams
    from lossy_mlflow.user_code import load_user_code

    load_user_code(user_code)
    differences = diff(get_hparams(a), get_hparams(b))
    if as_json:
        print_json([difference._asdict() for difference in differences])
    elif differences:
        absent = "(none)"
        rows = [[d.key, absent if d.a is None else d.a, absent if d.b is None else d.b] for d in differences]
        print_table(["field", a, b], rows)
    else:
        click.echo(f"{a} and {b} are the same.")

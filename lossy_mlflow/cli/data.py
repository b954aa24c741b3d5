"""`lossy data`: the data sets, and fetching one before it is needed."""

from __future__ import annotations

import click

from lossy_mlflow.cli.completion import data_sets
from lossy_mlflow.cli.options import data_dir_option
from lossy_mlflow.cli.output import json_option, print_json


@click.group()
def data() -> None:
    """The data sets: list, fetch."""


@data.command("list", epilog="Example: lossy data list")
@json_option
def list_data(as_json: bool) -> None:
    """The data sets that an hparam set can name in dataset.name."""
    from lossy_mlflow.data import dataset_names

    if as_json:
        print_json(dataset_names())
    else:
        click.echo("\n".join(dataset_names()))


@data.command("fetch", epilog="Example: lossy data fetch mnist")
@click.argument("name", shell_complete=data_sets)
@data_dir_option
def fetch_data(name: str, data_dir: str | None) -> None:
    """Download the data set NAME and verify it; what is there and right is left alone."""
    from lossy_mlflow.data import data_folder, fetch

    folder = data_folder(data_dir)
    fetch(name, folder, progress=lambda line: click.echo(line, err=True))
    click.echo(f"{name} is in {folder}, verified.")

"""`lossy resolve` and `lossy checkpoints`: decoders in the registry."""

from __future__ import annotations

import click

from lossy_mlflow.cli.output import json_option, print_json, print_table


@click.command(epilog="Example: lossy resolve dcvae100_mnist@best")
@click.argument("reference")
@click.option(
    "--chkt-step",
    type=int,
    help="For a plain NAME: -2 its best version (so it is without this option), -1 its last, N that of epoch N.",
)
@json_option
def resolve(reference: str, chkt_step: int | None, as_json: bool) -> None:
    """The registered version that REFERENCE means: NAME, NAME@ALIAS, NAME/VERSION or models:/..."""
    from lossy_mlflow.checkpoints import resolve as find

    checkpoint = find(reference, chkt_step)
    if as_json:
        print_json(checkpoint)
    else:
        click.echo(checkpoint.uri)


@click.command(epilog="Example: lossy checkpoints dcvae100_mnist")
@click.argument("name", required=False)
@json_option
def checkpoints(name: str | None, as_json: bool) -> None:
    """The versions of the registered model NAME, newest first; without NAME, the names there are."""
    from lossy_mlflow.checkpoints import list_checkpoints, list_names

    if name is None:
        names = list_names()
        if as_json:
            print_json(names)
        else:
            click.echo("\n".join(names) or "No registered model yet. Make one: lossy train vae10_digits")
        return
    found = list_checkpoints(name)
    if as_json:
        print_json(found)
        return
    rows = [
        [
            str(item.version),
            "" if item.epoch is None else str(item.epoch),
            "" if item.val_loss is None else f"{item.val_loss:.4f}",
            " ".join(f"@{alias}" for alias in item.aliases),
            item.run_id,
            item.created,
        ]
        for item in found
    ]
    print_table(["version", "epoch", "val_loss", "aliases", "run", "when"], rows)

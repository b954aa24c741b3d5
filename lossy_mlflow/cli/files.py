"""`lossy download`, `lossy verify`, `lossy export`: the files of decoders in the registry."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lossy_mlflow.cli.completion import hparam_sets
from lossy_mlflow.cli.output import bytes_bar, json_option, print_json, print_table
from lossy_mlflow.errors import UsageError

if TYPE_CHECKING:
    from lossy_mlflow.checkpoints.verify import Verified


@click.command(epilog="Example: lossy download dcvae100_mnist@best -o my_decoder")
@click.argument("reference", shell_complete=hparam_sets)
@click.option(
    "-o", "--output", metavar="DIR", help="The folder to make; else NAME-VERSION in the working folder."
)
@json_option
def download(reference: str, output: str | None, as_json: bool) -> None:
    """The files of the version that REFERENCE means, verified, in a folder. Needs neither torch nor the store's keys.

    Stopped or cut off, it goes on when it is started again. A folder that holds other files stays as it is.
    """
    from lossy_mlflow.checkpoints.download import download as fetch

    with bytes_bar() as progress:
        done = fetch(
            reference,
            Path(output).expanduser() if output else None,
            say=lambda line: click.echo(line, err=True),
            progress=progress,
        )
    if as_json:
        print_json(done)
    else:
        click.echo(
            f"{done.uri} is in {done.folder}, {'verified' if done.fetched else 'there already, verified'}."
        )


@click.command(epilog="Example: lossy verify dcvae100_mnist")
@click.argument("reference", required=False, shell_complete=hparam_sets)
@click.option("--all", "everything", is_flag=True, help="All versions of all names.")
@json_option
def verify(reference: str | None, everything: bool, as_json: bool) -> None:
    """Whether the files of REFERENCE are what was published; of a plain NAME, those of all its versions.

    They are fetched one after the other, compared with the version's tags, and removed. Exit code 1 if any are damaged or gone.
    """
    from lossy_mlflow.checkpoints.verify import verify as compare
    from lossy_mlflow.checkpoints.verify import versions_to_verify

    if (reference is None) != everything:
        raise UsageError("lossy verify takes a REFERENCE, a NAME, or --all.", "lossy verify --all")
    versions = versions_to_verify(reference)
    with _versions_bar(len(versions)) as each:
        found = compare(versions, each)
    if as_json:
        print_json(found)
    elif found:
        rows = [[f"{item.name}/{item.version}", item.state, item.reason] for item in found]
        print_table(["version", "files", "why"], rows)
    else:
        click.echo("There is no version to verify.")
    if any(item.is_lost for item in found):
        sys.exit(1)


@click.command(epilog="Example: lossy export dcvae100_mnist@best --format torch -o decoder.pt")
@click.argument("reference", shell_complete=hparam_sets)
@click.option(
    "--format",
    "kind",
    type=click.Choice(["safetensors", "torch"]),
    required=True,
    help='safetensors, with the hparams in its metadata; or torch, {"state_dict", "hparams"} for torch.load.',
)
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    help="The file to make; else NAME-VERSION.safetensors or .pt in the working folder.",
)
@json_option
def export(reference: str, kind: str, output: str | None, as_json: bool) -> None:
    """The decoder that REFERENCE means in one file, which other programs read. A file that exists stays as it is."""
    from lossy_mlflow.checkpoints.export import export as write

    done = write(reference, kind, Path(output).expanduser() if output else None)
    if as_json:
        print_json(done)
    else:
        click.echo(f"{done.uri} is in {done.file}")


@contextmanager
def _versions_bar(n_versions: int) -> Iterator[Callable[[Verified], None]]:
    """A bar over versions on a terminal's stderr; elsewhere none."""
    from tqdm import tqdm

    with tqdm(
        total=n_versions, unit="version", dynamic_ncols=True, leave=False, disable=not sys.stderr.isatty()
    ) as bar:

        def show(found: Verified) -> None:
            bar.set_description(f"{found.name}/{found.version}")
            bar.update()

        yield show

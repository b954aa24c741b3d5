"""`lossy import`: what other code has trained, into the registry."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from lossy_mlflow.cli.completion import hparam_sets
from lossy_mlflow.cli.options import user_code_option
from lossy_mlflow.cli.output import json_option, print_json, print_table
from lossy_mlflow.errors import LossyError, UsageError


@click.command("import", epilog="Example: lossy import best.pth --name vae10_theirs --hparam-set vae10_mnist")
@click.argument("files", nargs=-1, required=True, metavar="FILE... | ARCHIVE")
@click.option("--name", help="The registered model that the files become versions of.")
@click.option(
    "--hparam-set",
    shell_complete=hparam_sets,
    help="The set that says the architecture they were trained with.",
)
@user_code_option
@click.option("--dry-run", is_flag=True, help="Read and check everything, store nothing.")
@click.option(
    "--overwrite", is_flag=True, help="Begin the name anew, although a training or another import has it."
)
@json_option
def import_(
    files: tuple[str, ...],
    name: str | None,
    hparam_set: str | None,
    user_code: str | None,
    dry_run: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Make versions of what another codebase has trained: FILEs of one model, or an ARCHIVE of the paper's code.

    A FILE is torch.save's, safetensors' or numpy.savez's; nothing in it is run. An ARCHIVE is a zip or a folder with
    checkpoints/NAME/best.pth, results/...LT_HASH_LT... beside lt_records/, and ..._weights_numpy.npz.
    """
    from lossy_mlflow.experiments import import_archive, import_files

    if name is not None and hparam_set is not None:
        result = import_files(
            files, name=name, hparam_set=hparam_set, user_code=user_code, dry_run=dry_run, overwrite=overwrite
        )
    elif name is not None or hparam_set is not None or len(files) > 1:
        raise UsageError(
            "Files need both: --name, the model to be, and --hparam-set, what says their architecture.",
            "List the sets: lossy hparams list    The published archive needs neither: lossy import ARCHIVE",
        )
    else:
        with _progress_bar() as progress:
            result = import_archive(
                files[0], user_code=user_code, dry_run=dry_run, overwrite=overwrite, progress=progress
            )
    if as_json:
        print_json(result)
    else:
        rows = [
            [item.outcome, item.name, "" if item.version is None else str(item.version), item.file, item.note]
            for item in result.files
        ]
        print_table(["", "model", "version", "file", "note"], rows)
    if not any(item.is_there for item in result.files):
        raise LossyError(f"Nothing of {files[0]} was imported.", "The last column says why.")


@contextmanager
def _progress_bar() -> Iterator[Callable[[str, int, int], None] | None]:
    """A bar over the files on a terminal's stderr; elsewhere none."""
    if not sys.stderr.isatty():
        yield None
        return
    from tqdm import tqdm

    with tqdm(unit="file", dynamic_ncols=True) as bar:

        def show(file: str, done: int, total: int) -> None:
            bar.total = total
            bar.set_postfix_str(file, refresh=False)
            bar.update(done - bar.n)

        yield show

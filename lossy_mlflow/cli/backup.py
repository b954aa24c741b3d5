"""`lossy backup`, `lossy restore`, `lossy upgrade`: a server's stores, copied, put back, brought to a newer MLflow."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lossy_mlflow.cli.options import named_stores, stores_options
from lossy_mlflow.cli.output import bytes_bar, json_option, print_json, print_table, size
from lossy_mlflow.errors import UsageError

if TYPE_CHECKING:
    from lossy_mlflow.service.backup import BackedUp
    from lossy_mlflow.service.restore import Restored

_NAMED = 10


@click.command(epilog="Example: lossy backup /mnt/backup/mlflow")
@click.argument("target")
@stores_options
@click.option("--dry-run", is_flag=True, help="Only say what would be copied; nothing is read or written.")
@json_option
def backup(
    target: str,
    backend_store_uri: str | None,
    artifacts_destination: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Copy a server's databases, and every file, to TARGET, a folder or s3://BUCKET/PATH, while it goes on working.

    What an earlier backup in TARGET has isn't copied again; one that was cut short is finished by the next. Exit code 1 if the
    backup lacks something: a file that can't be read, or an address on another store, is named.
    """
    from lossy_mlflow.service.backup import back_up

    stores = named_stores(backend_store_uri, artifacts_destination)
    with bytes_bar() as progress:
        done = back_up(stores, _place(target), dry_run=dry_run, progress=progress)
    if as_json:
        print_json(done)
    else:
        _print_backup(done)
    _name(done.unreadable, "could not be read, and is not in this backup")
    _name(done.elsewhere, "is an address on another store, of which this backup has no files")
    if not done.is_whole:
        sys.exit(1)


def _print_backup(done: BackedUp) -> None:
    new = f"{_files(done.new_files)} of {done.files}, {size(done.new_bytes)} of {size(done.bytes)}"
    if not done.name:
        click.echo(f"{done.target} lacks at most {new}. Nothing was written.")
        return
    dumps = ", ".join(f"{holds} {size(n_bytes)}" for holds, n_bytes in sorted(done.dumps.items()))
    click.echo(
        f"{done.target} has the backup {done.name}: {size(done.bytes)} in {_files(done.files)}; databases: {dumps}."
    )
    click.echo(f"New: {new}, in {done.seconds:.0f} s.")
    if done.vanished:
        click.echo(
            f"{_files(done.vanished)} vanished meanwhile: they were deleted while they were being copied."
        )
    for name in done.finished:
        click.echo(f"The backup {name}, which was cut short, was taken up, and is removed.")


@click.command(
    epilog="Example: lossy restore /mnt/backup/mlflow --backend-store-uri sqlite:////srv/mlflow/mlflow.db"
)
@click.argument("source")
@stores_options
@click.option("--at", metavar="TIME", help="The backup of this name; else the newest whole one.")
@click.option("--list", "only_list", is_flag=True, help="Which backups SOURCE has, and no more.")
@click.option("--dry-run", is_flag=True, help="Read and verify all of the backup; nothing is written.")
@click.option("--skip-damaged", is_flag=True, help="Leave out files whose content is damaged or missing.")
@json_option
def restore(
    source: str,
    backend_store_uri: str | None,
    artifacts_destination: str | None,
    at: str | None,
    only_list: bool,
    dry_run: bool,
    skip_damaged: bool,
    as_json: bool,
) -> None:
    """Put a backup from SOURCE into an empty database and an empty place of artifacts, each file verified.

    A restore that was cut short is finished by the same command. Exit code 4 if the stores aren't empty, 1 if the backup is
    damaged, or if something of it could not be put where it was.
    """
    from lossy_mlflow.service.restore import list_backups
    from lossy_mlflow.service.restore import restore as put_back

    if only_list:
        found = list_backups(_place(source))
        if as_json:
            print_json(found)
            return
        rows = [
            [
                item.name,
                item.state,
                str(item.files),
                size(item.bytes),
                size(item.new_bytes),
                f"{item.database} {item.artifacts}",
            ]
            for item in found
        ]
        print_table(["backup", "state", "files", "size", "new", "of"], rows)
        return
    stores = named_stores(backend_store_uri, artifacts_destination)
    with bytes_bar() as progress:
        done = put_back(
            stores, _place(source), at=at, dry_run=dry_run, skip_damaged=skip_damaged, progress=progress
        )
    if as_json:
        print_json(done)
    else:
        _print_restore(done, dry_run=dry_run)
    _name(done.damaged, "is damaged in the backup, and is left out")
    _name(done.kept, "was there with another content, and stays as it was")
    _name(done.elsewhere, "is an address on another store, of which the backup has no files")
    if done.fixed:
        click.echo(
            f"{done.fixed} runs and models name their files by the old place of artifacts: they are found there only.",
            err=True,
        )
    if not done.is_whole:
        sys.exit(1)


def _print_restore(done: Restored, *, dry_run: bool) -> None:
    what = f"{_files(done.files)}, {size(done.bytes)}; databases: {', '.join(done.databases)}"
    if dry_run:
        click.echo(f"The backup {done.name} is good: {what}. Nothing was written.")
        return
    click.echo(f"The backup {done.name} is restored into {done.target}: {what}, in {done.seconds:.0f} s.")
    if done.there:
        click.echo(f"{_files(done.there)} were there already.")
    click.echo(f"It was made with MLflow {done.mlflow}.")


@click.command(epilog="Example: lossy upgrade --to-backup /mnt/backup/mlflow")
@stores_options
@click.option(
    "--to-backup", metavar="TARGET", help="Back up all of the server there first, as lossy backup does."
)
@click.option("--yes", is_flag=True, help="Don't ask.")
@json_option
def upgrade(
    backend_store_uri: str | None,
    artifacts_destination: str | None,
    to_backup: str | None,
    yes: bool,
    as_json: bool,
) -> None:
    """Bring the databases to the schema of the MLflow that is installed here; if that fails, they are as they were.

    Stop the server first. Databases that need nothing are not touched.
    """
    from lossy_mlflow.service.upgrade import behind
    from lossy_mlflow.service.upgrade import upgrade as bring

    stores = named_stores(backend_store_uri, artifacts_destination)
    for step in (steps := behind(stores)):
        click.echo(
            f"The {step.holds} database is at the revision {step.revision}; MLflow here has {step.head}.",
            err=True,
        )
    if steps and not yes and not click.confirm("Upgrade? The server must be stopped", err=True):
        raise UsageError("Nothing was upgraded.", "lossy upgrade --yes")
    done = bring(stores, lambda line: click.echo(line, err=True), _place(to_backup) if to_backup else None)
    if as_json:
        print_json(done)
    elif done.upgraded:
        click.echo(
            f"Upgraded for MLflow {done.mlflow}: {', '.join(done.upgraded)}. As before they lie in {done.kept_at}."
        )
    else:
        click.echo(f"The databases are at the schema of MLflow {done.mlflow} already: nothing was changed.")


def _place(place: str) -> str:
    """A folder by its absolute path, or s3://BUCKET/PATH."""
    if place.startswith("s3://"):
        return place.rstrip("/")
    if "://" in place:
        raise UsageError(f"{place!r} is no place for backups.", "Name a folder, or one like s3://BUCKET/PATH")
    return str(Path(place).expanduser().absolute())


def _name(names: list[str], what: str) -> None:
    for name in names[:_NAMED]:
        click.echo(f"{name} {what}.", err=True)
    if len(names) > _NAMED:
        click.echo(f"... and {len(names) - _NAMED} more; all of them: --json", err=True)


def _files(number: int) -> str:
    return "1 file" if number == 1 else f"{number} files"

"""`lossy outbox`: what waits to be delivered to a tracking server."""

from __future__ import annotations

import os
from pathlib import Path

import click

from lossy_mlflow.cli.output import age, json_option, print_json, print_table
from lossy_mlflow.errors import UsageError


@click.group()
def outbox() -> None:
    """What was logged with MLFLOW_TRACKING_URI=outbox+http://... and waits for its server.

    \b
    lossy outbox status                              what waits, since when, and why
    lossy outbox send COPIED_FOLDER --to http://...  deliver a folder that was copied here
    lossy outbox discard RUN                         throw away what a run has waiting
    """


@outbox.command(epilog="Example: lossy outbox status --json | jq '.[] | select(.waiting > 0)'")
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False), required=False)
@json_option
def status(folder: Path | None, as_json: bool) -> None:
    """The runs in the outbox (or in FOLDER): how much of each waits, how old it is, and the last error."""
    from lossy_mlflow.outbox.address import outbox_root
    from lossy_mlflow.outbox.books import list_outbox

    runs = list_outbox(folder)
    if as_json:
        print_json(runs)
        return
    if not runs:
        click.echo(f"The outbox {folder or outbox_root()} is empty.")
        return
    rows = [
        [
            run.run_name or run.key,
            str(run.waiting),
            "" if run.oldest_s is None else age(run.oldest_s),
            str(run.refused),
            run.server,
            run.error or ("being written" if run.being_written else ""),
        ]
        for run in runs
    ]
    print_table(["run", "waiting", "oldest", "refused", "server", "why"], rows)
    if any(run.refused for run in runs):
        click.echo("What was refused stands, with the server's words, in refused.jsonl of the run's folder.")
        for run in runs:
            if run.refused:
                click.echo(f"  {run.folder}/refused.jsonl")


@outbox.command(epilog="Example: lossy outbox send /media/stick/outbox --to https://mlflow.example.org")
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option(
    "--to", metavar="URI", help="The server; else the one it was logged for, if MLFLOW_TRACKING_URI names it."
)
@json_option
def send(folder: Path, to: str | None, as_json: bool) -> None:
    """Deliver FOLDER: an outbox, or a part of one, wherever it was copied from. May be repeated; deletes nothing."""
    from lossy_mlflow.outbox.books import send as deliver

    sent = deliver(
        folder,
        to,
        os.environ.get("MLFLOW_TRACKING_URI", ""),
        progress=None if as_json else lambda line: click.echo(line, err=True),
    )
    if as_json:
        print_json(sent)
        return
    click.echo(
        f"{sent.server} has all of {sent.runs} runs{f'; {sent.refused} values were refused' if sent.refused else ''}."
    )


@outbox.command(epilog="Example: lossy outbox discard vae10_digits")
@click.argument("run")
def discard(run: str) -> None:
    """Delete what RUN (a name, a key or an id, see `status`) has in the outbox. Asks for its name first."""
    from lossy_mlflow.outbox.books import discard as delete
    from lossy_mlflow.outbox.books import find_outbox_run

    found = find_outbox_run(run)
    name = found.run_name or found.key
    click.echo(
        f"{found.waiting} records of {name} that {found.server} doesn't have are lost by this.", err=True
    )
    if click.prompt(f"Type {name} to go on", err=True) != name:
        raise UsageError(f"That isn't the run's name, {name}: nothing was deleted.")
    delete(found)
    click.echo(f"{found.folder} is deleted.")

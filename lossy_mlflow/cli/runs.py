"""`lossy runs`: what runs, what ran, and what only says so."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lossy_mlflow.cli.output import age, json_option, print_json, print_table

if TYPE_CHECKING:
    from lossy_mlflow.tracking.reconcile import DeadRun
    from lossy_mlflow.tracking.run_list import ListedRun

_NONE_YET = (
    "No run yet. Make one: lossy train vae10_digits    or name another server: export MLFLOW_TRACKING_URI=..."
)


@click.group()
def runs() -> None:
    """Runs and their states: RUNNING, FINISHED, FAILED, KILLED."""


@runs.command("list", epilog="Example: lossy runs list --all")
@click.option("--all", "everything", is_flag=True, help="Not only the newest 20 and those that run.")
@json_option
def list_command(everything: bool, as_json: bool) -> None:
    """The newest runs of all MLflow experiments, and every one that runs.

    A run of this machine whose process has died is closed as FAILED before. 'RUNNING, silent' is one whose heartbeat is too old:
    its machine is gone, most likely, and `lossy runs reconcile` closes it.
    """
    from lossy_mlflow.tracking.run_list import list_runs

    found = list_runs(everything)
    for dead in found.closed:
        click.echo(_line(dead), err=True)
    if as_json:
        print_json(found.runs)
    elif not found.runs:
        click.echo(_NONE_YET)
    else:
        head = ["label", "kind", "state", "age", "heartbeat", "epoch", "val_loss", "host", "run"]
        print_table(head, [_row(run) for run in found.runs])
        if any(run.note == "silent" for run in found.runs):
            click.echo("Close those that are silent: lossy runs reconcile", err=True)


def _row(run: ListedRun) -> list[str]:
    runs_still = run.state == "RUNNING" and run.heartbeat_age_s is not None
    return [
        run.label,
        run.kind,
        f"{run.state}, {run.note}" if run.note else run.state,
        age(run.age_s),
        age(run.heartbeat_age_s) if runs_still and run.heartbeat_age_s is not None else "",
        "" if run.epoch is None else str(run.epoch),
        "" if run.val_loss is None else f"{run.val_loss:.4f}",
        run.host,
        run.run_id,
    ]


@runs.command("reconcile", epilog="Example: lossy runs reconcile --dry-run")
@click.option(
    "--older-than",
    type=float,
    metavar="SECONDS",
    help="No sign of life for so long: dead. Default: 150, and 3600 for what `mlflow run` has made and no training has begun.",
)
@click.option("--dry-run", is_flag=True, help="Say which ones, and change nothing.")
@json_option
def reconcile_command(older_than: float | None, dry_run: bool, as_json: bool) -> None:
    """End as FAILED the runs that say RUNNING although nobody works on them.

    Those are runs whose heartbeat is too old, since their machine is gone; runs of this machine whose process has died; and what
    `mlflow run` made before it failed to build an environment. The tag state_reason of each says why. A young heartbeat is never
    touched, nor is a run that a process of this machine holds. A second call finds nothing more.
    """
    from lossy_mlflow.tracking.reconcile import reconcile

    dead = reconcile(older_than=older_than, dry_run=dry_run)
    if as_json:
        print_json(dead)
        return
    for run in dead:
        click.echo(_line(run))
    if not dead:
        click.echo("Every run that says RUNNING is alive, as far as can be told. See them: lossy runs list")


def _line(run: DeadRun) -> str:
    done = "closed" if run.closed else f"not closed ({run.refused})" if run.refused else "would be closed"
    return f"{run.label} {run.run_id} {done}: {run.reason}"

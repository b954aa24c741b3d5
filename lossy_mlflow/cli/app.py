"""`lossy` itself: its commands, and how whatever ends one becomes a message and an exit code."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

import click

from lossy_mlflow.cli.backup import backup, restore, upgrade
from lossy_mlflow.cli.check import check
from lossy_mlflow.cli.checkpoints import checkpoints, resolve
from lossy_mlflow.cli.data import data
from lossy_mlflow.cli.doctor import doctor
from lossy_mlflow.cli.evaluate import evaluate
from lossy_mlflow.cli.files import download, export, verify
from lossy_mlflow.cli.hparams import hparams
from lossy_mlflow.cli.imports import import_
from lossy_mlflow.cli.models import models
from lossy_mlflow.cli.outbox import outbox
from lossy_mlflow.cli.output import explained_stdout
from lossy_mlflow.cli.plot import compare, plot
from lossy_mlflow.cli.registry import history, lineage, promote, prune
from lossy_mlflow.cli.runs import runs
from lossy_mlflow.cli.serve import serve
from lossy_mlflow.cli.train import train
from lossy_mlflow.cli.users import users
from lossy_mlflow.errors import LossyError

_INTERRUPTED = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("-v", "--verbose", is_flag=True, help="Say on stderr what is being done.")
@click.version_option(package_name="lossy-mlflow")
def app(verbose: bool) -> None:
    """Train decoder-based generative models by name, and keep their books in MLflow.

    \b
    lossy train vae10_digits          train, or go on where it stopped
    lossy evaluate vae10_digits       its rate-distortion curve
    lossy runs list                   what runs, what ran, how it ended
    lossy hparams list                the experiments that have a name
    lossy checkpoints vae10_digits    the decoders that it made
    lossy promote vae10_digits        its best one is the champion

    Runs go to the server that MLFLOW_TRACKING_URI names, else to ./mlflow.db. Exit codes: 2 usage, 3 not found,
    4 conflict, 5 unreachable, 130, 138 and 143 stopped by Ctrl-C, SIGUSR1 and SIGTERM, 1 anything else.
    """
    if verbose:
        from lossy_mlflow.tracking.provenance import RedactingFormatter

        handler = logging.StreamHandler()
        handler.setFormatter(RedactingFormatter("%(asctime)s %(message)s"))
        logging.getLogger("lossy_mlflow").addHandler(handler)
        logging.getLogger("lossy_mlflow").setLevel(logging.INFO)
    _send_what_waits()


def _send_what_waits() -> None:
    """A sender goes on with what a program of this machine has left in the outbox, if its own was killed."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if uri.startswith(("outbox+http", "http")):
        from lossy_mlflow.outbox.start import take_up

        # What is in the way of this is not in the way of the command.
        with contextlib.suppress(OSError, ValueError, LossyError):
            take_up(uri)


for command in (
    *(train, evaluate, plot, compare, runs, hparams, models, data, outbox),
    *(resolve, checkpoints, promote, history, lineage, prune),
    *(import_, download, verify, export),
    doctor,
    *(serve, users),
    *(backup, restore, upgrade),
    check,
):
    app.add_command(command)


def _fail(error: LossyError) -> NoReturn:
    click.echo(f"lossy: {error.what}", err=True)
    if error.hint:
        click.echo(f"  {error.hint}", err=True)
    if error.__cause__:
        # Shown by -v alone.
        logging.getLogger("lossy_mlflow").info("what led to it:", exc_info=error.__cause__)
    sys.exit(error.exit_code)


@contextmanager
def exit_codes() -> Iterator[None]:
    """What ends the block becomes a line that says what went wrong, one with the way on, and the exit code of its kind."""
    try:
        yield
    except LossyError as error:
        _fail(error)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("lossy: interrupted", err=True)
        sys.exit(_INTERRUPTED)


def run(arguments: Sequence[str] | None = None) -> None:
    """Run `lossy` with `arguments` (else the process's). What goes wrong is raised."""
    # Imports make objects by the hundred thousand that all stay: searching them for garbage would be a tenth of the start.
    gc.set_threshold(100_000, 10, 10)
    # MLflow greets, counts and reports home unless it is told not to; what the user has set stays.
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # A server that goes away in the middle of a command is asked again for 15 s, not for four minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    try:
        with explained_stdout():
            app.main(arguments, prog_name="lossy", standalone_mode=False)
    except click.Abort as error:
        # Click makes one of an interrupt, which says more.
        raise error.__cause__ or error from None


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `lossy` with `arguments` (else the process's), and exit."""
    with exit_codes():
        run(arguments)

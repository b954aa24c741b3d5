"""`lossy` itself: its commands, and how whatever ends one becomes a message and an exit code."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import sys
from typing import NoReturn

import click

from lossy_mlflow.cli.checkpoints import checkpoints, resolve
from lossy_mlflow.cli.data import data
from lossy_mlflow.cli.hparams import hparams
from lossy_mlflow.cli.models import models
from lossy_mlflow.cli.outbox import outbox
from lossy_mlflow.cli.train import train
from lossy_mlflow.errors import LossyError

_INTERRUPTED = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("-v", "--verbose", is_flag=True, help="Say on stderr what is being done.")
@click.version_option(package_name="lossy-mlflow")
def app(verbose: bool) -> None:
    """Train decoder-based generative models by name, and keep their books in MLflow.

    \b
    lossy train vae10_digits          train, or go on where it stopped
    lossy hparams list                the experiments that have a name
    lossy checkpoints vae10_digits    the decoders that it made

    Runs go to the server that MLFLOW_TRACKING_URI names, else to ./mlflow.db. Exit codes: 2 usage, 3 not found,
    4 conflict, 5 unreachable, 130 and 143 stopped by Ctrl-C and SIGTERM, 1 anything else.
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
        with contextlib.suppress(OSError, LossyError):
            take_up(uri)


for command in (train, hparams, models, resolve, checkpoints, data, outbox):
    app.add_command(command)


def fail(error: LossyError) -> NoReturn:
    """What went wrong in a line, the way on in the next, and the exit code of its kind."""
    click.echo(f"lossy: {error.what}", err=True)
    if error.hint:
        click.echo(f"  {error.hint}", err=True)
    sys.exit(error.exit_code)


def main(arguments: list[str] | None = None) -> None:
    """Run `lossy` with `arguments` (else the process's), and exit."""
    # Imports make objects by the hundred thousand that all stay: searching them for garbage would be a tenth of the start.
    gc.set_threshold(100_000, 10, 10)
    # MLflow greets, counts and reports home unless it is told not to; what the user has set stays.
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    try:
        app.main(arguments, prog_name="lossy", standalone_mode=False)
    except LossyError as error:
        fail(error)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("lossy: interrupted", err=True)
        sys.exit(_INTERRUPTED)

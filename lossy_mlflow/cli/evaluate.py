"""`lossy evaluate`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from lossy_mlflow.cli.completion import hparam_sets
from lossy_mlflow.cli.options import data_dir_option, device_option, set_option, user_code_option
from lossy_mlflow.cli.output import json_option, print_json, print_table
from lossy_mlflow.user_code import explained_where_theirs

if TYPE_CHECKING:
    from lossy_mlflow.experiments import EvaluateResult
    from lossy_mlflow.experiments.evaluation_progress import EvaluationProgress

_SHOWN_ROWS = 12


@click.command(epilog="Example: lossy evaluate vae10_digits@champion --set rd.n_chains=32")
@click.argument("name", metavar="REF|SET", shell_complete=hparam_sets)
@click.option(
    "--data",
    type=click.Choice(["test", "train", "simulate"]),
    help="On which images, in the place of rd.data. simulate: drawn from the decoder itself.",
)
@set_option
@click.option("--quick", is_flag=True, help="Few images, chains and steps: a usable curve within a minute.")
@click.option("--log-likelihood", is_flag=True, help="log p(x) besides, by AIS and, with an encoder, IWAE.")
@user_code_option
@device_option
@data_dir_option
@json_option
def evaluate(
    name: str,
    data: str | None,
    assignments: tuple[str, ...],
    quick: bool,
    log_likelihood: bool,
    user_code: str | None,
    device: str,
    data_dir: str | None,
    as_json: bool,
) -> None:
    """How well a decoder compresses: the rate-distortion curve of REF, or of an evaluation that has a name.

    REF is NAME, NAME@ALIAS or NAME/VERSION, evaluated by the `rd` settings of the set that it was trained from. What is finished
    is reported and left alone, what was stopped goes on. --json prints the curve.
    """
    from lossy_mlflow.experiments import evaluate as run
    from lossy_mlflow.hparams import read_assignments

    with _progress_bar() as progress, explained_where_theirs("The evaluation fails"):
        result = run(
            name,
            data=data,
            overrides=read_assignments(assignments),
            quick=quick,
            log_likelihood=log_likelihood,
            user_code=user_code,
            device=device,
            data_dir=data_dir,
            progress=progress,
            run_id=os.environ.pop("MLFLOW_RUN_ID", None),
        )
    if as_json:
        print_json(result.curve)
    else:
        _print(result)


@contextmanager
def _progress_bar() -> Iterator[Callable[[EvaluationProgress], None] | None]:
    """A bar over all work on a terminal's stderr; elsewhere none."""
    if not sys.stderr.isatty():
        yield None
        return
    from tqdm import tqdm

    shape = "{desc} {percentage:3.0f}%|{bar}| {elapsed}, {remaining} left"
    with tqdm(total=100.0, dynamic_ncols=True, bar_format=shape, leave=False) as bar:

        def show(progress: EvaluationProgress) -> None:
            bar.set_description_str(f"{progress.label}: {progress.phase}", refresh=False)
            bar.update(max(0.0, 100 * progress.done - bar.n))

        yield show


_STARTED = {
    "new": "evaluated",
    "resumed": "gone on with and evaluated",
    "finished": "is evaluated already; nothing was done",
}


def _print(result: EvaluateResult) -> None:
    from lossy_mlflow.experiments.curve_record import UNITS, measured_by

    curve = result.curve
    units = UNITS[curve.target]
    by = measured_by(curve.estimator, curve.n_chains)
    click.echo(
        f"{result.label} {_STARTED[result.started]}: {curve.reference}, {curve.n_data} images, {by}\n"
        f"  run       {result.run_id} in {result.experiment!r} at {result.tracking_uri}\n"
    )
    last = len(curve.beta) - 1
    shown = sorted({round(place * last / (_SHOWN_ROWS - 1)) for place in range(_SHOWN_ROWS)})
    rows = [
        [
            f"{curve.beta[step]:.4g}",
            _number(curve.rate[step], curve.rate_se[step], 2),
            _number(curve.distortion[step], curve.distortion_se[step], 3),
            _number(curve.ess[step], None, 1),
        ]
        for step in shown
    ]
    print_table(["beta", "rate (nats)", f"distortion ({units})", "ess"], rows)
    click.echo()
    for gap in curve.gap:
        click.echo(f"gap at beta {gap.beta:.4g}: {_number(gap.gap, gap.se, 3)} nats")
    for name, value in curve.log_likelihood.items():
        click.echo(f"{name}: {_number(value, None, 3)}")
    if not result.delivered:
        click.echo("The run waits on this machine for the server to answer: lossy outbox status")
    for doubt in curve.doubts:
        click.echo(f"Careful: {doubt}")
    click.echo(f"\nDraw it    lossy plot {result.label}{' --quick' if curve.quick else ''}")


def _number(value: float | None, error: float | None, digits: int) -> str:
    if value is None:
        return "?"
    return f"{value:.{digits}f}" + ("" if error is None else f" +- {error:.{digits}f}")

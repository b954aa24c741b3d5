"""`lossy plot` and `lossy compare`: curves of finished evaluations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lossy_mlflow.cli.completion import evaluated
from lossy_mlflow.cli.output import json_option, one_line, print_json, print_table

if TYPE_CHECKING:
    from lossy_mlflow.experiments.compare import Compared, Comparison

quick_option = click.option(
    "--quick", is_flag=True, help="Evaluations made with --quick count too, where they are the latest."
)


@click.command(epilog="Example: lossy plot vae10_digits linear_vae10_digits -o curves.pdf --log")
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=evaluated)
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    help="A file.pdf, file.png or file.svg [curves.png]; it is written over.",
)
@click.option("--log", "log", is_flag=True, help="The rate on a logarithmic axis alone.")
@click.option("--max-distortion", type=float, metavar="D", help="Cut the axis of distortions there.")
@quick_option
@json_option
def plot(
    names: tuple[str, ...],
    output: str | None,
    log: bool,
    max_distortion: float | None,
    quick: bool,
    as_json: bool,
) -> None:
    """Lay the rate-distortion curves of several experiments side by side: the latest finished evaluation of each NAME.

    Bands are two standard errors wide to either side; a gap hangs from its point of the curve: on average, the true curve lies no
    further below. A linear decoder's closed form is dashed.
    """
    from lossy_mlflow.experiments.plot import plot as draw

    done = draw(
        names,
        Path(output).expanduser() if output else None,
        log=log,
        max_distortion=max_distortion,
        quick=quick,
    )
    if as_json:
        print_json(done)
        return
    click.echo(f"{done.file} has {len(done.curves)} curve{'s' if len(done.curves) > 1 else ''}:")
    rows = [[curve.label, curve.reference, str(curve.n_data), curve.run_id] for curve in done.curves]
    print_table(["name", "version", "images", "run"], rows)
    if not done.same_images:
        click.echo("Careful: they are not all of the same images.", err=True)
    for curve in done.curves:
        for doubt in curve.doubts:
            click.echo(f"Careful: {curve.label}: {one_line(doubt)}", err=True)


@click.command(epilog="Example: lossy compare vae10_digits vae100_digits --at 10 --at 20")
@click.argument("a", shell_complete=evaluated)
@click.argument("b", shell_complete=evaluated)
@click.option("--at", multiple=True, type=float, metavar="D", help="At this distortion. May be repeated.")
@quick_option
@json_option
def compare(a: str, b: str, at: tuple[float, ...], quick: bool, as_json: bool) -> None:
    """How many nats more B needs than A at equal distortion, with the standard error.

    Of the latest finished evaluation of each. Where both are of the same images, the error is that of each image's difference,
    which is much smaller than those of the two rates. A distortion that one of them doesn't reach is refused.

    Without --at: at five distortions, a constant factor apart, between those that both have measured where neither is in doubt.
    """
    from lossy_mlflow.experiments.compare import compare as run

    done = run(a, b, at, quick=quick)
    if as_json:
        print_json(done)
    else:
        _print(done)


def _print(done: Comparison) -> None:
    a, b = done.a, done.b
    rows = [
        [
            f"{point.distortion:.4g}",
            f"{point.rate_a:.3f} +- {point.rate_a_se:.3f}",
            f"{point.rate_b:.3f} +- {point.rate_b_se:.3f}",
            f"{point.difference:+.3f} +- {point.difference_se:.3f}",
        ]
        for point in done.points
    ]
    print_table([f"distortion ({done.target})", a.label, b.label, f"{b.label} - {a.label}"], rows)
    images = f"the same {a.n_data} images, paired" if done.paired else "other images, as independent"
    click.echo(f"\nRates in nats; {images}: {a.reference} in {a.run_id}, {b.reference} in {b.run_id}")
    for side in (a, b):
        _print_doubts(side)


def _print_doubts(side: Compared) -> None:
    for gap in side.gap:
        error = "" if gap.se is None else f" +- {gap.se:.3f}"
        click.echo(f"{side.label}: gap at beta {gap.beta:.4g}: {gap.gap:.3f}{error} nats")
    for doubt in side.doubts:
        click.echo(f"Careful: {side.label}: {one_line(doubt)}", err=True)

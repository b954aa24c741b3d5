"""`lossy plot` and `lossy compare`: curves of finished evaluations."""

from __future__ import annotations

import click

from lossy_mlflow.cli.completion import hparam_sets
from lossy_mlflow.cli.output import json_option, print_json, print_table

_quick_option = click.option("--quick", is_flag=True, help="Evaluations made with --quick count as well.")


@click.command(
    epilog="Example: lossy plot vae2_mnist vae10_mnist vae100_mnist -o curves.pdf --max-distortion 40"
)
@click.argument("names", metavar="NAME...", nargs=-1, required=True, shell_complete=hparam_sets)
@click.option(
    "-o", "output", default="curves.png", show_default=True, metavar="FILE", help="A .png, .pdf or .svg."
)
@click.option("--log", "log_rate", is_flag=True, help="The rate on a logarithmic axis alone.")
@click.option("--max-distortion", type=click.FloatRange(min=0, min_open=True), metavar="D", help="Cut there.")
@_quick_option
@json_option
def plot(
    names: tuple[str, ...],
    output: str,
    log_rate: bool,
    max_distortion: float | None,
    quick: bool,
    as_json: bool,
) -> None:
    """Lay the rate-distortion curves of labels side by side: of each the latest finished evaluation.

    A band is two standard errors wide to either side; a bar below a star reaches as far down as the BDMC gap there.
    """
    from lossy_mlflow.experiments import plot as draw

    drawn = draw(names, output, log_rate=log_rate, max_distortion=max_distortion, quick=quick)
    if as_json:
        print_json(drawn)
        return
    for curve in drawn.curves:
        click.echo(f"{curve.label}    run {curve.run_id}")
        for doubt in curve.doubts:
            click.echo(f"  Careful: {doubt}")
    click.echo(f"Written to {drawn.file}")


@click.command(epilog="Example: lossy compare vae10_mnist vae100_mnist --at 10 --at 20")
@click.argument("a", shell_complete=hparam_sets)
@click.argument("b", shell_complete=hparam_sets)
@click.option("--at", type=float, multiple=True, metavar="D", help="A distortion. May be repeated.")
@_quick_option
@json_option
def compare(a: str, b: str, at: tuple[float, ...], quick: bool, as_json: bool) -> None:
    """The rate of B minus that of A at equal distortion, with its standard error, from their latest evaluations.

    Where both are of the same images, these are paired.
    """
    from lossy_mlflow.experiments import compare as hold

    found = hold(a, b, at, quick=quick)
    if as_json:
        print_json(found)
        return
    rows = [
        [
            f"{item.distortion:.4g}",
            f"{item.rate_a:.2f}",
            f"{item.rate_b:.2f}",
            f"{item.difference:+.2f}" + ("" if item.se is None else f" +- {item.se:.2f}"),
        ]
        for item in found.at
    ]
    print_table(["distortion", found.a, found.b, "difference (nats)"], rows)
    click.echo(f"\n{'The same images, paired.' if found.paired else 'Other images: the errors are added.'}")

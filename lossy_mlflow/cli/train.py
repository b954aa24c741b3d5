"""`lossy train`."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lossy_mlflow.cli.completion import hparam_sets
from lossy_mlflow.cli.options import data_dir_option, user_code_option
from lossy_mlflow.cli.output import json_option, print_json
from lossy_mlflow.errors import LossyError

if TYPE_CHECKING:
    from lossy_mlflow.experiments import EpochDone, TrainResult


@click.command(
    epilog="Example: lossy train vae10_digits --e-name wide --set 'model_train.hidden_sizes=[512, 512]'"
)
@click.argument("hparam_set", shell_complete=hparam_sets)
@click.option("--e-name", default="", metavar="E", help="Another copy: the label becomes HPARAM_SET_E.")
@click.option("--overwrite", is_flag=True, help="Start anew, although the label has a run.")
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a field that the set defines. May be repeated.",
)
@user_code_option
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="auto: a GPU, if any.",
)
@data_dir_option
@json_option
def train(
    hparam_set: str,
    e_name: str,
    overwrite: bool,
    assignments: tuple[str, ...],
    user_code: str | None,
    device: str,
    data_dir: str | None,
    as_json: bool,
) -> None:
    """Train the experiment HPARAM_SET: its run, its pictures, its decoder in the registry.

    Works as make does: what is finished is reported and left alone, what was stopped goes on where it stopped.
    """
    from lossy_mlflow.experiments import train as run
    from lossy_mlflow.hparams import read_assignments

    with _progress_bar() as progress, _no_quiet_exit():
        result = run(
            hparam_set,
            e_name=e_name,
            overrides=read_assignments(assignments),
            overwrite=overwrite,
            user_code=user_code,
            device=device,
            data_dir=data_dir,
            progress=progress,
            # The run that `mlflow run` has made: used once, and not by what the user's model may start.
            run_id=os.environ.pop("MLFLOW_RUN_ID", None),
        )
    if as_json:
        print_json(result)
    else:
        _print(result, hparam_set, f" --user-code {shlex.quote(user_code)}" if user_code else "")


@contextmanager
def _no_quiet_exit() -> Iterator[None]:
    """What the user's code ends by sys.exit(0) isn't done: whoever started it, as `mlflow run` does, would take it for that."""
    try:
        yield
    except SystemExit as error:
        if error.code:
            raise
        raise LossyError(
            "The training was ended by sys.exit(0) before it was done; its run is FAILED.",
            "Take that call out of the model's code, or raise what is wrong there.",
        ) from error


@contextmanager
def _progress_bar() -> Iterator[Callable[[EpochDone], None] | None]:
    """A bar over the epochs on a terminal's stderr; elsewhere none."""
    if not sys.stderr.isatty():
        yield None
        return
    from tqdm import tqdm

    bar = tqdm(unit="epoch", dynamic_ncols=True, disable=None)

    def show(done: EpochDone) -> None:
        if bar.total is None:
            # A resumed training starts in the middle of its bar; its first report tells where.
            bar.reset(done.epochs)
            bar.initial = bar.n = done.epoch - 1
            bar.set_description(done.label)
        bar.set_postfix_str(f"train_loss {done.train_loss:.3f}, val_loss {done.val_loss:.3f}", refresh=False)
        bar.update()

    try:
        yield show
    finally:
        bar.leave = bar.total is not None
        bar.close()


_STARTED = {
    "new": "trained",
    "resumed": "resumed and trained",
    "finished": "is finished already; nothing was trained",
}


def _print(result: TrainResult, hparam_set: str, with_code: str) -> None:
    aliases: dict[int, str] = {}
    for version, alias in ((result.best_version, "best"), (result.last_version, "last")):
        if version is not None:
            aliases[version] = f"{aliases.get(version, '')} @{alias}"
    versions = [f"{version}{names}" for version, names in aliases.items()]
    click.echo(
        f"{result.label} {_STARTED[result.started]}\n"
        f"  run       {result.run_id} in {result.experiment!r} at {result.tracking_uri}\n"
        f"  val_loss  {result.val_loss:.4f} nats per image after epoch {result.epoch}; "
        f"best {result.best_val_loss:.4f} after epoch {result.best_epoch}\n"
        f"  versions  {', '.join(versions) or _no_versions(result)} of the registered model {result.label}"
    )
    if result.started_from:
        click.echo(f"  started   from {result.started_from}")
    click.echo()
    tools = _folder_of_tools()
    reference = json.dumps(
        f"{result.label}@best", ensure_ascii=False
    )  # a Python string as well, whatever quotes it holds
    load = f"import lossy_mlflow; print(lossy_mlflow.load_decoder({reference}))"
    click.echo(f"See it in the UI    {_ui_command(result, tools)}")
    click.echo(f"Load it in Python   {tools}python -c {shlex.quote(load)}")
    click.echo(
        f"Train another       {tools}lossy train {hparam_set} --e-name try2 --set learning_rate=5e-4{with_code}"
    )


def _no_versions(result: TrainResult) -> str:
    if result.delivered:
        return "none: they were deleted"
    return "wait on this machine for the server (lossy outbox status)"


def _folder_of_tools() -> str:
    """'.venv/bin/' if this command was called by such a path, so that what is printed can be pasted."""
    called = Path(sys.argv[0])
    return f"{shlex.quote(str(called.parent))}/" if called.name == "lossy" and "/" in sys.argv[0] else ""


def _ui_command(result: TrainResult, tools: str) -> str:
    if result.tracking_uri.startswith("http"):
        return result.tracking_uri
    default = result.tracking_uri == f"sqlite:///{Path.cwd()}/mlflow.db"
    return f"{tools}mlflow ui" + (
        "" if default else f" --backend-store-uri {shlex.quote(result.tracking_uri)}"
    )

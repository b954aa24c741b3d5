"""`lossy train`."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lossy_mlflow.cli.completion import trained_sets
from lossy_mlflow.cli.options import data_dir_option, device_option, set_option, user_code_option
from lossy_mlflow.cli.output import json_option, print_json
from lossy_mlflow.errors import LossyError
from lossy_mlflow.user_code import explained_where_theirs

if TYPE_CHECKING:
    from lossy_mlflow.experiments import EpochDone, TrainResult


@click.command(
    epilog="Example: lossy train vae10_digits --e-name wide --set 'model_train.hidden_sizes=[512, 512]'"
)
@click.argument("hparam_set", shell_complete=trained_sets)
@click.option("--e-name", default="", metavar="E", help="Another copy: the label becomes HPARAM_SET_E.")
@click.option("--overwrite", is_flag=True, help="Start anew, although the label has a run.")
@set_option
@user_code_option
@device_option
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

    with _progress_bar() as progress, _no_quiet_exit(), explained_where_theirs("The training fails"):
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
        options = [f"--e-name={e_name}"] if e_name else []
        options += [f"--set={assignment}" for assignment in assignments]
        options += [f"--data-dir={data_dir}"] if data_dir else []
        options += [f"--device={device}"] if device != "auto" else []
        _print(result, hparam_set, options, user_code)


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


def _print(result: TrainResult, hparam_set: str, options: Sequence[str], user_code: str | None) -> None:
    """What came of it, and commands to go on with, each of which works as it stands: `options` are those that were given."""
    click.echo(
        f"{result.label} {_STARTED[result.started]}\n"
        f"  run       {result.run_id} in {result.experiment!r} at {result.tracking_uri}\n"
        f"  val_loss  {result.val_loss:.4f} nats per image after epoch {result.epoch}; "
        f"best {result.best_val_loss:.4f} after epoch {result.best_epoch}\n"
        f"  versions  {_versions(result)}"
    )
    if result.started_from:
        click.echo(f"  started   from {result.started_from}")
    click.echo()
    tools = _folder_of_tools()
    click.echo(f"See it in the UI    {_ui_command(result, tools)}")
    train = f"{tools}lossy train {hparam_set}"
    with_code = f" --user-code {shlex.quote(user_code)}" if user_code else ""
    version = result.last_version if result.best_version is None else result.best_version
    if not result.delivered:
        click.echo(f"See what waits      {tools}lossy outbox status")
    elif version is None:
        click.echo(f"Make versions anew  {train} {shlex.join([*options, '--overwrite'])}{with_code}")
    else:
        # As JSON it is a Python string, whatever quotes it holds.
        reference = json.dumps(f"{result.label}/{version}", ensure_ascii=False)
        load = f"import lossy_mlflow; print(lossy_mlflow.load_decoder({reference}))"
        finds_code = f"LOSSY_USER_CODE={shlex.quote(user_code)} " if user_code else ""
        click.echo(f"Load it in Python   {finds_code}{tools}python -c {shlex.quote(load)}")
    click.echo(f"Train another       {train} --e-name try2 --set learning_rate=5e-4{with_code}")


def _versions(result: TrainResult) -> str:
    if not result.delivered:
        return f"of {result.label} wait on this machine, with the run, for the server to answer"
    names: dict[int, list[str]] = {}
    for version, name in ((result.best_version, "best"), (result.last_version, "last")):
        if version is not None:
            names.setdefault(version, []).append(name)
    if not names:
        gone = "they were deleted or renamed, or their tag epoch was changed"
        return f"none is found of the registered model {result.label}: {gone} (lossy checkpoints)"
    shown = [f"{version} ({' and '.join(words)})" for version, words in names.items()]
    return f"{', '.join(shown)} of the registered model {result.label}"


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

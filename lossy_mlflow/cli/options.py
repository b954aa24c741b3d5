"""Options that several commands share."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from lossy_mlflow.service.stores import Stores

_SECONDS = {"d": 86400, "h": 3600, "m": 60, "s": 1}

user_code_option = click.option(
    "--user-code", metavar="FILE", help="A Python file that registers models and sets [LOSSY_USER_CODE]."
)
set_option = click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a field that the set defines. May be repeated.",
)
device_option = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="auto: a GPU, if any.",
)
data_dir_option = click.option("--data-dir", metavar="D", help="Where data sets lie [LOSSY_DATA_DIR].")


def stores_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The stores of a server, as `mlflow server` names them."""
    command = click.option(
        "--artifacts-destination",
        metavar="PLACE",
        help="A folder or s3://BUCKET/PATH for artifacts [MLFLOW_ARTIFACTS_DESTINATION; ./mlartifacts].",
    )(command)
    return click.option(
        "--backend-store-uri",
        metavar="URI",
        help="The database, PostgreSQL's or SQLite's [MLFLOW_BACKEND_STORE_URI; ./mlflow.db].",
    )(command)


def duration(_context: click.Context, _parameter: click.Parameter, text: str) -> float:
    """The callback of an option that takes a length of time: in seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([dhms])", text)
    if match is None:
        raise click.BadParameter(f"{text!r} is no length of time; write 30d, 12h, 45m or 90s.")
    return float(match[1]) * _SECONDS[match[2]]


def named_stores(backend_store_uri: str | None, artifacts_destination: str | None) -> Stores:
    """The stores that these options name, or the environment. Secrets that it names files of are in it afterwards."""
    from lossy_mlflow.service.settings import secrets_in_files
    from lossy_mlflow.service.stores import stores_of

    os.environ.update(secrets_in_files(os.environ))
    return stores_of(backend_store_uri, artifacts_destination)

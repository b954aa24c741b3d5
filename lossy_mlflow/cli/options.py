"""Options that several commands share."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

_F = TypeVar("_F", bound=Callable[..., Any])
_SECONDS = {"d": 86400, "h": 3600, "m": 60, "s": 1}

user_code_option = click.option(
    "--user-code", metavar="FILE", help="A Python file that registers models and sets [LOSSY_USER_CODE]."
)
data_dir_option = click.option("--data-dir", metavar="D", help="Where data sets lie [LOSSY_DATA_DIR].")


def store_options(command: _F) -> _F:
    """The stores of a server, as `mlflow server` takes them."""
    database = click.option(
        "--backend-store-uri", metavar="URI", help="The server's database [MLFLOW_BACKEND_STORE_URI]."
    )
    artifacts = click.option(
        "--artifacts-destination",
        metavar="DIR|s3://...",
        help="Its artifacts [MLFLOW_ARTIFACTS_DESTINATION].",
    )
    return database(artifacts(command))


def duration(_context: click.Context, _parameter: click.Parameter, text: str) -> float:
    """The callback of an option that takes a length of time: in seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([dhms])", text)
    if match is None:
        raise click.BadParameter(f"{text!r} is no length of time; write 30d, 12h, 45m or 90s.")
    return float(match[1]) * _SECONDS[match[2]]

"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

user_code_option = click.option(
    "--user-code", metavar="FILE", help="A Python file that registers models and sets [LOSSY_USER_CODE]."
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

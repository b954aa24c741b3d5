"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable

import click

user_code_option = click.option(
    "--user-code", metavar="FILE", help="A Python file that registers models and sets [LOSSY_USER_CODE]."
)
data_dir_option = click.option("--data-dir", metavar="D", help="Where data sets lie [LOSSY_DATA_DIR].")


def stores_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that say which stores a server has: `backend_store_uri` and `artifacts_destination`."""
    database = click.option(
        "--backend-store-uri", metavar="URI", help="The server's database [MLFLOW_BACKEND_STORE_URI]."
    )
    artifacts = click.option(
        "--artifacts-destination",
        metavar="PLACE",
        help="Where it keeps artifacts: a folder, or s3://BUCKET/PATH [MLFLOW_ARTIFACTS_DESTINATION].",
    )
    return database(artifacts(command))

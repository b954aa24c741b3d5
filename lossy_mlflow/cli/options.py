"""Options that several commands share."""

from __future__ import annotations

import click

user_code_option = click.option(
    "--user-code", metavar="FILE", help="A Python file that registers models and sets [LOSSY_USER_CODE]."
)
data_dir_option = click.option("--data-dir", metavar="D", help="Where data sets lie [LOSSY_DATA_DIR].")

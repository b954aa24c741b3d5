"""`lossy serve`: a tracking server, on a laptop or for a team."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lossy_mlflow.cli.options import named_stores, stores_options
from lossy_mlflow.cli.output import json_option, print_json, print_table
from lossy_mlflow.errors import UsageError

if TYPE_CHECKING:
    from lossy_mlflow.service.preflight import Checked
    from lossy_mlflow.service.settings import Serving
    from lossy_mlflow.service.stores import Stores

_HOST, _PORT = "127.0.0.1", 5000


@click.command(epilog="Example: lossy serve --port 5001")
@stores_options
@click.option("--host", metavar="H", help=f"The address to listen at [{_HOST}]. For others than it, --auth.")
@click.option("--port", type=click.IntRange(1, 65535), metavar="P", help=f"The port to listen at [{_PORT}].")
@click.option(
    "--socket",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Listen at a Unix socket, for a proxy in front that speaks TLS.",
)
@click.option(
    "--workers", type=click.IntRange(1), default=1, show_default=True, help="Processes that answer requests."
)
@click.option("--auth", is_flag=True, help="Let in only members, by name and password (lossy users).")
@click.option(
    "--allowed-hosts",
    envvar="MLFLOW_SERVER_ALLOWED_HOSTS",
    metavar="LIST",
    help="The names by which clients call it, as in https://NAME, with commas between [MLFLOW_SERVER_ALLOWED_HOSTS].",
)
@click.option("--check-only", is_flag=True, help="Look at all that the server will need, say it, and end.")
@json_option
def serve(
    backend_store_uri: str | None,
    artifacts_destination: str | None,
    host: str | None,
    port: int | None,
    socket: Path | None,
    workers: int,
    auth: bool,
    allowed_hosts: str | None,
    check_only: bool,
    as_json: bool,
) -> None:
    """Serve runs, models and artifacts until Ctrl-C or SIGTERM: on a laptop as it stands, for a team with --auth.

    \b
    lossy serve                                                   ./mlflow.db and ./mlartifacts, at 127.0.0.1:5000
    MLFLOW_BACKEND_STORE_URI=postgresql://... lossy serve --auth \\
        --artifacts-destination s3://BUCKET/PATH --socket /run/lossy/server.sock --workers 4 \\
        --allowed-hosts mlflow.example.org                        for a team, behind a proxy

    What it needs is looked at first; where something is amiss, all of it is said and nothing starts. Passwords and keys come
    from MLflow's, PostgreSQL's and AWS's own variables, or NAME_FILE for a file with the secret: docs/operations.md.
    """
    from lossy_mlflow.service.settings import Serving

    if as_json and not check_only:
        raise UsageError("--json prints what --check-only finds.", "lossy serve --check-only --json")
    if socket and (host or port):
        raise UsageError("--socket takes the place of --host and --port.", "Give one or the other.")
    stores = named_stores(backend_store_uri, artifacts_destination)
    serving = Serving(host or _HOST, port or _PORT, socket, workers, auth, _names(allowed_hosts or ""))
    if _checked(stores, serving, check_only, as_json):
        from lossy_mlflow.service.serve import serve as run

        run(stores, serving, os.environ, ready=lambda: _say_ready(stores, serving))


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in names:
        if "/" in name:
            raise UsageError(f"--allowed-hosts {name!r} is no name of a host.", "Leave out https:// and /")
    return names


def _checked(stores: Stores, serving: Serving, only: bool, as_json: bool) -> bool:
    """Whether to go on. Ends the process where something is amiss."""
    from lossy_mlflow.service.preflight import preflight

    looked_at = preflight(stores, serving, os.environ)
    amiss = [checked for checked in looked_at if not checked.ok]
    if as_json:
        print_json(looked_at)
    elif only:
        print_table(["", "of", "found"], [_row(checked) for checked in looked_at])
    if not as_json:
        for checked in amiss:
            click.echo(f"lossy: {checked.what}", err=True)
            click.echo(f"  {checked.hint}", err=True)
    if amiss:
        if not only:
            click.echo("lossy: nothing was started.", err=True)
        sys.exit(amiss[0].exit_code if len(amiss) == 1 else 1)
    return not only


def _row(checked: Checked) -> list[str]:
    return ["ok" if checked.ok else "AMISS", checked.of, checked.what]


def _say_ready(stores: Stores, serving: Serving) -> None:
    click.echo(f"Ready: {serving.address} on {stores}.", err=True)
    if not serving.socket:
        click.echo(f"  In another shell: export MLFLOW_TRACKING_URI={serving.address}", err=True)

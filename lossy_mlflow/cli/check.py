"""`lossy check`: whether a server's database and files agree, and the safe part of mending what doesn't."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from lossy_mlflow.cli.options import duration, named_stores, stores_options
from lossy_mlflow.cli.output import age, bytes_bar, json_option, one_line, print_json, print_table, size
from lossy_mlflow.errors import UsageError

if TYPE_CHECKING:
    from lossy_mlflow.service.check import Report
    from lossy_mlflow.service.findings import Finding
    from lossy_mlflow.service.repair import Mended

_SHOWN = 20
_YOUNGEST_S = 3600.0


@click.command(epilog="Example: lossy check --deep --backend-store-uri postgresql://mlflow@HOST/mlflow")
@click.option("--deep", is_flag=True, help="Read every file whose digest is known, and compare.")
@click.option("--repair", is_flag=True, help="Then mend the safe part of what was found, after asking.")
@click.option("--yes", is_flag=True, help="Don't ask.")
@click.option(
    "--older-than",
    callback=duration,
    default="7d",
    show_default=True,
    metavar="TIME",
    help="What is younger may become something, and is no leftover: 7d, 12h, 45m, 90s.",
)
@stores_options
@json_option
def check(
    deep: bool,
    repair: bool,
    yes: bool,
    older_than: float,
    backend_store_uri: str | None,
    artifacts_destination: str | None,
    as_json: bool,
) -> None:
    """Whether what the server's database names is in its store of artifacts, and what is half made, dead or left over.

    To be run where the server is, with the same options or variables. It changes nothing. Exit code 1 if anything is lost (files
    missing or damaged, an alias to nowhere, a version half made or about to lose its files), 0 for what only takes room.

    --repair removes aliases to nowhere, ends dead runs, takes out of the bin what versions need, and frees what nothing refers
    to, if it is an hour old at least. It refuses while a backup is at work. Stopped half way, it is finished by the same command.
    """
    from lossy_mlflow.service.check import check as look
    from lossy_mlflow.service.repair import repair as mend
    from lossy_mlflow.service.repair import repairable

    if yes and not repair:
        raise UsageError("--yes answers the question of --repair.", "lossy check --repair --yes")
    if repair and older_than < _YOUNGEST_S:
        raise UsageError(
            "--repair frees nothing that is younger than an hour: what is being uploaded now has no version yet.",
            "lossy check --repair --older-than 1h",
        )
    stores = named_stores(backend_store_uri, artifacts_destination)
    with bytes_bar() as progress:
        report = look(stores, deep=deep, older_than_s=older_than, progress=progress)
    if not as_json:
        _print_report(report)
    done: list[Mended] = []
    if repair and (planned := repairable(report)):
        if not yes:
            _ask(report, planned)
        each = (lambda _: None) if as_json else _tell
        done = mend(stores, report, older_than_s=older_than, sure=not yes, each=each)
    if as_json:
        print_json({"report": report, "mended": done} if repair else report)
    elif repair:
        n_done = sum(one.done for one in done)
        click.echo(
            f"Mended {n_done} of {len(report.findings)} findings; {size(sum(one.n_bytes for one in done))} freed."
        )
    mended = {(one.kind, one.what) for one in done if one.done}
    if any(one.loses and (one.kind, one.what) not in mended for one in report.findings):
        sys.exit(1)


def _print_report(report: Report) -> None:
    kinds = dict.fromkeys(one.kind for one in report.findings)
    for kind in kinds:
        found = [one for one in report.findings if one.kind == kind]
        click.echo(f"{kind} ({len(found)}): {found[0].matters}")
        print_table(["  what", "age", "files", "size", "where"], [_row(one) for one in found[:_SHOWN]])
        if len(found) > _SHOWN:
            click.echo(f"  and {len(found) - _SHOWN} more, all of them by --json")
        click.echo(f"  What to do: {found[0].mend}\n")
    elsewhere = f"; {report.n_elsewhere} have their files elsewhere, unseen" if report.n_elsewhere else ""
    click.echo(
        f"{'Nothing is wrong. ' if not report.findings else ''}Looked at {report.n_versions} versions, {report.n_models} "
        f"LoggedModels, {report.n_runs} runs, and {report.n_files} files of {size(report.n_bytes)}{elsewhere}."
    )


def _row(one: Finding) -> list[str]:
    return [
        f"  {one_line(one.what)}",
        "" if one.age_s is None else age(one.age_s),
        str(one.n_files or ""),
        size(one.n_bytes) if one.n_bytes else "",
        one_line(one.where),
    ]


def _ask(report: Report, planned: list[Finding]) -> None:
    from lossy_mlflow.service.repair import is_of_another_server

    freed = size(sum(one.n_bytes for one in planned))
    if not sys.stdin.isatty():
        raise UsageError(
            f"{len(planned)} findings would be mended, {freed} freed, and there is no terminal to ask at.",
            "Look first: lossy check    then go on without being asked: lossy check --repair --yes",
        )
    if is_of_another_server(report):
        click.echo(
            "Most of what lies in this store is unknown to this database: are both one server's?", err=True
        )
    if not click.confirm(f"Mend {len(planned)} of these findings, and free {freed}?", err=True):
        raise UsageError("You said no: nothing was changed.")


def _tell(done: Mended) -> None:
    click.echo(f"{done.kind}: {one_line(done.what)}: {done.note}", err=True)

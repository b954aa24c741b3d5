"""`lossy doctor`: what is wrong between this machine and its server, and what mends it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from lossy_mlflow.cli.output import json_option, print_json

if TYPE_CHECKING:
    from lossy_mlflow.service.doctor import Finding, Report

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red", "skipped": "bright_black"}


@click.command(epilog="Example: lossy doctor --json | jq '.findings[] | select(.state == \"fail\")'")
@json_option
def doctor(as_json: bool) -> None:
    """Look at this machine and its way to the server: what is right, what isn't, and what to do.

    One line each: the server, its certificate, clock, credentials, version and artifacts (or the database), what waits in the
    outbox, data, cache, the environment's variables, your own code, torch. Nothing is changed, and a server that
    hangs is waited for a few seconds. Exit code: 0 all is well, or worth a warning alone; 5 the server or the database
    doesn't answer; 1 anything else fails.
    """
    from lossy_mlflow.service.doctor import examine

    report = examine(None if as_json else _print)
    if as_json:
        print_json(report)
    else:
        click.echo(_in_one_line(report))
    if report.exit_code:
        sys.exit(report.exit_code)


def _print(finding: Finding) -> None:
    """A line, and one more where there is something to do."""
    state = click.style(f"{finding.state:<7}", fg=_COLOURS[finding.state], bold=finding.state == "fail")
    click.echo(f"{state}  {finding.name:<11}  {finding.seen}")
    if finding.remedy:
        click.echo(f"{'':22}-> {finding.remedy}")


def _in_one_line(report: Report) -> str:
    counts = {state: sum(finding.state == state for finding in report.findings) for state in ("fail", "warn")}
    said = [
        f"{n} {word}{'s' * (n != 1)}"
        for (n, word) in ((counts["fail"], "failure"), (counts["warn"], "warning"))
        if n
    ]
    return f"\n{', '.join(said) or 'All is well'}."

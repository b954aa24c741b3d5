"""`lossy users`: who may do what on a server that was started with --auth."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from lossy_mlflow.cli.output import json_option, print_json, print_table
from lossy_mlflow.errors import UsageError

if TYPE_CHECKING:
    from lossy_mlflow.service.users import Right

_PERMISSIONS = ("READ", "EDIT", "MANAGE", "NONE")


@click.group()
def users() -> None:
    """The members of a server that was started with --auth, for its admins; grant also for who has MANAGE, passwd for oneself.

    \b
    lossy users add ada                                   asks for a password; `... < FILE` takes the first line
    lossy users grant ada --experiment vae EDIT           READ to look, EDIT to log, MANAGE to delete and give rights
    lossy users list                                      who is there, with which rights
    lossy users passwd ada                                another password, by an admin or by ada
    lossy users remove ada

    The server is MLFLOW_TRACKING_URI; MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD say who you are.
    """


@users.command(epilog="Example: lossy users add ada")
@click.argument("name")
@click.option("--admin", is_flag=True, help="May do everything, and make users.")
@json_option
def add(name: str, admin: bool, as_json: bool) -> None:
    """Let NAME in. The password is asked for, or read from standard input. What others have made NAME doesn't see."""
    from lossy_mlflow.service.users import add_user

    user = add_user(name, _new_password(), admin)
    if as_json:
        print_json(user)
    else:
        click.echo(f"{user.name} is a member now{', and an admin' if user.admin else ''}.")


@users.command("list", epilog="Example: lossy users list --json | jq '.[] | select(.admin) | .name'")
@json_option
def list_(as_json: bool) -> None:
    """The members: who is an admin, who may do what."""
    from lossy_mlflow.service.users import list_users

    found = list_users()
    if as_json:
        print_json(found)
        return
    rows = [
        [
            user.name,
            "admin" if user.admin else "",
            "everything" if user.admin else ", ".join(_told(right) for right in user.rights),
        ]
        for user in found
    ]
    print_table(["name", "", "rights"], rows)


def _told(right: Right) -> str:
    return f"{right.permission} {right.kind} {right.name}"


@users.command(epilog="Example: lossy users passwd ada")
@click.argument("name")
def passwd(name: str) -> None:
    """Another password for NAME, by an admin or by NAME. It is asked for, or read from standard input."""
    from lossy_mlflow.service.users import change_password

    change_password(name, _new_password())
    click.echo(f"{name} has another password. {_old_one()}")


@users.command(epilog="Example: lossy users grant ada --experiment vae EDIT")
@click.argument("name")
@click.argument("permission", type=click.Choice(_PERMISSIONS, case_sensitive=False))
@click.option("--experiment", metavar="E", help="The experiment of that name.")
@click.option("--model", metavar="M", help="The registered model of that name.")
@json_option
def grant(name: str, permission: str, experiment: str | None, model: str | None, as_json: bool) -> None:
    """Let NAME look at (READ), log into (EDIT) or delete and give rights on (MANAGE) one experiment or model; NONE: no longer.

    For admins, and for who has MANAGE there.
    """
    from lossy_mlflow.service.users import grant as give

    if (experiment is None) == (model is None):
        raise UsageError("Rights are given on one thing.", "Name it: --experiment E    or --model M")
    kind, target = ("model", model) if experiment is None else ("experiment", experiment)
    right = give(name, kind, target or "", permission)
    if as_json:
        print_json(right)
    elif right.permission == "NONE":
        click.echo(f"{name} has no right of its own on the {right.kind} {right.name} now.")
    else:
        click.echo(f"{name} has the right {right.permission} on the {right.kind} {right.name} now.")


@users.command(epilog="Example: lossy users remove ada --yes")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Don't ask.")
def remove(name: str, yes: bool) -> None:
    """Take NAME's name and rights away. What NAME has made stays."""
    from lossy_mlflow.service.users import remove_user

    if not yes:
        click.confirm(f"Take away {name}? What {name} has made stays.", abort=True, err=True)
    remove_user(name)
    click.echo(f"{name} is no member any more. {_old_one()}")


def _old_one() -> str:
    from lossy_mlflow.service.settings import AUTH_CACHE_S

    return f"A server of several workers may accept the old password for up to {AUTH_CACHE_S} s."


def _new_password() -> str:
    if sys.stdin.isatty():
        return str(click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True))
    line = sys.stdin.readline().rstrip("\r\n")
    if not line:
        raise UsageError(
            "There is no password on standard input.",
            "Give it as the first line: lossy users add NAME < FILE",
        )
    return line

"""`lossy promote`, `history`, `lineage`, `prune`: the registry as a group keeps it."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING

import click

from lossy_mlflow.cli.completion import hparam_sets
from lossy_mlflow.cli.options import duration
from lossy_mlflow.cli.output import age, json_option, one_line, print_json, print_table
from lossy_mlflow.errors import UsageError

if TYPE_CHECKING:
    from lossy_mlflow.checkpoints.evidence import Evidence
    from lossy_mlflow.checkpoints.history import Entry, History
    from lossy_mlflow.checkpoints.lineage import Ancestor, Lineage
    from lossy_mlflow.checkpoints.promote import Promoted
    from lossy_mlflow.checkpoints.prune import Plan, Verdict


@click.command(epilog='Example: lossy promote vae10_digits@best --because "lowest bound of the three"')
@click.argument("reference", shell_complete=hparam_sets)
@click.option("--alias", default="champion", show_default=True, help="The alias that moves.")
@click.option("--because", default="", metavar="TEXT", help="Why: kept with the promotion.")
@click.option("--require-evidence", is_flag=True, help="Refuse a version without val_loss and data digest.")
@click.option("--to", metavar="NAME", help="Copy the version to the model NAME, and promote it there.")
@click.option(
    "--rollback", is_flag=True, help="Back to the version that the alias had before; REFERENCE is a NAME."
)
@json_option
def promote(
    reference: str,
    alias: str,
    because: str,
    require_evidence: bool,
    to: str | None,
    rollback: bool,
    as_json: bool,
) -> None:
    """Move an alias to the version that REFERENCE means (a plain NAME: its best), and keep who, when and why.

    What speaks for the version is shown first and kept with the promotion. Of two promotions at once the later wins, and `lossy
    history` shows both. The aliases best and last are training's own.
    """
    from lossy_mlflow.checkpoints.promote import promote as move
    from lossy_mlflow.checkpoints.promote import roll_back

    if rollback and to is not None:
        raise UsageError(
            "--rollback goes back within one model, --to goes to another.", "Give one of the two."
        )
    if rollback:
        done = roll_back(reference, alias, because=because, require_evidence=require_evidence, show=_show)
    else:
        done = move(reference, alias, because=because, require_evidence=require_evidence, to=to, show=_show)
    if as_json:
        print_json(done)
    else:
        click.echo(_told(done))


def _show(version: str, evidence: Evidence) -> None:
    click.echo(f"Evidence for {version}: {evidence}", err=True)


def _told(done: Promoted) -> str:
    promotion = done.promotion
    where = f"{done.name}@{promotion.alias}"
    if done.already:
        return f"{where} is version {promotion.version} already, since {promotion.when}."
    came_from = "" if promotion.from_version is None else f" (it was {promotion.from_version})"
    line = f"{where} is version {promotion.version} now{came_from}."
    if done.stands_at != promotion.version:
        line = f"{where} is version {done.stands_at}: a promotion that came later has won."
    return f"{line} See all: lossy history {shlex.quote(done.name)}"


@click.command(epilog="Example: lossy history vae10_digits --alias champion")
@click.argument("name", shell_complete=hparam_sets)
@click.option("--alias", help="This alias alone.")
@json_option
def history(name: str, alias: str | None, as_json: bool) -> None:
    """The promotions of the registered model NAME, newest first: when, from where to where, who, why, on what evidence."""
    from lossy_mlflow.checkpoints.history import history as read

    found = read(name, alias)
    if as_json:
        print_json(found)
        return
    if found.entries:
        head = ["when", "alias", "from", "to", "who", "why", "evidence"]
        print_table(head, [_entry_row(entry) for entry in found.entries])
    for line in _remarks(found):
        click.echo(line, err=bool(found.entries))


def _entry_row(entry: Entry) -> list[str]:
    def named(version: int | None) -> str:
        if version is None:
            return "-"
        return f"{version} (gone)" if version in entry.gone else str(version)

    why = [
        *(["not carried out"] if not entry.carried_out else []),
        *(["rollback"] if entry.rollback else []),
        *([one_line(entry.because)] if entry.because else []),
    ]
    return [
        entry.when,
        entry.alias,
        named(entry.from_version),
        named(entry.version),
        one_line(entry.who),
        ": ".join(why),
        str(entry.evidence),
    ]


def _remarks(found: History) -> list[str]:
    promote_it = f"lossy promote {shlex.quote(found.name)}/VERSION"
    lines = []
    for one in found.aliases:
        where = "nowhere" if one.version is None else f"at version {one.version}"
        if one.moved_by_hand and one.promoted_to is None:
            lines.append(f"{one.alias} stands {where}, set by hand: no promotion says why.")
        elif one.moved_by_hand:
            lines.append(
                f"{one.alias} stands {where}, moved by hand: its last promotion left it at {one.promoted_to}."
            )
    if not found.entries and not lines:
        lines.append(f"Nothing of {found.name} has been promoted yet. Promote a version: {promote_it}")
    return lines + [
        f"The tag {key} can't be read any more: somebody has edited it." for key in found.unreadable
    ]


@click.command(epilog="Example: lossy lineage vae10_digits@champion")
@click.argument("reference", shell_complete=hparam_sets)
@json_option
def lineage(reference: str, as_json: bool) -> None:
    """Where the version that REFERENCE means comes from (run, data, code, parents), and what has come of it."""
    from lossy_mlflow.checkpoints.lineage import lineage as trace

    found = trace(reference)
    if as_json:
        print_json(found)
        return
    rows = [(name, text) for name, text in _lineage_rows(found) if text]
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        click.echo(f"{name.ljust(width)}  {one_line(text)}")


def _lineage_rows(found: Lineage) -> list[tuple[str, str]]:
    aliases = "".join(f" @{alias}" for alias in found.aliases)
    gone = "" if found.state == "there" else f" ({found.state})"
    return [
        ("version", f"{found.version}{gone}{aliases}"),
        ("epoch", "" if found.epoch is None else str(found.epoch)),
        ("val_loss", "" if found.val_loss is None else f"{found.val_loss:.4f}"),
        ("run", f"{found.run_id} ({found.run_state})" if found.run_id else ""),
        ("hparam_set", found.hparam_set),
        ("data digest", found.dataset_digest),
        ("git commit", found.git_commit),
        *((item.relation, _ancestor(found, item)) for item in found.ancestors),
        *(("parent of", version) for version in found.started_from_it),
        *(("copied to", version) for version in found.copies),
        *(("evaluated in", run_id) for run_id in found.evaluations),
    ]


def _ancestor(found: Lineage, item: Ancestor) -> str:
    gone = "" if item.state == "there" else f" ({item.state})"
    whose = "" if item.of == found.version else f", the origin of {item.of}"
    return f"{item.version}{gone}{whose}"


@click.command(epilog="Example: lossy prune vae10_digits --keep 3 --older-than 7d --dry-run")
@click.argument("name", shell_complete=hparam_sets)
@click.option(
    "--keep", type=click.IntRange(min=0), default=5, show_default=True, help="So many of the newest stay."
)
@click.option(
    "--older-than",
    callback=duration,
    default="30d",
    show_default=True,
    metavar="TIME",
    help="What is younger stays: 30d, 12h, 45m, 90s.",
)
@click.option(
    "--dry-run", is_flag=True, help="Say what would go and why the others stay, and change nothing."
)
@click.option("--yes", is_flag=True, help="Don't ask.")
@json_option
def prune(name: str, keep: int, older_than: float, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Delete the versions of the registered model NAME that have no alias and no tag `pinned`, and are neither new nor young.

    A tag `pinned` of a version's run holds all versions of the run. Aliases and pins are read again just before each deletion.
    Stopped half way, it is finished by the same command. Files stay on the server, where copies may share them, until its keeper
    frees them: lossy check --repair.
    """
    from lossy_mlflow.checkpoints.prune import plan_prune
    from lossy_mlflow.checkpoints.prune import prune as delete

    plan = plan_prune(name, keep, older_than)
    if not as_json:
        _print_plan(plan)
    if not dry_run and plan.goes:
        if not yes:
            _ask(plan)
        plan = delete(plan, lambda version: click.echo(f"deleted {plan.name}/{version}", err=True))
        if not as_json:
            _tell_pruned(plan)
    if as_json:
        print_json(plan)


def _print_plan(plan: Plan) -> None:
    head = ["version", "epoch", "val_loss", "age", ""]
    rows = [_verdict_row(item) for item in sorted([*plan.goes, *plan.stays], key=lambda item: -item.version)]
    if rows:
        print_table(head, rows)
    if not plan.goes:
        click.echo(f"Nothing of {plan.name} goes.")


def _verdict_row(item: Verdict) -> list[str]:
    return [
        str(item.version),
        "" if item.epoch is None else str(item.epoch),
        "" if item.val_loss is None else f"{item.val_loss:.4f}",
        age(item.age_s),
        f"stays: {item.stays_because}" if item.stays_because else "goes",
    ]


def _ask(plan: Plan) -> None:
    if not sys.stdin.isatty():
        raise UsageError(
            f"{len(plan.goes)} versions of {plan.name} would be deleted, and there is no terminal to ask at.",
            "Look first: --dry-run    then go on without being asked: --yes",
        )
    if not click.confirm(f"Delete {len(plan.goes)} versions of {plan.name}?", err=True):
        raise UsageError("You said no: nothing was deleted.")


def _tell_pruned(done: Plan) -> None:
    click.echo(f"{len(done.goes)} versions of {done.name} are deleted, {len(done.stays)} stay.")
    click.echo(
        "Their files stay on the server, where copies may share them, until its keeper frees them (lossy check --repair).",
        err=True,
    )

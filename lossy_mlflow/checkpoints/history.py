"""What the aliases of a registered model have stood at, by whom and why; and where that doesn't agree with where they stand."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from lossy_mlflow.checkpoints.evidence import Evidence
from lossy_mlflow.checkpoints.lookup import registered_model, versions_of
from lossy_mlflow.checkpoints.promotions import Promotion, carried_out, of_alias, promotions_in
from lossy_mlflow.checkpoints.reference import parse_reference
from lossy_mlflow.checkpoints.versions import TRAINING_ALIASES
from lossy_mlflow.errors import NotFoundError, UsageError, did_you_mean
from lossy_mlflow.tracking.connection import connect, explained


@dataclass(frozen=True, slots=True)
class Entry:
    """A promotion. `gone`: those of its two versions that have been deleted since. `carried_out`: whether the alias has moved."""

    when: str
    alias: str
    from_version: int | None
    version: int
    rollback: bool
    who: str
    because: str
    evidence: Evidence
    carried_out: bool
    gone: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Standing:
    """Where an alias stands (None: nowhere), and where its newest promotion has left it (None: it was never promoted).

    `moved_by_hand`: the two differ.
    """

    alias: str
    version: int | None
    promoted_to: int | None
    moved_by_hand: bool


@dataclass(frozen=True, slots=True)
class History:
    """The promotions of the model `name`, newest first; its aliases, without training's; tags that can't be read any more."""

    name: str
    entries: list[Entry]
    aliases: list[Standing]
    unreadable: list[str]


def history(name: str, alias: str | None = None) -> History:
    """The promotions in the registered model `name`, of all aliases or one.

    Raises NotFoundError for a name, and an alias, that it doesn't have; UsageError where `name` means one version.
    """
    wanted = parse_reference(name)
    if not wanted.is_plain:
        only = f" --alias {shlex.quote(wanted.alias)}" if wanted.alias else ""
        raise UsageError(
            f"{wanted} means one version; a history is a model's.",
            f"lossy history {shlex.quote(wanted.name)}{only}",
        )
    with explained():
        connection = connect()
        model = registered_model(connection, wanted.name)
        there = {checkpoint.version for checkpoint in versions_of(connection.client, model)}
    promotions, unreadable = promotions_in(model.tags)
    standing = {name: int(version) for name, version in model.aliases.items() if name not in TRAINING_ALIASES}
    known = sorted(standing.keys() | {promotion.alias for promotion in promotions})
    if alias is not None and alias not in known:
        near = did_you_mean(alias, known) or (
            f"it has {', '.join(known)}." if known else "nothing has been promoted yet."
        )
        raise NotFoundError(
            f"{wanted.name} has no promoted alias {alias!r}; {near}",
            f"See all: lossy history {shlex.quote(wanted.name)}",
        )
    chosen = known if alias is None else [alias]
    told = [promotion for promotion in promotions if promotion.alias in chosen]
    return History(
        wanted.name,
        entries_of(told, standing, there),
        [_standing(of_alias(told, one), one, standing.get(one)) for one in chosen],
        unreadable,
    )


def entries_of(
    promotions: Sequence[Promotion], standing: Mapping[str, int], there: Collection[int]
) -> list[Entry]:
    """Newest first, from `promotions`, oldest first. `standing`: where the aliases are now; `there`: the versions there are."""
    done: dict[str, bool] = {}
    for alias in {promotion.alias for promotion in promotions}:
        of_it = of_alias(promotions, alias)
        flags = carried_out(of_it, standing.get(alias))
        done |= {promotion.key: flag for promotion, flag in zip(of_it, flags, strict=True)}
    return [_entry(promotion, done[promotion.key], there) for promotion in reversed(promotions)]


def _entry(promotion: Promotion, done: bool, there: Collection[int]) -> Entry:
    named = (promotion.from_version, promotion.version)
    return Entry(
        when=promotion.when,
        alias=promotion.alias,
        from_version=promotion.from_version,
        version=promotion.version,
        rollback=promotion.rollback,
        who=promotion.who,
        because=promotion.because,
        evidence=promotion.evidence,
        carried_out=done,
        gone=tuple(version for version in named if version is not None and version not in there),
    )


def _standing(promotions: list[Promotion], alias: str, stands: int | None) -> Standing:
    """A promotion that wasn't carried out leaves the alias where it has found it."""
    left_at = None
    if promotions:
        newest = promotions[-1]
        left_at = newest.version if carried_out([newest], stands)[0] else newest.from_version
    return Standing(alias, stands, left_at, moved_by_hand=stands != left_at)

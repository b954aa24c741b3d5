"""Moving an alias to a version for a reason, and back."""

from __future__ import annotations

import dataclasses
import re
import secrets
import shlex
from collections.abc import Callable
from dataclasses import dataclass

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from lossy_mlflow.checkpoints.copies import copy_version
from lossy_mlflow.checkpoints.evidence import Evidence, evidence_of, refuse_without_evidence
from lossy_mlflow.checkpoints.lookup import registered_model, resolve_at
from lossy_mlflow.checkpoints.promotions import (
    Promotion,
    as_tag_value,
    next_key,
    of_alias,
    promotions_in,
    time_of,
    version_before,
)
from lossy_mlflow.checkpoints.reference import Reference, parse_reference
from lossy_mlflow.checkpoints.versions import TRAINING_ALIASES, set_alias
from lossy_mlflow.errors import ConflictError, NotFoundError, UsageError
from lossy_mlflow.tracking.connection import Connection, connect, explained
from lossy_mlflow.tracking.who import who

CHAMPION = "champion"
_ALIAS_LENGTH = 255

Show = Callable[[str, Evidence], None]


@dataclass(frozen=True, slots=True)
class Promoted:
    """The alias `promotion.alias` of the model `name`. `already`: it stood there before, by that promotion; nothing was done.

    `stands_at`: the version that it is at; another than `promotion.version` where a promotion that came later has won.
    """

    name: str
    promotion: Promotion
    stands_at: int
    already: bool = False


def promote(
    reference: str,
    alias: str = CHAMPION,
    *,
    because: str = "",
    require_evidence: bool = False,
    to: str | None = None,
    show: Show | None = None,
) -> Promoted:
    """Move `alias` to the version that `reference` means, of its own model or, with `to`, as a copy in the model of that name.

    `show` is called with NAME/VERSION and its evidence before anything is changed. Of two promotions at once the later one wins.
    Raises UsageError for an alias that isn't for promotions and a reason that is too long; NotFoundError as `resolve` does;
    ConflictError for want of evidence where it is required, and as `copy_version` does.
    """
    refuse_alias(alias)
    _refuse_reason(because)
    target = parse_reference(to) if to is not None else None
    if target and not target.is_plain:
        raise UsageError(f"{target} means one version; --to takes a model's name.", f"--to {target.name}")
    wanted = parse_reference(reference)
    with explained():
        connection = connect()
        found = resolve_at(connection, wanted)
        version = connection.client.get_model_version(found.name, str(found.version))
        evidence = _shown_evidence(connection, version, require_evidence, show)
        if target:
            version = copy_version(connection.client, version, target.name)
        return _promote(connection, version, alias, because, evidence)


def roll_back(
    name: str,
    alias: str = CHAMPION,
    *,
    because: str = "",
    require_evidence: bool = False,
    show: Show | None = None,
) -> Promoted:
    """Move `alias` of the model `name` to the version that it had before. Twice goes back by two.

    Raises as `promote` does, ConflictError where the alias had no version before, NotFoundError where that one is gone.
    """
    refuse_alias(alias)
    _refuse_reason(because)
    wanted = parse_reference(name)
    if not wanted.is_plain:
        raise UsageError(
            f"{wanted} means one version; where a rollback goes to is the alias's own affair.",
            f"lossy promote {shlex.quote(wanted.name)} --rollback    or promote that version, without --rollback",
        )
    with explained():
        connection = connect()
        model = registered_model(connection, wanted.name)
        stands = model.aliases.get(alias)
        promotions, _ = promotions_in(model.tags)
        before = version_before(of_alias(promotions, alias), int(stands) if stands else None)
        if before is None:
            where = f"it has been at no version but {stands}" if stands else "it has been at none"
            raise ConflictError(
                f"There is nothing to roll {wanted.name}@{alias} back to: {where}, as far as is recorded.",
                f"See what is recorded: lossy history {shlex.quote(wanted.name)}",
            )
        version = _version_to_return_to(connection.client, wanted, alias, before)
        evidence = _shown_evidence(connection, version, require_evidence, show)
        return _promote(connection, version, alias, because, evidence, rollback=True)


def refuse_alias(alias: str) -> None:
    """Raises UsageError where `alias` is training's own, or none that MLflow takes."""
    # Some databases take Best and best for the same.
    if alias.lower() in TRAINING_ALIASES:
        what = "the lowest val_loss" if alias.lower() == "best" else "the newest epoch"
        raise UsageError(
            f"The alias {alias!r} is training's own: it follows {what}.",
            "Promote to another: --alias champion",
        )
    if alias.lower() == "latest" or re.fullmatch(r"[vV]\d+", alias):
        raise UsageError(
            f"The alias {alias!r} is reserved by MLflow.", "Promote to another: --alias champion"
        )
    if not re.fullmatch(r"[\w-]+", alias) or len(alias) > _ALIAS_LENGTH:
        raise UsageError(
            f"{alias!r} can't be an alias.",
            f"Letters, digits, - and _, {_ALIAS_LENGTH} at most: --alias champion",
        )


def _refuse_reason(because: str) -> None:
    """Before anything is asked of the server: what bytes that are no text, from a terminal, would end in."""
    if any("\ud800" <= character <= "\udfff" for character in because):
        raise UsageError("The reason isn't text in UTF-8.", "Write it anew: --because TEXT")


def _shown_evidence(
    connection: Connection, version: ModelVersion, required: bool, show: Show | None
) -> Evidence:
    evidence = evidence_of(connection.client, version)
    if show:
        show(f"{version.name}/{version.version}", evidence)
    if required:
        refuse_without_evidence(version, evidence)
    return evidence


def _version_to_return_to(client: MlflowClient, wanted: Reference, alias: str, before: int) -> ModelVersion:
    try:
        return client.get_model_version(wanted.name, str(before))
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
    raise NotFoundError(
        f"{wanted.name}@{alias} was at version {before} before, and that version is gone.",
        f"Promote another one: lossy promote {shlex.quote(wanted.name)}/VERSION --alias {alias}"
        f"    see which: lossy checkpoints {shlex.quote(wanted.name)}",
    )


def _promote(
    connection: Connection,
    version: ModelVersion,
    alias: str,
    because: str,
    evidence: Evidence,
    *,
    rollback: bool = False,
) -> Promoted:
    client, name, number = connection.client, version.name, int(version.version)
    model = client.get_registered_model(name)
    stands = model.aliases.get(alias)
    earlier = of_alias(promotions_in(model.tags)[0], alias)
    if earlier and earlier[-1].version == number and stands is not None and int(stands) == number:
        return Promoted(name, earlier[-1], number, already=True)
    key = next_key(model.tags, connection.now(), secrets.token_hex(3))
    promotion = Promotion(
        key=key,
        when=time_of(key),
        alias=alias,
        from_version=None if stands is None else int(stands),
        version=number,
        who=who(connection.uri),
        because=because,
        evidence=evidence,
        rollback=rollback,
    )
    client.set_registered_model_tag(name, promotion.key, as_tag_value(promotion))
    stands_at = _move(client, name, promotion)
    promotion = dataclasses.replace(promotion, moved=True)
    client.set_registered_model_tag(name, promotion.key, as_tag_value(promotion))
    return Promoted(name, promotion, stands_at)


def _move(client: MlflowClient, name: str, promotion: Promotion) -> int:
    """Where the alias stands in the end: at the version of the newest record, whoever has moved it in between.

    Each one reads the records again after its move: whoever moves last has read them all.
    """
    stands = promotion
    while True:
        set_alias(client, name, promotion.alias, stands.version)
        model = client.get_registered_model(name)
        newest = max(
            of_alias(promotions_in(model.tags)[0], promotion.alias), key=lambda item: item.key, default=stands
        )
        if newest.key <= stands.key:
            break
        stands = newest
    if promotion.alias not in model.aliases:
        # With a version that is deleted MLflow deletes its aliases.
        raise NotFoundError(
            f"{name}/{stands.version} was deleted while it was promoted: {promotion.alias} stands nowhere now.",
            f"Promote another one: lossy promote {shlex.quote(name)}/VERSION --alias {promotion.alias}",
        )
    return stands.version

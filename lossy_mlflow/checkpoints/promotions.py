"""Promotions as a registered model's tags keep them, and what follows from them. Pure.

One tag a promotion: its key sorts by time, its value is JSON. It is written before the alias moves, so that no move is without
its reason; that the alias has moved is written after.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lossy_mlflow.checkpoints.evidence import Evidence
from lossy_mlflow.errors import UsageError

# What MLflow's SQL tables hold of a tag of a registered model; SQLite alone takes more.
VALUE_LIMIT = 5000
_FORMAT = 1
_PREFIX = "promotion."
_TIME = "%Y%m%dT%H%M%S.%fZ"
# This side of the year 3000: a time that somebody has made up can still be added to.
_KEY = re.compile(r"promotion\.(2\d{7}T\d{6}\.\d{6}Z)-[0-9a-f]{6}")


@dataclass(frozen=True, slots=True)
class Promotion:
    """`alias` was to go from `from_version` (None: it stood nowhere) to `version`. `moved`: it is known to have gone there.

    `key` orders promotions: by the server's clock, and never before one that was known when it was made. `when` is the same time
    for people, UTC, in ISO 8601.
    """

    key: str
    when: str
    alias: str
    from_version: int | None
    version: int
    who: str
    because: str
    evidence: Evidence
    rollback: bool = False
    moved: bool = False


def next_key(tags: Mapping[str, str], now: float, draw: str) -> str:
    """The key of a promotion at `now` (seconds since 1970, by the server's clock), later than all in `tags`.

    `draw`: 6 hexadecimal digits, so that no two have the same. Clocks that are read over a network differ
    by a second: what comes after must not look as if it came before.
    """
    times = [_time(key) for key in tags if _is_key(key)]
    after = [max(times) + datetime.timedelta(microseconds=1)] if times else []
    at = max([datetime.datetime.fromtimestamp(now, datetime.UTC), *after])
    return f"{_PREFIX}{at.strftime(_TIME)}-{draw}"


def time_of(key: str) -> str:
    """The time that the key of a promotion says, UTC, in ISO 8601."""
    return _time(key).isoformat(timespec="seconds")


def as_tag_value(promotion: Promotion) -> str:
    """The JSON that `promotions_in` reads. Raises UsageError where a tag can't hold it, because of the reason's length."""
    fields = dataclasses.asdict(promotion)
    del fields["key"], fields["when"]
    value = json.dumps({"format": _FORMAT} | fields, ensure_ascii=False)
    if (surplus := len(value) - VALUE_LIMIT) > 0:
        raise UsageError(
            f"The reason is {surplus} characters too long for MLflow's registry.",
            "Put the long text where it can be read, and name that place: --because URL",
        )
    return value


def promotions_in(tags: Mapping[str, str]) -> tuple[list[Promotion], list[str]]:
    """The promotions in a registered model's tags, oldest first, and the keys of those that can't be read any more."""
    found, unreadable = [], []
    for key in sorted(key for key in tags if key.startswith(_PREFIX)):
        promotion = _read(key, tags[key])
        if promotion:
            found.append(promotion)
        else:
            unreadable.append(key)
    return found, unreadable


def of_alias(promotions: Iterable[Promotion], alias: str) -> list[Promotion]:
    return [promotion for promotion in promotions if promotion.alias == alias]


def carried_out(promotions: Sequence[Promotion], stands: int | None) -> list[bool]:
    """For each promotion of one alias, oldest first, whether the alias has gone there. `stands`: the version that it is at.

    A process that died between the two writes has left no word: what the next one found, or what is now, tells.
    """
    found_after = [*(promotion.from_version for promotion in promotions[1:]), stands]
    return [
        promotion.moved or promotion.version == found
        for promotion, found in zip(promotions, found_after, strict=False)  # of no promotions none was found
    ]


def under_way(promotions: Iterable[Promotion], aliases: Mapping[str, int]) -> dict[str, int]:
    """The versions that an alias is on its way to, by alias: the newest promotion of each that isn't carried out."""
    found = {}
    newest = {promotion.alias: promotion for promotion in promotions}
    for alias, promotion in newest.items():
        if not carried_out([promotion], aliases.get(alias))[0]:
            found[alias] = promotion.version
    return found


def version_before(promotions: Sequence[Promotion], stands: int | None) -> int | None:
    """The version that the alias had before the one it has, `stands`; None where it had none.

    A rollback takes back the promotion before it: two rollbacks go back by two. `promotions`: of one alias, oldest first.
    Moves by hand count as far as they are known, from where a promotion found the alias and from where it stands.
    """
    stack: list[int] = []

    def stood_at(version: int | None) -> None:
        if version is not None and stack[-1:] != [version]:
            stack.append(version)

    for promotion, done in zip(promotions, carried_out(promotions, stands), strict=True):
        if not done:
            continue
        stood_at(promotion.from_version)
        if promotion.rollback and promotion.version in stack:
            while stack[-1] != promotion.version:
                stack.pop()
        stood_at(promotion.version)
    if stands is None:
        return stack[-1] if stack else None
    stood_at(stands)
    return stack[-2] if len(stack) > 1 else None


def _is_key(key: str) -> bool:
    match = _KEY.fullmatch(key)
    if match is None:
        return False
    try:
        _time(key)
    except ValueError:
        return False
    return True


def _time(key: str) -> datetime.datetime:
    text = key.removeprefix(_PREFIX).partition("-")[0]
    return datetime.datetime.strptime(text, _TIME).replace(tzinfo=datetime.UTC)


def _read(key: str, value: str) -> Promotion | None:
    """None for what isn't one: anybody can edit a tag."""
    if not _is_key(key):
        return None
    try:
        fields = json.loads(value)
        if fields.pop("format") != _FORMAT:
            return None
        evidence = Evidence(**fields.pop("evidence"))
        promotion = Promotion(key=key, when=time_of(key), evidence=evidence, **fields)
    except (ValueError, TypeError, AttributeError, KeyError):
        return None
    return promotion if _is_sound(promotion) else None


def _is_sound(promotion: Promotion) -> bool:
    evidence = promotion.evidence
    numbers = (
        *(evidence.val_loss, evidence.iwae_bound, evidence.iwae_bound_se),
        *(evidence.bdmc_gap, evidence.bdmc_gap_se),
    )
    texts = (promotion.alias, promotion.who, promotion.because, evidence.dataset_digest, evidence.evaluation)
    return (
        type(promotion.version) is int
        and type(promotion.from_version) in (int, type(None))
        and all(isinstance(text, str) for text in texts)
        and all(isinstance(flag, bool) for flag in (promotion.rollback, promotion.moved))
        and all(value is None or isinstance(value, float) for value in numbers)
    )

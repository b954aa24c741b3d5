"""What a model's records and aliases say together: which promotions were carried out, and where a rollback goes."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lossy_mlflow.checkpoints.evidence import Evidence
from lossy_mlflow.checkpoints.history import entries_of
from lossy_mlflow.checkpoints.lineage import ancestors
from lossy_mlflow.checkpoints.promotions import (
    VALUE_LIMIT,
    Promotion,
    as_tag_value,
    carried_out,
    next_key,
    promotions_in,
    time_of,
    under_way,
    version_before,
)
from lossy_mlflow.checkpoints.prune import stay_because
from lossy_mlflow.errors import UsageError

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
numbers = st.none() | st.floats(allow_nan=False, allow_infinity=False)
evidences = st.builds(Evidence, numbers, texts, numbers, numbers)


def _promotion(
    tags: dict[str, str], version: int, from_version: int | None = None, now: float = 1.8e9, **fields: Any
) -> Promotion:
    key = next_key(tags, now, "00ff00")
    made = Promotion(key, time_of(key), "champion", from_version, version, "me@here", "", Evidence())
    return dataclasses.replace(made, **fields)


@given(st.lists(st.tuples(st.floats(0, 3e10), texts, evidences, st.booleans(), st.booleans()), max_size=8))
def test_what_is_written_is_read_again_in_the_order_in_which_it_was_written(
    written: list[tuple[float, str, Evidence, bool, bool]],
) -> None:
    """Whatever the clocks say: the year 1970, or 2900."""
    tags: dict[str, str] = {"promotion.of.mine": "not ours", "note": "x"}
    promotions = []
    for clock, because, evidence, rollback, moved in written:
        promotion = _promotion(
            tags, 3, now=clock + 1e9, because=because, evidence=evidence, rollback=rollback, moved=moved
        )
        promotions.append(promotion)
        tags[promotion.key] = as_tag_value(promotion)
        assert len(promotion.key) <= 250
    assert promotions_in(tags) == (promotions, ["promotion.of.mine"])


@given(
    st.sampled_from(
        ["promotion.20260101T000000.000000Z-00ff00", "promotion.20269901T000000.000000Z-00ff00", "x"]
    ),
    st.recursive(
        st.none() | st.booleans() | st.integers() | texts,
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["format", *(field.name for field in dataclasses.fields(Promotion)), "x"]),
                inner | st.just(1),
                max_size=10,
            )
        ),
    ).map(json.dumps)
    | texts,
)
def test_a_tag_that_somebody_has_edited_stops_nothing(key: str, value: str) -> None:
    found, unreadable = promotions_in({key: value})
    assert len(found) + len(unreadable) == key.startswith("promotion.")
    entries_of(found, {}, ())


def test_a_reason_that_the_smallest_store_would_cut_is_refused() -> None:
    room = VALUE_LIMIT - len(as_tag_value(_promotion({}, 1)))
    assert len(as_tag_value(_promotion({}, 1, because="é" * room))) == VALUE_LIMIT
    with pytest.raises(UsageError, match="3 characters too long"):
        as_tag_value(_promotion({}, 1, because="é" * (room + 3)))


# What happens to an alias, one after the other: (what, version).
WHAT = ("promoted", "cut off before the move", "cut off after it", "moved by hand", "rolled back")
happenings = st.lists(st.tuples(st.sampled_from(WHAT), st.integers(1, 4)), max_size=12)


@given(happenings)
def test_the_history_tells_which_promotions_were_carried_out(happened: list[tuple[str, int]]) -> None:
    tags: dict[str, str] = {}
    stands: int | None = None
    truth = []
    for what, version in happened:
        if version == stands:
            continue
        if what in ("moved by hand", "rolled back"):
            # By hand to where a cut-off promotion wanted: nobody can tell the two apart.
            if truth and not truth[-1] and promotions_in(tags)[0][-1].version == version:
                continue
            stands = version
            continue
        promotion = _promotion(tags, version, stands, moved=what == "promoted")
        tags[promotion.key] = as_tag_value(promotion)
        truth.append(what != "cut off before the move")
        # A process that is cut off after the move has left no word of it: what follows tells, unless a hand is quicker.
        stands = version if truth[-1] else stands
        if what == "cut off after it":
            follower = _promotion(tags, 9, stands, moved=True)
            tags[follower.key] = as_tag_value(follower)
            truth.append(True)
            stands = 9
    promotions, _ = promotions_in(tags)
    assert carried_out(promotions, stands) == truth
    standing = {} if stands is None else {"champion": stands}
    entries = entries_of(promotions, standing, {1, 2, 3})
    assert [entry.carried_out for entry in entries] == truth[::-1]
    assert [entry.version for entry in entries] == [promotion.version for promotion in promotions][::-1]
    assert all(set(entry.gone) <= {4, 9} for entry in entries)
    expected = {"champion": promotions[-1].version} if truth and not truth[-1] else {}
    assert under_way(promotions, standing) == expected


@given(happenings)
def test_rollbacks_go_back_step_by_step_through_all_that_stood(happened: list[tuple[str, int]]) -> None:
    """Against a plain stack."""
    tags: dict[str, str] = {}
    stack: list[int] = []
    for what, version in happened:
        promotions, _ = promotions_in(tags)
        stands = stack[-1] if stack else None
        before = version_before(promotions, stands)
        assert before == (stack[-2] if len(stack) > 1 else None)
        if what == "rolled back" and before is not None:
            promotion = _promotion(tags, before, stands, rollback=True, moved=True)
            stack.pop()
        elif version == stands:
            continue
        else:
            promotion = _promotion(tags, version, stands, moved=what == "promoted")
            if what == "cut off before the move":
                tags[promotion.key] = as_tag_value(promotion)
                continue
            promotion = dataclasses.replace(promotion, moved=True)
            stack.append(version)
        tags[promotion.key] = as_tag_value(promotion)


versions = st.dictionaries(
    st.integers(1, 30), st.tuples(st.sampled_from(["", "", "pinned", "alias champion"]), st.floats(0, 100))
)


@given(versions, st.integers(0, 5), st.floats(0, 100))
def test_what_goes_is_held_by_nothing_and_neither_new_nor_young(
    found: dict[int, tuple[str, float]], keep: int, older_than: float
) -> None:
    held = {version: holder for version, (holder, _) in found.items()}
    ages = {version: age for version, (_, age) in found.items()}
    why = stay_because(held, ages, keep, older_than)
    goes = {version for version, reason in why.items() if not reason}
    newest = set(sorted(found, reverse=True)[:keep])
    assert goes == {
        version
        for version in found
        if not held[version] and version not in newest and ages[version] >= older_than
    }
    # After a crash the rest goes, and nothing besides.
    left = {
        version: holder for version, holder in held.items() if version not in list(goes)[: len(goes) // 2]
    }
    again = stay_because(left, ages, keep, older_than)
    assert {version for version, reason in again.items() if not reason} == goes & left.keys()


@given(
    st.dictionaries(
        st.sampled_from("abcd"),
        st.dictionaries(st.sampled_from(["parent_version", "copied_from"]), st.sampled_from("abcde")),
    )
)
def test_each_ancestor_is_named_once_and_circles_end(tags: dict[str, dict[str, str]]) -> None:
    found = ancestors("a", tags.get("a", {}), tags.get)
    names = [item.version for item in found]
    assert len(names) == len(set(names))
    assert "a" not in names
    reachable, todo = set(), ["a"]
    while todo:
        for origin in tags.get(todo.pop(), {}).values():
            if origin not in reachable:
                reachable.add(origin)
                todo.append(origin)
    assert set(names) == reachable - {"a"}
    assert {item.version for item in found if item.state == "gone"} == set(names) - tags.keys()

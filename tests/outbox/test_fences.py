"""Whose a run is, for any order in which attempts of several machines take it up and deliver."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given

from lossy_mlflow.outbox.fences import Fence, destination, in_order, judge


def _fence(name: str, before: str, time: int, owner: str = "me") -> Fence:
    return Fence(name, before, "attempt", owner, time)


def test_a_first_attempt_takes_the_run_and_its_own_successor_goes_on() -> None:
    first, second = _fence("a", "", 1), _fence("b", "a", 2)
    verdicts, holder = judge([first], {}, "", "key")
    assert (verdicts, holder) == ({"a": ""}, "a")
    assert judge([first, second], verdicts, "a", "key") == ({"a": "", "b": ""}, "b")
    # Both were made while the server was away.
    assert judge([first, second], {}, "", "key") == ({"a": "", "b": ""}, "b")
    # The same, with the tag set already: by another sender, or before a crash kept the verdicts from being written down.
    assert judge([first, second], {}, "b", "key") == ({"a": "", "b": ""}, "b")


def test_who_comes_too_late_gets_a_run_of_its_own_and_so_do_its_successors() -> None:
    late, later = _fence("a", "x", 1), _fence("b", "a", 2)
    verdicts, holder = judge([late, later], {}, "somebody else", "key")
    assert holder == "somebody else"
    assert verdicts == {"a": "key-a", "b": "key-a"}


def test_who_had_the_run_and_lost_it_keeps_what_was_delivered_and_loses_the_rest() -> None:
    fence = _fence("a", "", 5)
    verdicts, _ = judge([fence], {"a": ""}, "somebody else", "key")
    assert verdicts == {"a": "key-a"}
    assert destination([fence], verdicts, "me", 4) == ""
    assert destination([fence], verdicts, "me", 5) == "key-a"
    assert destination([fence], verdicts, "another process", 9) == ""


def test_a_server_restored_from_a_backup_is_taken_again() -> None:
    assert judge([_fence("b", "a", 2)], {"b": ""}, "a", "key") == ({"b": ""}, "b")


@given(st.permutations(range(5)), st.lists(st.integers(0, 3), min_size=5, max_size=5), st.booleans())
def test_attempts_stand_in_their_order_whatever_the_clocks_say(
    order: list[int], times: list[int], with_others: bool
) -> None:
    line = [_fence(str(n), str(n - 1) if n else "unknown here", times[n]) for n in range(5)]
    # A process that the attempt has started writes under its name as well.
    others = [_fence(fence.name, fence.before, fence.time, "its child") for fence in line if with_others]
    found = in_order([line[n] for n in order] + others)
    assert [fence for fence in found if fence.owner == "me"] == line
    assert judge(found, {}, "", "key") == ({str(n): "" for n in range(5)}, "4")
    lost, _ = judge(found, {}, "somebody else", "key")
    assert {
        destination(found, lost, owner, 9) for owner in ("me", "its child") if owner == "me" or with_others
    } == {"key-0"}


@st.composite
def _histories(draw: st.DrawFn) -> list[tuple[str, int, bool]]:
    """Attempts in the order in which they were begun: who by, when by its clock, and whether that machine saw the server then."""
    attempt = st.tuples(st.sampled_from("ABC"), st.integers(0, 5), st.booleans())
    return draw(st.lists(attempt, min_size=1, max_size=8))


@given(_histories(), st.data())
def test_at_any_time_one_attempt_has_the_run_and_no_verdict_is_taken_back(
    history: list[tuple[str, int, bool]], data: st.DataObject
) -> None:
    tag = ""
    fences: dict[str, list[Fence]] = {"A": [], "B": [], "C": []}
    verdicts: dict[str, dict[str, str]] = {"A": {}, "B": {}, "C": {}}
    for turn, (machine, time, online) in enumerate(history):
        own = fences[machine]
        before = tag if online or not own else own[-1].name
        own.append(_fence(f"{machine}{turn}", before, time, machine))
        for delivering in [machine] if online else data.draw(st.lists(st.sampled_from("ABC"), max_size=2)):
            earlier = verdicts[delivering]
            verdicts[delivering], tag = judge(fences[delivering], earlier, tag, delivering)
            lost = {name: to for name, to in earlier.items() if to}
            assert lost.items() <= verdicts[delivering].items()
            # Delivering the same again changes nothing.
            assert judge(fences[delivering], verdicts[delivering], tag, delivering) == (
                verdicts[delivering],
                tag,
            )
            assert verdicts[delivering].keys() == {fence.name for fence in fences[delivering]}

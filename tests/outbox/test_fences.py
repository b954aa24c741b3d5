"""Whose a run is, for any order in which attempts of several machines take it up and deliver."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given

from lossy_mlflow.outbox.fences import Fence, destination, judge


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


@st.composite
def _histories(draw: st.DrawFn) -> list[tuple[str, str, bool]]:
    """Attempts in the order in which they were begun: who by, and whether that machine saw the server then."""
    return draw(
        st.lists(st.tuples(st.sampled_from("ABC"), st.just(""), st.booleans()), min_size=1, max_size=8)
    )


@given(_histories(), st.data())
def test_at_any_time_one_attempt_has_the_run_and_no_verdict_is_taken_back(
    history: list[tuple[str, str, bool]], data: st.DataObject
) -> None:
    tag = ""
    fences: dict[str, list[Fence]] = {"A": [], "B": [], "C": []}
    verdicts: dict[str, dict[str, str]] = {"A": {}, "B": {}, "C": {}}
    for time, (machine, _, online) in enumerate(history):
        own = fences[machine]
        before = tag if online or not own else own[-1].name
        own.append(_fence(f"{machine}{time}", before, time, machine))
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

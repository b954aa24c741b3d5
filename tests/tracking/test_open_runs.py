"""Whether anybody can be at work on a run: what holds for every run and every moment."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lossy_mlflow.tracking.identity import ENDED_STATES, HEARTBEAT_LIMIT_S, OPEN_STATES
from lossy_mlflow.tracking.open_runs import ENVIRONMENT_LIMIT_S, OpenRun, why_dead

HERE, ELSEWHERE = "here:1", "there:2"
NOW = 1_000_000.0

ages = st.floats(-100, 10 * ENVIRONMENT_LIMIT_S)
limits = st.none() | st.floats(60, 10 * ENVIRONMENT_LIMIT_S)
open_runs = st.builds(
    OpenRun,
    run_id=st.just("id"),
    label=st.just("label"),
    status=st.sampled_from(OPEN_STATES),
    begun=st.booleans(),
    owner=st.sampled_from([HERE, ELSEWHERE, ""]),
    attempt=st.sampled_from(["", "an attempt"]),
    last_sign=ages.map(lambda age: NOW - age),
)


def _why(
    run: OpenRun, lock_is_free: bool = True, older_than: float | None = None, now: float = NOW
) -> str | None:
    return why_dead(run, now=now, here=HERE, lock_is_free=lock_is_free, older_than=older_than)


@given(open_runs, st.booleans(), limits, st.sampled_from(ENDED_STATES))
def test_what_is_closed_is_never_closed_again(
    run: OpenRun, free: bool, limit: float | None, state: str
) -> None:
    assert _why(replace(run, status=state), free, limit) is None


@given(open_runs, limits)
def test_a_run_that_a_process_of_this_machine_holds_lives_however_old_its_heartbeat(
    run: OpenRun, limit: float | None
) -> None:
    assert _why(replace(run, owner=HERE), False, limit) is None


@given(open_runs, st.booleans(), limits)
def test_a_young_heartbeat_of_another_machine_is_never_touched(
    run: OpenRun, free: bool, limit: float | None
) -> None:
    assume(NOW - run.last_sign < (HEARTBEAT_LIMIT_S if limit is None else limit))
    assert _why(replace(run, owner=ELSEWHERE), free, limit) is None


@given(open_runs, limits)
def test_what_an_attempt_of_this_machine_has_left_is_dead_at_once(run: OpenRun, limit: float | None) -> None:
    reason = _why(replace(run, owner=HERE, attempt="an attempt"), True, limit)
    assert reason is not None
    assert "its process on here has died" in reason


@given(open_runs)
def test_a_run_that_is_being_made_here_is_not_taken_for_dead(run: OpenRun) -> None:
    """Between its making and its lock no attempt stands in it."""
    assume(NOW - run.last_sign < HEARTBEAT_LIMIT_S)
    assert _why(replace(run, owner=HERE, attempt="")) is None


@given(open_runs, st.booleans(), limits, st.floats(0, 1e6))
def test_what_is_dead_stays_dead(run: OpenRun, free: bool, limit: float | None, later: float) -> None:
    if _why(run, free, limit) is not None:
        assert _why(run, free, limit, NOW + later) is not None


@pytest.mark.parametrize(
    ("begun", "limit"), [(True, HEARTBEAT_LIMIT_S), (False, ENVIRONMENT_LIMIT_S)], ids=["begun", "not begun"]
)
def test_the_limit_is_where_it_says(begun: bool, limit: float) -> None:
    run = OpenRun("id", "label", "RUNNING", begun, ELSEWHERE if begun else "", "", NOW - limit)
    reason = _why(run)
    assert reason is not None
    assert f"{limit:.0f} s" in reason
    assert ("last seen on there" in reason) == begun
    assert _why(replace(run, last_sign=run.last_sign + 1)) is None
    assert _why(run, older_than=limit + 1) is None
    assert _why(replace(run, last_sign=NOW - 61), older_than=60) is not None


def test_a_run_that_waits_in_a_queue_is_left_there() -> None:
    assert _why(OpenRun("id", "label", "SCHEDULED", False, "", "", NOW - 1e6)) is None

"""What starting a label means: the whole table."""

import itertools

import pytest

from lossy_mlflow.tracking.identity import HEARTBEAT_LIMIT_S, KnownRun, Start, decide

NOW = 1_000_000.0
HERE, ELSEWHERE = "here:1", "there:2"


def _run(status: str, owner: str, age: float, sha: str = "same", hparam_set: str = "set") -> KnownRun:
    return KnownRun("id", status, hparam_set, sha, owner, NOW - age)


def _decide(*earlier: KnownRun, overwrite: bool = False) -> Start:
    return decide(earlier, hparam_set="set", sha256="same", overwrite=overwrite, owner=HERE, now=NOW).start


def test_a_label_without_runs_is_new() -> None:
    assert _decide() is Start.NEW
    assert _decide(overwrite=True) is Start.NEW


@pytest.mark.parametrize(
    ("status", "owner", "young", "same_tree", "overwrite"),
    itertools.product(
        ["RUNNING", "FINISHED", "FAILED", "KILLED"],
        [HERE, ELSEWHERE],
        [True, False],
        [True, False],
        [True, False],
    ),
)
def test_every_state_of_the_newest_run(
    status: str, owner: str, young: bool, same_tree: bool, overwrite: bool
) -> None:
    age = 1 if young else HEARTBEAT_LIMIT_S + 1
    found = _decide(_run(status, owner, age, "same" if same_tree else "other"), overwrite=overwrite)
    if status == "RUNNING" and owner == ELSEWHERE and young:
        expected = Start.ALIVE_ELSEWHERE
    elif overwrite:
        expected = Start.NEW
    elif not same_tree:
        expected = Start.OTHER_TREE
    else:
        expected = Start.FINISHED if status == "FINISHED" else Start.RESUME
    assert found is expected


def test_another_set_that_has_the_label_is_told_apart() -> None:
    assert _decide(_run("FINISHED", HERE, 1, hparam_set="other")) is Start.OTHER_SET


def test_only_the_newest_run_counts() -> None:
    assert _decide(_run("FINISHED", HERE, 1), _run("RUNNING", ELSEWHERE, 1)) is Start.FINISHED

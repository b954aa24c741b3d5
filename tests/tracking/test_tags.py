"""Tags are text that anybody can edit."""

from __future__ import annotations

import math

import mlflow
from hypothesis import given
from hypothesis import strategies as st

from lossy_mlflow.tracking.open_runs import open_run
from lossy_mlflow.tracking.run_list import list_runs
from lossy_mlflow.tracking.runs import known_run
from lossy_mlflow.tracking.tags import number, whole_number
from tests.conftest import Workplace


@given(st.text() | st.floats().map(repr) | st.integers().map(str))
def test_any_text_is_a_finite_number_or_none(text: str) -> None:
    for read in (number, whole_number):
        found = read({"key": text}, "key")
        assert found is None or math.isfinite(found)
        assert read({}, "key") is None


@given(st.floats(allow_nan=False, allow_infinity=False), st.integers())
def test_a_number_is_read_as_it_was_written(real: float, whole: int) -> None:
    assert number({"key": repr(real)}, "key") == real
    assert whole_number({"key": str(whole)}, "key") == whole


def test_a_heartbeat_that_is_no_number_is_none(here: Workplace) -> None:
    client = mlflow.MlflowClient()
    tags = {"kind": "train", "label": "x", "owner": "there:1"}
    for heartbeat in ("x", "", "inf", "nan"):
        run_id = client.create_run("0", tags=tags | {"heartbeat": heartbeat}).info.run_id
        run = client.get_run(run_id)
        assert not known_run(run).lives(run.info.start_time / 1000)
        assert open_run(run).last_sign == run.info.start_time / 1000
    assert [run.heartbeat_age_s for run in list_runs().runs] == [None] * 4

import math

from hypothesis import given
from hypothesis import strategies as st

from lossy_mlflow.checkpoints.versions import best_and_last

losses = st.dictionaries(st.integers(1, 500), st.none() | st.floats(allow_nan=True), min_size=1)


@given(losses)
def test_best_is_the_lowest_real_loss_and_the_earliest_of_equal_ones(found: dict[int, float | None]) -> None:
    best, last = best_and_last(found)
    assert last == max(found)
    real = {epoch: loss for epoch, loss in found.items() if loss is not None and not math.isnan(loss)}
    if not real:
        assert best is None
    else:
        assert best is not None
        assert all(
            real[best] < loss or (real[best] == loss and best <= epoch) for epoch, loss in real.items()
        )

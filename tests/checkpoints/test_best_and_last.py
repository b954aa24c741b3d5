import math

from hypothesis import given
from hypothesis import strategies as st

from lossy_mlflow.checkpoints.versions import best_and_last

losses = st.lists(
    st.tuples(st.integers(1, 500), st.floats(allow_nan=True)), min_size=1, unique_by=lambda item: item[0]
)


@given(losses)
def test_best_is_the_lowest_real_loss_and_the_earliest_of_equal_ones(found: list[tuple[int, float]]) -> None:
    best, last = best_and_last(found)
    assert last == max(epoch for epoch, _ in found)
    real = {epoch: loss for epoch, loss in found if not math.isnan(loss)}
    if not real:
        assert best is None
    else:
        assert best is not None
        assert all(
            real[best] < loss or (real[best] == loss and best <= epoch) for epoch, loss in real.items()
        )

"""A training that was stopped and resumed ends bit for bit like one that was not."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import nn

from lossy_mlflow.errors import ConflictError
from lossy_mlflow.training import (
    Stopped,
    load_matching,
    load_state_tensors,
    make_optimizer,
    state_tensors,
    train_epochs,
)

MODELS = ["linear_vae", "deep_vae", "dcgan_vae", "dropping"]


def whole(build, name, images, settings):
    """(numbers of each epoch, state at the end) of a training that nothing interrupts."""
    model = build(name)
    optimizer = make_optimizer(model, settings.learning_rate)
    results = train_epochs(model, optimizer, images, images[:30], settings)
    return [(result.train_loss, result.val_loss) for result in results], state_tensors(model, optimizer)


@pytest.mark.parametrize("name", MODELS)
@given(st.integers(0, 4), st.integers(1, 6))
@hypothesis_settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_stopped_anywhere_and_resumed_it_ends_the_same(name, build, images, settings, stop_epoch, stop_batch):
    """`stop_epoch` whole epochs, then `stop_batch` batches; the state goes through a file's bytes."""
    model, n_asked = build(name), 0
    optimizer = make_optimizer(model, settings.learning_rate)
    stored = safetensors.torch.save(state_tensors(model, optimizer))
    numbers = []

    def should_stop() -> bool:
        nonlocal n_asked
        n_asked += 1
        return n_asked == 6 * stop_epoch + stop_batch

    try:
        for result in train_epochs(model, optimizer, images, images[:30], settings, 0, should_stop):
            numbers.append((result.train_loss, result.val_loss))
            stored = safetensors.torch.save(state_tensors(model, optimizer))
    except Stopped:
        assert len(numbers) == stop_epoch
    # Other weights, which must all be replaced; and other numbers in between, which must not matter.
    again = build(name, seed=99)
    torch.rand(3)
    optimizer = make_optimizer(again, settings.learning_rate)
    load_state_tensors(again, optimizer, safetensors.torch.load(stored))
    rest = train_epochs(again, optimizer, images, images[:30], settings, len(numbers))
    numbers += [(result.train_loss, result.val_loss) for result in rest]
    expected_numbers, expected_state = whole(build, name, images, settings)
    assert numbers == expected_numbers
    state = state_tensors(again, optimizer)
    assert state.keys() == expected_state.keys()
    assert [key for key in state if not torch.equal(state[key], expected_state[key])] == []


@pytest.mark.parametrize("left_out", ["optimizer.", "model."])
def test_without_a_part_of_the_state_it_ends_otherwise(left_out, build, images, settings):
    """The test above would notice."""
    model = build("dcgan_vae")
    optimizer = make_optimizer(model, settings.learning_rate)
    next(train_epochs(model, optimizer, images, images[:30], settings))
    state = state_tensors(model, optimizer)
    again = build("dcgan_vae")
    optimizer = make_optimizer(again, settings.learning_rate)
    fresh = {key: value for key, value in state_tensors(again, optimizer).items() if key.startswith(left_out)}
    kept = {key: value for key, value in state.items() if not key.startswith(left_out)}
    load_state_tensors(again, optimizer, kept | fresh)
    *_, last = train_epochs(again, optimizer, images, images[:30], settings, 1)
    assert last.val_loss != whole(build, "dcgan_vae", images, settings)[0][-1][1]


def test_the_names_are_the_models_own(build, images, settings):
    names = whole(build, "linear_vae", images, settings)[1].keys()
    parameters = [
        "encoder.weight",
        "encoder.bias",
        "decoder.x_logvar",
        "decoder.net.weight",
        "decoder.net.bias",
    ]
    of_optimizer = {
        f"optimizer.{name}.{key}" for name in parameters for key in ("step", "exp_avg", "exp_avg_sq")
    }
    assert names == {f"model.{name}" for name in parameters} | of_optimizer


def test_they_are_copies(build, images, settings):
    model = build("dcgan_vae")
    optimizer = make_optimizer(model, settings.learning_rate)
    epochs = train_epochs(model, optimizer, images, images[:30], settings)
    next(epochs)
    state = state_tensors(model, optimizer)
    kept = {key: value.clone() for key, value in state.items()}
    next(epochs)
    assert all(torch.equal(value, kept[key]) for key, value in state.items())
    later = state_tensors(model, optimizer)
    assert not any(torch.equal(value, kept[key]) for key, value in later.items())


def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(build, images, settings):
    _, state = whole(build, "linear_vae", images, settings)
    model = build("linear_vae")
    optimizer = make_optimizer(model, 1e-2)
    before = state_tensors(model, optimizer)

    def refusal(tensors: dict[str, torch.Tensor]) -> str:
        with pytest.raises(ConflictError) as refused:
            load_state_tensors(model, optimizer, tensors)
        after = state_tensors(model, optimizer)
        assert after.keys() == before.keys()
        assert all(torch.equal(after[key], before[key]) for key in after)
        return refused.value.what

    said = "The stored training state doesn't fit this model: "
    lacking = {key: value for key, value in state.items() if key != "model.encoder.bias"}
    assert refusal(lacking) == said + "model.encoder.bias: stored nothing, the model has (6,)"
    lacking = {key: value for key, value in state.items() if key != "optimizer.encoder.bias.exp_avg_sq"}
    assert refusal(lacking) == said + "optimizer.encoder.bias.exp_avg_sq: stored nothing, the model has (6,)"
    surplus = state | {"model.other": torch.zeros(2)}
    assert refusal(surplus) == said + "model.other: stored (2,), the model has nothing"
    reshaped = state | {"optimizer.encoder.bias.exp_avg": torch.zeros(5)}
    assert refusal(reshaped) == said + "optimizer.encoder.bias.exp_avg: stored (5,), the model has (6,)"
    unknown = state | {"best.x": torch.zeros(5)}
    assert refusal(unknown) == said + "best.x: stored (5,), the model has nothing"
    other = build("deep_vae")
    assert refusal(state_tensors(other, make_optimizer(other, 1.0))).endswith("the model has nothing ...")


def test_what_matches_is_taken_and_the_rest_is_kept():
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    kept = module[1].weight.detach().clone()
    given = {
        "0.weight": torch.ones(3, 2),
        "0.bias": torch.ones(3),
        "1.weight": torch.ones(2, 3),
        "x": torch.ones(1),
    }
    matched = load_matching(module, given)
    assert matched.taken == ["0.weight", "0.bias"]
    assert matched.kept == ["1.weight", "1.bias"]
    assert torch.equal(module[0].weight, torch.ones(3, 2))
    assert torch.equal(module[1].weight, kept)
    given["0.bias"].zero_()
    assert torch.equal(module[0].bias, torch.ones(3))

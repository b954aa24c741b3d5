"""The validation loss moves with the weights alone."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from lossy_mlflow.training import generator_for, make_optimizer, train_epochs, validation_loss


@pytest.mark.parametrize("name", ["deep_vae", "dcgan_vae", "dropping"])
def test_it_is_the_same_number_each_time_and_changes_nothing(name, build, images, settings):
    model = build(name).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    generator_state = torch.random.get_rng_state()
    losses = {validation_loss(model, images, settings).item() for _ in range(3)}
    assert len(losses) == 1
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), generator_state)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_it_is_what_the_last_epoch_reports(build, images, settings):
    model = build("dcgan_vae")
    *_, last = train_epochs(model, make_optimizer(model, 1e-2), images, images[:30], settings)
    assert validation_loss(model, images[:30], settings).item() == last.val_loss


def test_it_is_the_mean_of_the_losses_written_out(build, images, settings):
    model = build("deep_vae").eval()
    generator = generator_for(settings.seed, "validation")
    total = sum(len(part) * model.loss(part, generator)[0].item() for part in images.split(20))
    assert validation_loss(model, images, settings).item() == pytest.approx(total / 70, rel=1e-6)


@pytest.mark.parametrize(("n_val_batch", "n_images"), [(1, 20), (3, 60), (4, 70), (9, 70)])
def test_n_val_batch_limits_the_images(n_val_batch, n_images, build, images, settings):
    model = build("deep_vae").eval()
    limited = validation_loss(model, images, dataclasses.replace(settings, n_val_batch=n_val_batch))
    assert limited == validation_loss(model, images[:n_images], settings)
    assert (limited == validation_loss(model, images, settings)) == (n_images == 70)

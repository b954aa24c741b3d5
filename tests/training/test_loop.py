"""What an epoch is, what it reports, and how a training ends."""

from __future__ import annotations

import dataclasses
import math
import os
import platform
import re
import subprocess
import sys

import pytest
import torch
from torch import nn

from lossy_mlflow.errors import UsageError
from lossy_mlflow.training import NonFiniteLossError, Settings, Stopped, make_optimizer, train_epochs

MODELS = ["linear_vae", "deep_vae", "dcgan_vae", "dropping"]


class Recording(nn.Module):
    """Remembers what it was shown; its loss is the batch's mean pixel, whatever the weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen: list[torch.Tensor] = []
        self.noise: list[torch.Tensor] = []

    def loss(self, batch, generator):
        self.noise.append(torch.rand(3, generator=generator))
        self.seen.append(batch)
        return batch.mean() + 0 * self.weight, {"largest": batch.max()}


def run(model, images, settings, val=None, **options):
    optimizer = make_optimizer(model, settings.learning_rate)
    val = images[:30] if val is None else val
    return list(train_epochs(model, optimizer, images, val, settings, **options))


def test_there_are_as_many_epochs_as_asked_for(build, images, settings):
    model = build("deep_vae")
    results = run(model, images, settings)
    assert [result.epoch for result in results] == [1, 2, 3, 4]
    assert {result.images for result in results} == {70}
    assert all(result.seconds > 0 for result in results)
    assert not model.training
    assert not run(model, images, settings, start_epoch=4)


def test_a_model_learns(build, images, settings):
    results = run(build("deep_vae"), images, settings)
    assert results[-1].train_loss < results[0].train_loss
    assert results[-1].val_loss < results[0].val_loss


def test_every_image_is_seen_once_an_epoch_in_a_new_order(images, settings):
    model = Recording()
    run(model, images, dataclasses.replace(settings, epochs=2))
    first, second = torch.cat(model.seen[:4]), torch.cat(model.seen[6:10])
    assert [len(batch) for batch in model.seen[:4]] == [20, 20, 20, 10]
    for order in (first, second):
        assert torch.equal(order.sort(dim=0).values, images.sort(dim=0).values)
    assert not torch.equal(first, second)
    assert not torch.equal(first, images)


def test_noise_differs_from_batch_to_batch_and_epoch_to_epoch_but_not_in_validation(images, settings):
    model = Recording()
    run(model, images, dataclasses.replace(settings, epochs=2))
    training = model.noise[:4] + model.noise[6:10]
    assert len({tuple(noise.tolist()) for noise in training}) == 8
    validation = [torch.stack(model.noise[start : start + 2]) for start in (4, 10)]
    assert torch.equal(*validation)


def test_means_are_over_images_and_not_over_batches(images, settings):
    """The last batch is half as large as the others: it counts half."""
    [result] = run(Recording(), images, dataclasses.replace(settings, epochs=1))
    assert result.train_loss == pytest.approx(images.mean().item(), rel=1e-6)
    assert result.val_loss == pytest.approx(images[:30].mean().item(), rel=1e-6)
    model = Recording()
    [result] = run(model, images, dataclasses.replace(settings, epochs=1))
    largest = sum(len(batch) * batch.max().item() for batch in model.seen[:4]) / 70
    assert result.terms == {"largest": pytest.approx(largest, rel=1e-6)}


@pytest.mark.parametrize("batch_size", [10**18, 10**30])
def test_a_batch_size_beyond_all_images_is_that_of_all_images(batch_size, build, images, settings):
    """The mean over images subtracts what the last batch lacks: a batch of 10^18 would leave no digit of it."""
    whole = dataclasses.replace(settings, batch_size=len(images), n_val_batch=3)
    beyond = dataclasses.replace(whole, batch_size=batch_size)
    assert numbers(run(build("deep_vae"), images, beyond)) == numbers(run(build("deep_vae"), images, whole))


class Telling(Recording):
    """Gives its term as `told`, a function of a tensor and of the batch, makes of it."""

    def __init__(self, told) -> None:
        super().__init__()
        self.told = told

    def loss(self, batch, generator):
        loss, terms = super().loss(batch, generator)
        return loss, self.told(terms["largest"], batch)


def test_a_term_may_be_a_float(images, settings):
    as_tensor, as_float, as_numpy = (
        run(Telling(told), images, settings)
        for told in (
            lambda term, _: {"largest": term},
            lambda term, _: {"largest": term.item()},
            lambda term, _: {"largest": term.numpy()[()]},
        )
    )
    assert numbers(as_tensor) == numbers(as_float) == numbers(as_numpy)


def test_terms_that_change_from_batch_to_batch_have_no_mean(images, settings):
    model = Telling(lambda term, batch: {"largest": term} if len(batch) == 20 else {})
    with pytest.raises(UsageError, match="the term 'largest' for 3 of 4 batches"):
        run(model, images, settings)


def test_the_terms_of_a_vae_sum_to_its_loss(build, images, settings):
    for result in run(build("deep_vae"), images, settings):
        assert set(result.terms) == {"negative_log_likelihood", "kl"}
        assert sum(result.terms.values()) == pytest.approx(result.train_loss, abs=1e-4)


def numbers(results):
    return [(result.train_loss, result.val_loss, result.terms) for result in results]


@pytest.mark.parametrize("name", MODELS)
def test_a_seed_gives_the_numbers_whatever_the_caller_draws(name, build, images, settings):
    first = run(build(name), images, settings)
    model = build(name)
    again = []
    for result in train_epochs(model, make_optimizer(model, 1e-2), images, images[:30], settings):
        torch.rand(result.epoch)
        again.append(result)
    assert numbers(first) == numbers(again)
    other = run(build(name), images, dataclasses.replace(settings, seed=4))
    assert numbers(first) != numbers(other)


@pytest.mark.parametrize("name", MODELS)
def test_the_callers_random_numbers_are_none_of_ours(name, build, images, settings):
    before = torch.random.get_rng_state()
    run(build(name), images, settings)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_loss_that_is_no_number_ends_the_training(build, images, settings):
    model = build("linear_vae")
    settings = dataclasses.replace(settings, learning_rate=1e20)
    optimizer = make_optimizer(model, settings.learning_rate)
    with pytest.raises(NonFiniteLossError) as ended:
        next(train_epochs(model, optimizer, images, images, settings))
    said = r"The train_loss of epoch 1 is (nan|inf) \(learning rate 1e\+20\); of its terms, negative_log_likelihood is \1"
    assert re.match(said, ended.value.what)


def test_so_does_a_validation_loss(build, images, settings):
    """An image that is not a number is met in validation alone."""
    val = images[:30].clone()
    val[29, 5] = math.nan
    with pytest.raises(NonFiniteLossError, match=r"The val_loss of epoch 1 is nan \(learning rate 0.01\)"):
        run(build("linear_vae"), images, settings, val)


@pytest.mark.parametrize("asked", [1, 3, 5, 6, 7, 11])
def test_a_stop_is_asked_for_before_each_batch(asked, build, images, settings):
    """Four batches of training and two of validation make an epoch: a stop in either gives no result."""
    model, answers, results = Recording(), iter(range(1, 100)), []
    optimizer = make_optimizer(model, settings.learning_rate)
    epochs = train_epochs(model, optimizer, images, images[:30], settings, 0, lambda: next(answers) == asked)
    with pytest.raises(Stopped):
        results.extend(epochs)
    assert len(model.seen) == asked - 1
    assert len(results) == (asked - 1) // 6


PAGING = """
import resource, torch
from lossy_mlflow.models.vae import GaussianDecoder, Vae
from lossy_mlflow.training import Settings, make_optimizer, train_epochs

encoder = torch.nn.Sequential(*(torch.nn.Linear(1000, 1000) for _ in range(6)))
model = Vae(encoder, GaussianDecoder(torch.nn.Linear(500, 1000), 0.1, learned=True))
images = torch.rand(20, 1000)
def faults(_): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
counts = list(map(faults, train_epochs(model, make_optimizer(model, 1e-4), images, images, Settings(10, 5, 1e-4, 1))))
print(counts[-1] - counts[1])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators page in their own way")
@pytest.mark.parametrize(("fixed_threshold", "paged_in"), [(None, False), ("131072", True)])
def test_gradients_are_not_paged_in_at_every_step(fixed_threshold, paged_in):
    """26 MB of them, 6500 pages a step; a threshold that is fixed from outside shows that it is noticed."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    environment["OMP_NUM_THREADS"] = "1"
    if fixed_threshold:
        environment["MALLOC_MMAP_THRESHOLD_"] = fixed_threshold
    done = subprocess.run(
        [sys.executable, "-c", PAGING], env=environment, capture_output=True, text=True, check=True
    )
    pages_a_step = int(done.stdout) / 6
    assert (pages_a_step > 1500) == paged_in, pages_a_step


def test_a_model_without_a_loss_is_refused(images, settings):
    with pytest.raises(UsageError, match=r"Linear can't be trained: it has no loss\(batch, generator\)"):
        run(nn.Linear(2, 2), images, settings)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("batch_size", 0, "batch_size must be at least 1, it is 0."),
        ("epochs", -1, "epochs must be at least 1, it is -1."),
        ("n_val_batch", 0, "n_val_batch must be at least 1, it is 0."),
        ("learning_rate", 0.0, "learning_rate must be a finite number above 0, it is 0.0."),
        ("learning_rate", math.nan, "learning_rate must be a finite number above 0, it is nan."),
        ("learning_rate", math.inf, "learning_rate must be a finite number above 0, it is inf."),
    ],
)
def test_settings_that_mean_nothing_are_refused(field, value, said):
    with pytest.raises(UsageError) as refused:
        Settings(**({"batch_size": 1, "epochs": 1, "learning_rate": 1.0, "seed": 0} | {field: value}))
    assert refused.value.what == said

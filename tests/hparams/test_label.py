import shlex

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lossy_mlflow.errors import ConflictError, LossyError, UsageError
from lossy_mlflow.hparams import Hparam, register_hparams, run_label, train_command


def register(name):
    def function():
        return Hparam()

    function.__name__ = function.__qualname__ = name
    register_hparams(function)


@pytest.mark.parametrize(
    ("e_name", "label"),
    [
        ("", "vae10_digits"),
        ("try2", "vae10_digits_try2"),
        ("lr 1e-3, é $(x)", "vae10_digits_lr 1e-3, é $(x)"),
        ("it's", "vae10_digits_it's"),
        ('6"', 'vae10_digits_6"'),
        ("-", "vae10_digits_-"),
        ("x" * 237, "vae10_digits_" + "x" * 237),
    ],
)
def test_the_label_joins_set_and_e_name(e_name, label):
    assert run_label("vae10_digits", e_name) == label


@pytest.mark.parametrize(
    "e_name",
    ["a/b", "a:b", "a@b", "a\nb", "\0", "a\x7f", "\ud800", " a", "a ", " ", "\u00a0", "'\"", "x" * 238],
)
def test_an_e_name_that_the_registry_refuses_is_refused(e_name):
    with pytest.raises(UsageError):
        run_label("vae10_digits", e_name)


@pytest.mark.parametrize(
    ("registered", "hparam_set", "e_name"),
    [
        ("vae10_digits_big", "vae10_digits", "big"),
        ("vae10_digits_big", "vae10_digits", "big_2"),
        ("vae10", "vae10_digits", "try2"),
        ("vae10_digits_big", "vae10_digits_big", "try2"),
    ],
)
def test_a_label_that_two_sets_could_mean_is_refused(registered, hparam_set, e_name):
    register(registered)
    with pytest.raises(ConflictError):
        run_label(hparam_set, e_name)


def test_a_set_whose_name_only_begins_alike_is_no_conflict():
    register("vae10_digits_bigger")
    register("vae1")
    assert run_label("vae10_digits", "big") == "vae10_digits_big"


def test_without_an_e_name_the_set_of_that_name_is_meant():
    register("vae10_digits_big")
    assert run_label("vae10_digits_big") == "vae10_digits_big"


@settings(deadline=None)
@given(st.sampled_from(["vae10_mnist", "dcvae100_cifar10"]), st.text(max_size=30), st.text(max_size=30))
def test_different_e_names_never_share_a_label(hparam_set, one, other):
    labels = []
    for e_name in (one, other):
        try:
            labels.append(run_label(hparam_set, e_name))
        except LossyError:
            return
    assert (labels[0] == labels[1]) == (one == other)


@settings(deadline=None)
@given(st.text(max_size=30))
def test_the_command_that_trains_a_label_gives_that_label(e_name):
    try:
        label = run_label("vae10_mnist", e_name)
    except LossyError:
        return
    program, verb, hparam_set, *rest = shlex.split(train_command(label))
    assert (program, verb) == ("lossy", "train")
    given_e_name = "".join(word.removeprefix("--e-name=") for word in rest)
    assert run_label(hparam_set, given_e_name) == label


def test_no_command_is_made_up_for_a_name_that_no_set_gives():
    for name in ("nothing", "vae10", "vae10_mnist_", "vae10_mnist_a/b"):
        assert train_command(name) is None


def test_the_command_names_the_file_of_a_set_of_the_users_own():
    register("mine")
    assert train_command("mine_2") == f"lossy train mine --e-name=2 --user-code={shlex.quote(__file__)}"

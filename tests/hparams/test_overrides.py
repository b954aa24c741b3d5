import pytest

from lossy_mlflow.errors import UsageError
from lossy_mlflow.hparams import Hparam, apply_overrides, freeze, read_assignments

TREE = freeze(
    Hparam(
        name="a",
        learning_rate=1e-3,
        load_checkpoint_name=None,
        model_train=Hparam(epochs=200, learned=True, hidden_sizes=[256], empty=Hparam()),
    )
)


def overridden(key, value):
    tree = apply_overrides(TREE, {key: value})
    for name in key.split("."):
        tree = getattr(tree, name)
    return tree


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("model_train.epochs", "5", 5),
        ("model_train.epochs", 5, 5),
        ("learning_rate", "1e-4", 1e-4),
        ("learning_rate", "1", 1.0),
        ("learning_rate", 1, 1.0),
        ("model_train.learned", "false", False),
        ("model_train.hidden_sizes", "[8, 8]", [8, 8]),
        ("model_train.hidden_sizes", ["a", None], ["a", None]),
        ("name", "deep vae", "deep vae"),
        ("name", "123", "123"),
        ("name", "null", "null"),
        ("name", '{"a": 1}', '{"a": 1}'),
        ("name", '"123"', "123"),
        ("name", r'"\ud800"', "\ud800"),
        ("name", '"half', '"half'),
        ("name", "", ""),
        ("load_checkpoint_name", "vae10_mnist", "vae10_mnist"),
        ("load_checkpoint_name", "7", 7),
        ("load_checkpoint_name", '"7"', "7"),
        ("load_checkpoint_name", None, None),
    ],
)
def test_an_override_is_read_by_the_type_of_its_field(key, value, expected):
    result = overridden(key, value)
    assert result == expected
    assert type(result) is type(expected)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_train.epochs", "5.0"),
        ("model_train.epochs", 5.0),
        ("model_train.epochs", True),
        ("model_train.epochs", "true"),
        ("model_train.epochs", None),
        ("model_train.epochs", "null"),
        ("model_train.learned", 1),
        ("model_train.learned", "True"),
        ("learning_rate", "fast"),
        ("learning_rate", True),
        ("learning_rate", 10**400),
        ("name", 5),
        ("name", None),
        ("model_train.hidden_sizes", "256"),
        ("model_train.hidden_sizes", (256,)),
        ("load_checkpoint_name", (1,)),
        ("load_checkpoint_name", '{"a": 1}'),
        ("load_checkpoint_name", Hparam(x=1)),
        ("model_train", "{}"),
        ("model_train", Hparam(epochs=1)),
        ("model_train.empty", "5"),
        ("model_train.epochs.x", "5"),
        ("model_train.new", "5"),
        ("", "5"),
        (".", "5"),
        ("model_train.", "5"),
    ],
)
def test_an_override_that_does_not_fit_is_refused(key, value):
    with pytest.raises(UsageError):
        apply_overrides(TREE, {key: value})


def test_the_given_tree_stays_and_the_new_one_is_finished():
    changed = apply_overrides(TREE, {"model_train.epochs": 5})
    assert (TREE.model_train.epochs, changed.model_train.epochs) == (200, 5)
    with pytest.raises(UsageError, match="finished"):
        changed.model_train.epochs = 6


def test_the_list_that_was_given_can_change_afterwards():
    sizes = [8]
    changed = apply_overrides(TREE, {"model_train.hidden_sizes": sizes})
    sizes.append(9)
    assert changed.model_train.hidden_sizes == [8]


def test_assignments_are_split_at_the_first_equals_sign():
    assert read_assignments(["a.b=1", "name=x=y", "empty=", "n= $(ls) 'q' "]) == {
        "a.b": "1",
        "name": "x=y",
        "empty": "",
        "n": " $(ls) 'q' ",
    }


@pytest.mark.parametrize("assignments", [["a"], ["=1"], [""], ["a=1", "a=1"]])
def test_bad_assignments_are_refused(assignments):
    with pytest.raises(UsageError):
        read_assignments(assignments)

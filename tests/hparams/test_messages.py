"""What a person reads when something is wrong, word for word."""

import pytest

from lossy_mlflow.errors import LossyError
from lossy_mlflow.hparams import (
    Hparam,
    get_hparams,
    read_assignments,
    register_hparams,
    run_label,
    unflatten,
)
from lossy_mlflow.hparams.catalogue import mnist

USAGE, NOT_FOUND, CONFLICT = 2, 3, 4


def register(name, build=Hparam):
    def function():
        return build()

    function.__name__ = function.__qualname__ = name
    function.__module__ = "my_models"
    register_hparams(function)


def override(key, value):
    return lambda: get_hparams("vae10_mnist", {key: value})


def building(build):
    def act():
        register("my_set", build)
        get_hparams("my_set")

    return act


def label_of_two_sets():
    register("vae10_mnist_wide")
    run_label("vae10_mnist", "wide_2")


def label_of_a_set_that_extends_another():
    register("vae10_mnist_wide")
    run_label("vae10_mnist_wide", "2")


def endless_list():
    endless: list[object] = []
    endless.append(endless)
    return endless


def empty_sub_tree():
    register("my_set", lambda: Hparam(notes=Hparam()))
    get_hparams("my_set", {"notes": "x"})


CASES = {
    "unknown set": (
        NOT_FOUND,
        lambda: get_hparams("vae10_mnits"),
        "There is no hparam set 'vae10_mnits'; did you mean vae10_mnist, vae100_mnist, dcvae10_mnist?",
        "List them all: lossy hparams list",
    ),
    "unknown set, nothing near": (
        NOT_FOUND,
        lambda: get_hparams("?"),
        "There is no hparam set '?'.",
        "List them all: lossy hparams list",
    ),
    "unknown field": (
        USAGE,
        override("model_train.epoch", "5"),
        "vae10_mnist defines no field 'model_train.epoch'; did you mean model_train.epochs?",
        "List its fields: lossy hparams show vae10_mnist --flat",
    ),
    "field without its sub-tree": (
        USAGE,
        override("epochs", "5"),
        "vae10_mnist defines no field 'epochs'; did you mean model_train.epochs?",
        "List its fields: lossy hparams show vae10_mnist --flat",
    ),
    "field of that name in two sub-trees": (
        USAGE,
        override("batch_size", "5"),
        "vae10_mnist defines no field 'batch_size'; did you mean model_train.batch_size, rd.batch_size?",
        "List its fields: lossy hparams show vae10_mnist --flat",
    ),
    "sub-tree": (
        USAGE,
        override("dataset", "mnist"),
        "dataset is a sub-tree, not a value.",
        "Set one of its fields: dataset.name, dataset.train, dataset.input_dims, dataset.input_vector_length",
    ),
    "wrong type": (
        USAGE,
        override("model_train.epochs", "many"),
        "model_train.epochs wants an integer, not 'many'",
        "As it stands: model_train.epochs=1000",
    ),
    "wrong type, very long": (
        USAGE,
        override("model_train.epochs", "x" * 7000),
        "model_train.epochs wants an integer, not 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx...",
        "As it stands: model_train.epochs=1000",
    ),
    "a number that is not whole": (
        USAGE,
        override("model_train.epochs", 5.5),
        "model_train.epochs wants an integer, not 5.5",
        "As it stands: model_train.epochs=1000",
    ),
    "True for true": (
        USAGE,
        override("dataset.train", "True"),
        "dataset.train wants true or false, not 'True'",
        "As it stands: dataset.train=true",
    ),
    "None": (
        USAGE,
        override("learning_rate", None),
        "learning_rate wants a number, not None",
        "As it stands: learning_rate=0.0001",
    ),
    "a list without brackets": (
        USAGE,
        override("model_train.hidden_sizes", "8 8"),
        "model_train.hidden_sizes wants a list, not '8 8'",
        "As it stands: model_train.hidden_sizes=[1024, 1024, 1024]",
    ),
    "a float too large": (
        USAGE,
        override("learning_rate", 10**400),
        "learning_rate wants a number, not 100000000000000000000000000000000000000000000000000000000...",
        "As it stands: learning_rate=0.0001",
    ),
    "a JSON object": (
        USAGE,
        override("n_val_batch", '{"a": 1}'),
        "n_val_batch can't hold a dict.",
        "A field holds None, a bool, int, float, str, a list of these, or an Hparam: convert it.",
    ),
    "a tuple": (
        USAGE,
        override("n_val_batch", (1, 2)),
        "n_val_batch can't hold a tuple.",
        "A field holds None, a bool, int, float, str, a list of these, or an Hparam: convert it.",
    ),
    "machine field": (
        USAGE,
        override("cuda", "false"),
        "The override sets 'cuda', which belongs to the machine or the moment, not to the tree.",
        "cuda: use --device cpu or --device cuda.",
    ),
    "parameter of mlflow run": (
        USAGE,
        override("device", "cpu"),
        "The override sets 'device', a name that `mlflow run` uses for a parameter of its own.",
        "As an option: see lossy train --help. A field of your own needs another name.",
    ),
    "assignment without a value": (
        USAGE,
        lambda: read_assignments(["model_train.epochs"]),
        "'model_train.epochs' sets nothing.",
        "Write KEY=VALUE, as model_train.epochs=5",
    ),
    "assignment twice": (
        USAGE,
        lambda: read_assignments(["a=1", "a=2"]),
        "'a' is set twice, to '1' and to '2'.",
        "Set it once.",
    ),
    "machine field in a set": (
        USAGE,
        building(lambda: Hparam(rd=Hparam(no_workers=4))),
        "The hparam set 'my_set' sets 'rd.no_workers', which belongs to the machine or the moment, not to the tree.",
        "no_workers: not needed, since the images are held in memory.",
    ),
    "set that returns nothing": (
        USAGE,
        building(lambda: None),
        "my_set returns NoneType, not an Hparam.",
        f"End it with `return tree`, in {__file__}",
    ),
    "set that fails": (
        1,
        building(lambda: Hparam().rd.target),
        "The hparam set 'my_set' can't be built: AttributeError: 'NoneType' object has no attribute 'target'",
        f"Mend its function, in {__file__}",
    ),
    "set that is another's": (
        CONFLICT,
        lambda: register("vae10_mnist"),
        f"The hparam set 'vae10_mnist' is defined already, in {mnist.__file__}",
        "Choose another name.",
    ),
    "set without a name": (
        USAGE,
        lambda: register("<lambda>"),
        "'<lambda>' can't name an hparam set.",
        "Name the function with letters a-z, digits and _.",
    ),
    "setting a finished tree": (
        USAGE,
        lambda: setattr(get_hparams("vae10_mnist"), "random_seed", 1),
        "This tree is finished; its field 'random_seed' can't be set.",
        "Build a changed one: get_hparams(NAME, overrides={KEY: value}), or apply_overrides.",
    ),
    "odd field name": (
        USAGE,
        lambda: setattr(Hparam(), "z-size", 1),
        "'z-size' can't name a field.",
        "A name is made of letters a-z, digits and _, and begins with a letter.",
    ),
    "value that isn't plain": (
        USAGE,
        lambda: Hparam(sizes=range(3)),
        "sizes can't hold a range.",
        "A field holds None, a bool, int, float, str, a list of these, or an Hparam: convert it.",
    ),
    "tree in a list": (
        USAGE,
        lambda: Hparam(layers=[Hparam()]),
        "layers wants plain values, not a tree.",
        "Give the tree a field of its own.",
    ),
    "value and sub-tree": (
        USAGE,
        lambda: unflatten({"a": "1", "a.b": "2"}),
        "a is both a value and a sub-tree with a.b.",
        "Remove one of the two.",
    ),
    "e_name with a slash": (
        USAGE,
        lambda: run_label("vae10_mnist", "a/b:c?"),
        "The e_name 'a/b:c?' holds '/', ':', '?'.",
        "It becomes part of a model's name: no / : @ ?, no control characters.",
    ),
    "e_name with a blank": (
        USAGE,
        lambda: run_label("vae10_mnist", " a"),
        "The e_name ' a' begins or ends with a blank.",
        "Write it without.",
    ),
    "e_name with both quotes": (
        USAGE,
        lambda: run_label("vae10_mnist", "'\""),
        "The e_name '\\'\"' holds both kinds of quotes.",
        "Use one kind: MLflow can't search for both.",
    ),
    "label too long": (
        USAGE,
        lambda: run_label("vae10_mnist", "x" * 250),
        "The label vae10_mnist_xxxxxxxxxxxxxxxxxxxxxxxxxxxx... has 262 characters; 250 are the most.",
        "Shorten --e-name.",
    ),
    "label of two sets": (
        CONFLICT,
        label_of_two_sets,
        "The label 'vae10_mnist_wide_2' could also mean a run of the hparam set 'vae10_mnist_wide'.",
        "Choose another --e-name.",
    ),
    "set whose name begins with another's": (
        CONFLICT,
        label_of_a_set_that_extends_another,
        "The label 'vae10_mnist_wide_2' could also mean a run of the hparam set 'vae10_mnist'.",
        "Rename one of the two sets: vae10_mnist_wide begins with vae10_mnist_",
    ),
    "integer too long": (
        USAGE,
        override("model_train.epochs", 10**5000),
        "model_train.epochs is an integer with too many digits to be written.",
        "Give a float or a string.",
    ),
    "endless list": (
        USAGE,
        override("group_list", endless_list()),
        "group_list is nested more than 50 deep.",
        "Does a list hold itself? Make it flatter.",
    ),
    "key too long": (
        USAGE,
        building(lambda: Hparam(**{"x" * 251: 1})),
        "The hparam set 'my_set' has a key of 251 characters, xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx...",
        "Shorten it: MLflow takes 250.",
    ),
    "empty sub-tree": (
        USAGE,
        empty_sub_tree,
        "notes is a sub-tree, not a value.",
        "Set one of its fields: there are none",
    ),
    "key too deep": (
        USAGE,
        lambda: unflatten({".".join("a" * 60): "1"}),
        "The key a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.... is nested more than 50 deep.",
        "Make the tree flatter.",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_message(case):
    exit_code, act, what, hint = CASES[case]
    with pytest.raises(LossyError) as caught:
        act()
    assert (caught.value.what, caught.value.hint) == (what, hint)
    assert caught.value.exit_code == exit_code

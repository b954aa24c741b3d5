import pytest

from lossy_mlflow.errors import ConflictError, LossyError, NotFoundError, UsageError
from lossy_mlflow.hparams import (
    MACHINE_FIELDS,
    Hparam,
    get_hparams,
    origins,
    part,
    register_hparams,
    set_names,
    set_summary,
)


def named(name, build, module="somewhere"):
    """`build` as if it were `def name()` in that module."""

    def function():
        return build()

    function.__name__ = function.__qualname__ = name
    function.__module__ = module
    return function


def test_a_set_is_found_by_its_name_with_its_first_line():
    @register_hparams
    def my_set():
        """What it is.

        More of it.
        """
        return Hparam(x=1, dataset=Hparam(name="mine"))

    assert get_hparams("my_set") == Hparam(x=1, dataset=Hparam(name="mine"))
    assert set_summary("my_set") == "What it is."
    assert set_names("mine") == ["my_set"]
    assert "my_set" in set_names()


def test_sets_without_docstring_or_dataset_are_listed_too():
    register_hparams(named("bare", Hparam))
    register_hparams(named("odd", lambda: Hparam(dataset="mnist")))
    assert set_summary("bare") == ""
    assert {"bare", "odd"} <= set(set_names())
    assert not {"bare", "odd"} & set(set_names("mnist"))


def test_each_call_builds_a_fresh_tree_even_of_a_shared_one():
    shared = Hparam(inner=Hparam(x=[1]))
    my_set = register_hparams(named("my_set", lambda: shared))
    my_set().inner.x.append(2)
    assert my_set() == shared == Hparam(inner=Hparam(x=[1]))


def test_the_tree_of_a_name_is_finished_and_that_of_a_call_is_not():
    my_set = register_hparams(named("my_set", lambda: get_hparams("vae10_digits")))
    with pytest.raises(UsageError, match="finished"):
        get_hparams("my_set").random_seed = 1
    tree = my_set()
    tree.random_seed = 1
    assert tree.random_seed == 1


def test_each_leaf_knows_who_set_it():
    @part
    def my_part():
        return Hparam(a=1, b=1, c=1, d=1, notes=Hparam())

    @register_hparams
    def parent():
        tree = Hparam(inner=my_part(), own=[1])
        tree.inner.b = 2
        return tree

    @register_hparams
    def child():
        tree = parent()
        tree.inner.c = 3
        tree.new = Hparam(x=1)
        return tree

    assert origins(get_hparams("child", {"inner.d": "4"})) == {
        "inner.a": "my_part",
        "inner.b": "parent",
        "inner.c": "child",
        "inner.d": "override",
        "inner.notes": "my_part",
        "own": "parent",
        "new.x": "child",
    }


def test_setting_the_same_value_again_counts_as_setting_it():
    register_hparams(named("parent", lambda: Hparam(x=1)))

    @register_hparams
    def child():
        tree = get_hparams("parent")
        changed = Hparam(inner=tree)
        changed.inner.x = 1
        return changed

    assert origins(get_hparams("child")) == {"inner.x": "child"}


def test_defining_the_same_function_again_replaces_the_set():
    register_hparams(named("my_set", lambda: Hparam(x=1)))
    register_hparams(named("my_set", lambda: Hparam(x=2)))
    assert get_hparams("my_set").x == 2


def test_another_module_can_t_take_the_name():
    register_hparams(named("my_set", lambda: Hparam(x=1), module="one"))
    with pytest.raises(ConflictError):
        register_hparams(named("my_set", lambda: Hparam(x=2), module="two"))
    with pytest.raises(ConflictError):
        register_hparams(named("vae10_digits", Hparam))
    assert get_hparams("my_set").x == 1


@pytest.mark.parametrize("name", ["<lambda>", "_private", "größe"])
def test_a_name_that_no_registry_or_shell_likes_is_refused(name):
    with pytest.raises(UsageError, match="can't name an hparam set"):
        register_hparams(named(name, Hparam))


@pytest.mark.parametrize("field", sorted(MACHINE_FIELDS))
def test_machine_fields_are_answered_with_what_takes_their_place(field):
    answer = MACHINE_FIELDS[field]
    for build in (lambda: Hparam(**{field: None}), lambda: Hparam(a=Hparam(b=Hparam(**{field: 1})))):
        register_hparams(named("my_set", build))
        with pytest.raises(UsageError) as caught:
            get_hparams("my_set")
        assert answer in caught.value.hint
    for key in (field, f"model_train.{field}"):
        with pytest.raises(UsageError) as caught:
            get_hparams("vae10_digits", {key: "1"})
        assert answer in caught.value.hint


@pytest.mark.parametrize("field", ["hparam_set", "e_name", "overwrite", "overrides", "user_code", "device"])
def test_parameters_of_mlflow_run_are_no_fields_at_the_top(field):
    register_hparams(named("my_set", lambda: Hparam(**{field: 1})))
    with pytest.raises(UsageError, match="mlflow run"):
        get_hparams("my_set")
    register_hparams(named("my_set", lambda: Hparam(inner=Hparam(**{field: 1}))))
    assert getattr(get_hparams("my_set").inner, field) == 1


def test_a_key_longer_than_mlflow_takes_is_refused():
    register_hparams(named("fits", lambda: Hparam(a=Hparam(**{"x" * 248: 1}))))
    register_hparams(named("long", lambda: Hparam(a=Hparam(**{"x" * 249: 1}))))
    assert get_hparams("fits")
    with pytest.raises(UsageError, match="251 characters"):
        get_hparams("long")


def test_a_set_that_fails_is_one_clear_error_with_its_cause():
    register_hparams(named("my_set", lambda: 1 / 0))
    with pytest.raises(LossyError, match="'my_set' can't be built: ZeroDivisionError") as caught:
        get_hparams("my_set")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_an_unknown_name_is_not_found():
    with pytest.raises(NotFoundError):
        get_hparams("no_such_set")
    with pytest.raises(NotFoundError):
        set_summary("no_such_set")
    assert set_names("no_such_dataset") == []

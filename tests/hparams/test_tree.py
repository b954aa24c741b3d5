import copy
import pickle

import pytest

from lossy_mlflow.errors import UsageError
from lossy_mlflow.hparams import Hparam, fields, flatten, freeze


def test_an_undefined_field_is_none_but_a_private_name_is_absent():
    tree = Hparam(a=1)
    assert tree.b is None
    assert not hasattr(tree, "__len__")
    assert not hasattr(tree, "_repr_html_")


def test_any_name_can_be_a_field():
    tree = Hparam(self=1, fields=2, lambda_=3, A=4)
    assert fields(tree) == {"self": 1, "fields": 2, "lambda_": 3, "A": 4}


def test_fields_keep_the_order_in_which_they_were_first_set():
    tree = Hparam(b=1, a=2)
    tree.b = 3
    tree.c = 4
    assert list(fields(tree)) == ["b", "a", "c"]


def test_types_count_in_equality_and_nan_equals_nan():
    assert Hparam(x=1) != Hparam(x=1.0)
    assert Hparam(x=1) != Hparam(x=True)
    assert Hparam(x="1") != Hparam(x=1)
    assert Hparam(x=0.0) != Hparam(x=-0.0)
    assert Hparam(x=None) != Hparam()
    assert Hparam(x=Hparam()) != Hparam()
    assert Hparam(x=float("nan")) == Hparam(x=float("nan"))
    assert Hparam(a=1, b=2) == Hparam(b=2, a=1)
    assert Hparam() != {}


def test_nothing_is_shared_between_trees():
    dims, inner = [[1], 2], Hparam(x=1)
    a, b = Hparam(dims=dims, inner=inner), Hparam(inner=inner)
    dims[0].append(9)
    inner.x = 9
    b.inner.x = 7
    assert (a.dims, a.inner.x, b.inner.x) == ([[1], 2], 1, 7)


def test_a_tree_put_into_itself_is_a_copy():
    tree = Hparam(x=1)
    tree.inner = tree
    assert flatten(tree) == {"x": "1", "inner.x": "1"}


def test_a_finished_tree_is_finished_at_every_depth():
    tree = freeze(Hparam(inner=Hparam(x=[1])))
    for node, name in ((tree, "new"), (tree, "inner"), (tree.inner, "x")):
        with pytest.raises(UsageError, match="finished"):
            setattr(node, name, 5)
    assert freeze(tree) is tree


def test_part_of_a_finished_tree_can_be_changed_in_another():
    other = Hparam(inner=freeze(Hparam(inner=Hparam(x=1))).inner)
    other.inner.x = 2
    assert other.inner.x == 2


@pytest.mark.parametrize("frozen", [True, False])
def test_copies_and_pickles_are_equal_and_apart(frozen):
    tree = Hparam(inner=Hparam(x=[1]))
    tree = freeze(tree) if frozen else tree
    unpickled = pickle.loads(pickle.dumps(tree))  # noqa: S301 - our own bytes
    for again in (copy.copy(tree), copy.deepcopy(tree), unpickled):
        assert again == tree
        assert again is not tree
        if frozen:
            with pytest.raises(UsageError, match="finished"):
                again.inner.x = 2
    if not frozen:
        apart = copy.deepcopy(tree)
        apart.inner.x = 2
        assert tree.inner.x == [1]


@pytest.mark.parametrize("name", ["", "a.b", "a-b", "1a", "_a", "__a", "é", "a b", "a\n", "x" + "\u0661"])
def test_odd_names_are_refused(name):
    with pytest.raises(UsageError, match="can't name a field"):
        Hparam(**{name: 1})


@pytest.mark.parametrize(
    "value", [(1, 2), {"a": 1}, {1}, b"x", 1j, object(), len, [1, (2,)], [Hparam()], [{}]]
)
def test_values_that_are_not_plain_are_refused(value):
    with pytest.raises(UsageError):
        Hparam(x=value)


def test_subclasses_of_plain_types_are_refused_since_they_would_not_read_back():
    class Text(str):
        __slots__ = ()

    class Number(float):
        pass

    for value in (Text("a"), Number(1.0)):
        with pytest.raises(UsageError, match="can't hold"):
            Hparam(x=value)


def test_a_list_that_holds_itself_is_an_error():
    endless: list[object] = [1]
    endless.append(endless)
    with pytest.raises(UsageError, match="nested more than 50 deep"):
        Hparam(x=endless)


def test_a_tree_too_deep_is_an_error():
    tree = Hparam()
    node = tree
    for _ in range(60):
        node.a = Hparam()
        node = node.a
    with pytest.raises(UsageError, match="nested more than 50 deep"):
        freeze(tree)


def test_what_was_put_into_a_list_is_checked_when_the_tree_is_finished():
    tree = Hparam(x=[1])
    tree.x.append((2,))
    with pytest.raises(UsageError, match="x can't hold a tuple"):
        freeze(tree)


def test_an_integer_too_long_to_be_written_is_refused():
    with pytest.raises(UsageError, match="too many digits"):
        Hparam(x=10**5000)

"""What holds for every tree: it is written and read back, overridden, compared and hashed without loss."""

import json
import math

from hypothesis import example, given, settings
from hypothesis import strategies as st

from lossy_mlflow.errors import UsageError
from lossy_mlflow.hparams import (
    Hparam,
    apply_overrides,
    diff,
    fields,
    flatten,
    freeze,
    hparams_sha256,
    origins,
    read_value,
    unflatten,
)
from tests.hparams.strategies import any_text, trees, values

no_deadline = settings(deadline=None)


def exactly(value: object) -> object:
    """A form of plain values in which types, signs of zero and NaN count, made without the code under test."""
    if isinstance(value, Hparam):
        return {name: exactly(inner) for name, inner in fields(value).items()}
    if isinstance(value, list):
        return [exactly(inner) for inner in value]
    return (type(value).__name__, repr(value))


@no_deadline
@given(trees)
def test_every_tree_reads_back_with_its_types(tree):
    again = unflatten(flatten(tree))
    assert exactly(again) == exactly(tree)
    assert again == tree


@no_deadline
@given(trees)
def test_the_round_trip_survives_json(tree):
    assert unflatten(json.loads(json.dumps(flatten(tree)))) == tree


@no_deadline
@given(any_text)
def test_a_string_is_bare_only_where_it_is_safe(text):
    written = flatten(Hparam(x=text))["x"]
    assert read_value(written) == text
    assert written.isprintable()
    assert written == written.strip()
    assert written


@no_deadline
@given(trees, trees)
def test_equality_sha_and_diff_agree(a, b):
    assert (
        (a == b)
        == (exactly(a) == exactly(b))
        == (hparams_sha256(a) == hparams_sha256(b))
        == (diff(a, b) == [])
    )


@no_deadline
@given(trees, trees)
def test_diff_says_what_to_change(a, b):
    changed = flatten(a)
    for difference in diff(a, b):
        assert changed.pop(difference.key, None) == difference.a
        if difference.b is not None:
            changed[difference.key] = difference.b
    assert changed == flatten(b)


@no_deadline
@given(trees)
def test_overriding_each_leaf_by_its_own_text_changes_nothing(tree):
    assert apply_overrides(tree, flatten(tree)) == tree
    for key, text in flatten(tree).items():
        assert apply_overrides(tree, {key: text}) == tree


@no_deadline
@given(trees, st.data())
def test_an_override_changes_one_leaf_or_nothing(tree, data):
    flat = flatten(tree)
    if not flat:
        return
    key = data.draw(st.sampled_from(sorted(flat)))
    value = data.draw(values)
    before = exactly(tree)
    try:
        changed = apply_overrides(tree, {key: value})
    except UsageError:
        pass
    else:
        assert {difference.key for difference in diff(tree, changed)} <= {key}
        assert origins(changed) == {**dict.fromkeys(flat, ""), key: "override"}
    assert exactly(tree) == before


@no_deadline
@given(trees)
def test_a_finished_tree_gives_out_nothing_that_changes_it(tree):
    finished = freeze(tree)
    before = exactly(finished)

    def spoil(value):
        if isinstance(value, Hparam):
            for inner in fields(value).values():
                spoil(inner)
        elif isinstance(value, list):
            value.append("spoiled")
            for inner in value:
                spoil(inner)

    spoil(finished)
    assert exactly(finished) == before
    spoil(tree)
    assert exactly(finished) == before


@no_deadline
@given(trees)
@example(Hparam(**{"as": None}))
def test_repr_builds_the_tree_again(tree):
    rebuilt = eval(repr(tree), {"Hparam": Hparam, "nan": math.nan, "inf": math.inf})  # noqa: S307 - our own repr
    assert rebuilt == tree


@no_deadline
@given(any_text | st.text('[]{}"0123456789.eE-+ntf,: ', max_size=8))
def test_any_text_reads_as_a_value_that_lasts_or_as_an_object_that_is_refused(text):
    try:
        tree = Hparam(x=read_value(text))
    except UsageError:
        assert isinstance(json.loads(text), dict | list)
    else:
        assert unflatten(flatten(tree)) == tree

"""A field that doesn't fit is answered with a way of setting it that works."""

from __future__ import annotations

import shlex

import pytest

from lossy_mlflow.errors import UsageError
from lossy_mlflow.hparams import Hparam, apply_overrides, read_assignments
from lossy_mlflow.models.fields import positive_number, whole_number, whole_numbers


def _hint(read, tree: Hparam) -> str:
    with pytest.raises(UsageError) as refused:
        read(tree, "model.size")
    return refused.value.hint


@pytest.mark.parametrize(
    ("read", "model", "fit"),
    [
        (whole_number, Hparam(size=0), "3"),
        (whole_number, Hparam(size=None), "3"),
        (whole_numbers, Hparam(size=[0]), "[3, 4]"),
        (positive_number, Hparam(size=-1.0), "0.5"),
    ],
)
def test_what_set_can_change_is_set(read, model, fit):
    tree = Hparam(model=model)
    hint = _hint(read, tree)
    assert hint == "Set it: --set model.size=VALUE"
    option, assignment = shlex.split(hint.partition(": ")[2].replace("VALUE", shlex.quote(fit)))
    assert option == "--set"
    assert read(apply_overrides(tree, read_assignments([assignment])), "model.size")


@pytest.mark.parametrize(
    ("read", "tree", "fit"),
    [
        (whole_number, Hparam(), "3"),
        (whole_number, Hparam(model=7), "3"),
        (whole_number, Hparam(model=Hparam()), "3"),
        (whole_number, Hparam(model=Hparam(size="many")), "3"),
        (whole_numbers, Hparam(model=Hparam(size=0)), "[3]"),
        (positive_number, Hparam(model=Hparam(size=0)), "0.5"),
    ],
)
def test_what_set_cannot_change_is_to_be_defined(read, tree, fit):
    hint = _hint(read, tree)
    assert hint.startswith("--set can't: ")
    assert hint.endswith("tree.model.size = VALUE")
    # It says so rightly: what --set makes of it is either refused or no better.
    with pytest.raises(UsageError):
        read(apply_overrides(tree, {"model.size": fit}), "model.size")


def test_what_set_has_changed_it_can_change_again():
    tree = apply_overrides(Hparam(model=Hparam(size=None)), {"model.size": "many"})
    assert _hint(whole_number, tree) == "Set it: --set model.size=VALUE"

"""Names, and the builders they stand for."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
from torch import nn

from lossy_mlflow.errors import ConflictError, LossyError, NotFoundError, UsageError
from lossy_mlflow.hparams import Hparam
from lossy_mlflow.models import build_model, decoder_of, model_names, register_model, registry


@pytest.fixture(autouse=True)
def _nothing_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {})


class OwnDecoder(nn.Module):
    """Decodes to the mean alone."""

    x_logvar = -1.0

    def __init__(self, tree: Hparam) -> None:
        super().__init__()
        self.net = nn.Linear(tree.z_size, 4)

    def decode(self, z):
        return self.net(z)


def test_a_model_of_ones_own_is_built_by_its_name():
    register_model("own")(OwnDecoder)
    assert "own" in model_names()
    model = build_model(Hparam(model_name="own", z_size=2))
    assert isinstance(model, OwnDecoder)
    assert decoder_of(model) is model


def test_the_same_function_again_replaces_the_first():
    """As when a notebook cell is run twice."""

    def cell() -> Callable[[Hparam], nn.Module]:
        @register_model("own")
        def build(tree: Hparam) -> nn.Module:
            return OwnDecoder(tree)

        return build

    first, second = cell(), cell()
    assert first is not second
    assert registry._registered == {"own": second}


@pytest.mark.parametrize("name", ["own", "deep_vae"])
def test_a_name_that_is_taken_is_refused(name):
    register_model("own")(OwnDecoder)

    def other(tree: Hparam) -> nn.Module:
        return OwnDecoder(tree)

    with pytest.raises(ConflictError) as refused:
        register_model(name)(other)
    assert f"The model name {name!r} is taken by " in refused.value.what
    assert f'@register_model("my_{name}")' in refused.value.hint


def test_the_decorator_without_a_name_is_explained():
    with pytest.raises(UsageError, match=r'Write @register_model\("my_vae"\)'):
        register_model(OwnDecoder)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("deap_vae", "There is no model 'deap_vae'; did you mean deep_vae"),
        ("zzz", "There is no model 'zzz'."),
        (None, "The hparam model_name is undefined."),
    ],
)
def test_an_unknown_name_is_answered_with_the_near_ones(name, said):
    with pytest.raises(NotFoundError) as unknown:
        build_model(Hparam(model_name=name))
    assert unknown.value.what.startswith(said)
    assert unknown.value.hint == (
        f"Set model_name to one of {', '.join(model_names())}; a model of your own: --user-code FILE, or LOSSY_USER_CODE"
    )


def test_a_model_that_decodes_nothing_is_refused_when_it_is_built():
    register_model("own")(a_linear_layer)
    with pytest.raises(UsageError, match="Linear has no decode"):
        build_model(Hparam(model_name="own"))


def a_linear_layer(tree: Hparam) -> nn.Module:
    return nn.Linear(2, 2)


def test_what_is_not_a_module_is_refused_when_it_is_built():
    register_model("own")(a_word)
    with pytest.raises(UsageError, match="made str, not a torch"):
        build_model(Hparam(model_name="own"))


def a_word(tree: Hparam) -> str:
    return "model"


@pytest.mark.parametrize(
    ("name", "fields", "said"),
    [
        ("deep_vae", {"z_size": 10**12}, r"z_size=1000000000000, model_train.hidden_sizes=.* take [\d,]+ GB"),
        ("deep_vae", {"hidden_sizes": [10**10]}, r"hidden_sizes=\[10000000000\] take 5,560 GB"),
        ("linear_vae", {"z_size": 10**17}, "more bytes than can be counted"),
        ("dcgan_vae", {"z_size": 10**30}, "more bytes than can be counted"),
        ("dcgan_vae", {"n_filters": 10**6}, r"n_filters=1000000 take \d+,\d+ GB"),
    ],
)
def test_sizes_beyond_the_machine_are_named_with_the_memory_they_take(name, fields, said, tree):
    with pytest.raises(UsageError, match=said) as refused:
        build_model(tree(name, **fields))
    assert f"The weights of {name} with model_train.z_size=" in refused.value.what
    assert "this machine has " in refused.value.what


def test_a_builder_that_fails_is_told_with_its_line():
    register_model("own")(OwnDecoder)
    with pytest.raises(
        LossyError, match=r"'own' can't be built: .*test_registry.py:\d+: TypeError: "
    ) as failed:
        build_model(Hparam(model_name="own", z_size="two"))
    assert isinstance(failed.value.__cause__, TypeError)


def test_names_can_be_listed_and_registered_without_torch():
    code = (
        "import sys; from lossy_mlflow.models import model_names, register_model;"
        "register_model('own')(type('Own', (), {})); print(*model_names()); sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [
        "aae_decoder",
        "cnn_classifier",
        "dcgan_generator",
        "dcgan_vae",
        "deep_vae",
        "linear_vae",
        "mlp_generator",
        "own",
    ]

"""What a model of the user's own does wrong is said before a run exists, and trying it changes nothing."""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lossy_mlflow.errors import LossyError
from lossy_mlflow.experiments.trial import check_model, remedies
from lossy_mlflow.hparams import Hparam
from lossy_mlflow.models import build_model, register_model
from lossy_mlflow.training import Settings, make_optimizer, seeded, train_epochs

IMAGES = torch.rand(60, 64, generator=torch.Generator().manual_seed(1))
SETTINGS = Settings(batch_size=20, epochs=1, learning_rate=1e-3, seed=3)


def tree(**fields: Any) -> Hparam:
    return Hparam(
        model_name="own",
        learning_rate=1e-3,
        model_train=Hparam(z_size=2),
        dataset=Hparam(input_dims=[1, 8, 8], input_vector_length=64),
        **fields,
    )


class Plain(nn.Module):
    """An autoencoder without a fault, its own decoder, with batch norm and a count of its steps."""

    x_logvar = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 4), nn.BatchNorm1d(4))
        self.net = nn.Linear(2, 64)
        self.steps = 0

    def decode(self, z: Tensor) -> Any:
        return self.net(z)

    def encode(self, x: Tensor) -> Any:
        mean, logvar = self.encoder(x).chunk(2, dim=1)
        return mean, logvar

    def loss(self, batch: Tensor, generator: torch.Generator) -> Any:
        self.steps += 1
        mean, logvar = Plain.encode(self, batch)
        z = mean + torch.randn(mean.shape, generator=generator) + 0.001 * random.random() + np.random.rand()
        error = (batch - self.net(z + torch.rand(()))).square().sum(1).mean()
        return self.returned(error, logvar)

    def returned(self, error: Tensor, logvar: Tensor) -> Any:
        return error, {"error": error, "logvar/mean": logvar.mean().item(), "one": 1}


def check(made: Callable[[], nn.Module], **fields: Any) -> nn.Module:
    """A new model of that kind, which the check has let pass."""
    register_model("own")(lambda _tree: made())
    with seeded(SETTINGS.seed):
        model = build_model(tree(**fields))
    check_model(model, tree(**fields), IMAGES, SETTINGS, torch.device("cpu"))
    return model


def returning(value: Callable[[Tensor], Any]) -> Callable[[], nn.Module]:
    return with_method("returned", lambda _self, error, _logvar: value(error))


def with_method(name: str, method: Callable[..., Any] | None) -> Callable[[], nn.Module]:
    return type("Own", (Plain,), {name: method})


def prepared(change: Callable[[Plain], object]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        model = Plain()
        change(model)
        return model

    return make


def raise_it(*_: object) -> None:
    raise ValueError("out of paint")


def exit_quietly(*_: object) -> None:
    sys.exit(0)


def spoiled(error: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    kept = error.exp()
    kept.sum().mul_(1)
    return (kept * kept).add_(kept.mul_(2)), {}


HERE = r"test_trial\.py:\d+: "
FAULTS: dict[str, tuple[Callable[[], nn.Module], int, str]] = {
    "loss alone": (returning(lambda e: e), 2, r"returns a float32 tensor of shape \(\); .* \(loss, \{name"),
    "three things": (returning(lambda e: (e, {}, 1)), 2, "returns a tuple of 3; "),
    "loss of each image": (returning(lambda e: (e.expand(20), {})), 2, r"as loss a float32 .* \(20,\); "),
    "loss in a list": (returning(lambda e: (e[None], {})), 2, r"as loss a float32 tensor of shape \(1,\); "),
    "loss a float": (returning(lambda e: (e.item(), {})), 2, "as loss a float; "),
    "loss in 16 bits": (returning(lambda e: (e.bfloat16(), {})), 2, "as loss a bfloat16 tensor"),
    "loss cut off": (returning(lambda e: (e.detach(), {})), 2, "depends on none of its parameters"),
    "loss not a number": (returning(lambda e: (e / 0, {"a": e / 0, "b": e})), 2, "loss of inf .*, a is inf"),
    "no terms": (returning(lambda e: (e, None)), 2, r"as terms None; it must return a dict"),
    "a term None": (returning(lambda e: (e, {"kl": None})), 2, "as term 'kl' None; "),
    "a term of each": (returning(lambda e: (e, {"kl": e.expand(9)})), 2, r"as term 'kl' .* \(9,\); "),
    "a term's name": (returning(lambda e: (e, {"kl (nats)?": e})), 2, r"a term named 'kl \(nats\)\?'; "),
    "loss raises": (with_method("loss", raise_it), 1, f"loss.* fails: .*{HERE}ValueError: out of paint"),
    "loss exits": (with_method("loss", exit_quietly), 1, f"loss.* fails: .*{HERE}it calls sys.exit"),
    "no gradient": (returning(spoiled), 1, "fails in a first step of training: RuntimeError: .*inplace"),
    "no loss": (with_method("loss", None), 2, r"it has no loss\(batch, generator\)"),
    "other z": (with_method("decode", lambda _, z: nn.Linear(3, 64)(z)), 1, r"decode\(z\), with z .*8x2"),
    "other x": (with_method("decode", lambda _, z: nn.Linear(2, 63)(z)), 2, r"as x_mean .* \(8, 63\); "),
    "x in 16 bits": (with_method("decode", lambda s, z: s.net(z).half()), 2, "as x_mean a float16 tensor"),
    "x by name": (with_method("decode", lambda s, z: {"x": s.net(z)}), 2, "gives a dict, not "),
    "x_logvar": (prepared(lambda m: setattr(m, "x_logvar", torch.ones(3))), 2, r"as x_logvar .* \(3,\); "),
    "decode raises": (with_method("decode", raise_it), 1, f"decode.* fails: .*{HERE}ValueError"),
    "encode": (with_method("encode", lambda s, x: s.encoder(x)), 2, r"encode\(x\).* \(20, 4\); .*z_mean"),
    "encode widths": (with_method("encode", lambda s, x: [s.encoder(x)] * 2), 2, r"\(20, 4\) and .*z_size"),
    "frozen": (prepared(lambda m: m.requires_grad_(False)), 2, "requires_grad=False only"),
    "empty": (type("Empty", (nn.Module,), {"decode": raise_it, "loss": raise_it}), 2, "no parameters"),
    "lazy": (prepared(lambda m: setattr(m, "encoder", nn.LazyLinear(4))), 2, "lazy layers"),
    "builder raises": (prepared(raise_it), 1, f"'own' can't be built: .*{HERE}ValueError: out of paint"),
    "builder exits": (prepared(exit_quietly), 1, f"'own' can't be built: .*{HERE}it calls sys.exit"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_said_with_what_was_returned_and_what_is_wanted(name: str) -> None:
    made, exit_code, says = FAULTS[name]
    with pytest.raises(LossyError, match=says) as refused:
        check(made)
    assert refused.value.exit_code == exit_code
    assert "\n" not in refused.value.what
    assert refused.value.hint


def _state(model: nn.Module) -> list[Any]:
    tensors = [tensor.tolist() for tensor in model.state_dict().values()]
    grads = [parameter.grad for parameter in model.parameters()]
    return [tensors, grads, model.training, model.steps]


def test_what_is_tried_is_not_the_model_and_draws_no_random_numbers() -> None:
    with seeded(SETTINGS.seed):
        untouched = _state(Plain())
    drawn = [random.getstate(), np.random.get_state()[1].tolist(), torch.random.get_rng_state().tolist()]
    assert _state(check(Plain)) == untouched
    after = [random.getstate(), np.random.get_state()[1].tolist(), torch.random.get_rng_state().tolist()]
    assert after == drawn


def test_a_method_that_closes_over_its_model_doesnt_train_that_one() -> None:
    """As a patch or a hook does: a deep copy would go on calling the original's."""

    def patch(model: Plain) -> None:
        loss = model.loss
        model.loss = lambda *words: loss(*words)

    made = prepared(patch)
    with seeded(SETTINGS.seed):
        untouched = _state(made())
    model = check(made)
    assert _state(model) == untouched
    copied = copy.deepcopy(model)
    copied.loss(IMAGES, torch.Generator())
    assert _state(model) != untouched


def test_a_module_that_every_model_shares_is_left_alone() -> None:
    shared = nn.BatchNorm1d(64)
    model = check(prepared(lambda m: m.encoder.insert(0, shared)))
    assert shared.num_batches_tracked == 0
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    "made",
    [
        with_method("encode", None),
        returning(lambda e: [e, {}]),
        returning(lambda e: (e.double(), {})),
        with_method("decode", lambda s, z: (s.net(z), torch.zeros(64))),
        with_method("decode", lambda s, z: [s.net(z), -1.0]),
    ],
    ids=["no encoder", "no terms", "64 bits", "a vector of variances", "a variance as float"],
)
def test_what_the_documentation_allows_passes(made: Callable[[], nn.Module]) -> None:
    check(made)


def test_a_first_loss_that_is_no_number_is_not_the_learning_rates_fault() -> None:
    fields = {"model_train": Hparam(z_size=2, x_var=1e-40, hidden_sizes=[3], x_var_learned=True)}
    own = Hparam(
        model_name="deep_vae", dataset=Hparam(input_dims=[1, 8, 8], input_vector_length=64), **fields
    )
    with pytest.raises(LossyError, match=r"negative_log_likelihood is inf") as refused:
        check_model(build_model(own), own, IMAGES, SETTINGS, torch.device("cpu"))
    assert "--set model_train.x_var=VALUE (it is 1e-40)" in refused.value.hint
    assert "learning" not in refused.value.hint
    own.learning_rate = 1e-3
    assert "learning_rate=0.0001" in remedies(own)
    assert "x_var" in remedies(own)
    assert "x_var" not in remedies(tree())
    # Weights that are taken from elsewhere may be better than those just drawn.
    own.load_checkpoint_name = "elsewhere"
    check_model(build_model(own), own, IMAGES, SETTINGS, torch.device("cpu"))


def test_what_passes_can_be_trained() -> None:
    model = check(Plain)
    [result] = train_epochs(model, make_optimizer(model, 1e-3), IMAGES, IMAGES, SETTINGS)
    assert result.terms["one"] == 1

"""The VAEs of the package: shapes, variance, loss, and the fields they need."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from lossy_mlflow.errors import UsageError
from lossy_mlflow.hparams import Hparam, evaluates, get_hparams, set_names
from lossy_mlflow.models import build_model, decoder_of

IMAGES = [(1, 8, 8), (3, 8, 8), (1, 28, 28), (3, 28, 28), (1, 32, 32), (3, 32, 32)]
NAMES = ["linear_vae", "deep_vae", "dcgan_vae"]


@pytest.mark.parametrize("dims", IMAGES)
@pytest.mark.parametrize("name", NAMES)
def test_vectors_in_vectors_out(name, dims, tree):
    model = build_model(tree(name, dims)).eval()
    x = torch.rand(2, math.prod(dims))
    z_mean, z_logvar = model.encode(x)
    assert z_mean.shape == z_logvar.shape == (2, 3)
    x_mean, x_logvar = model.decoder.decode(z_mean)
    assert x_mean.shape == x.shape
    assert x_logvar.shape == ()
    if name != "linear_vae":
        assert x_mean.min() > 0
        assert x_mean.max() < 1


@pytest.mark.parametrize("name", NAMES)
def test_every_weight_has_a_gradient(name, tree):
    model = build_model(tree(name))
    loss, _ = model.loss(torch.rand(5, 64), torch.Generator().manual_seed(1))
    loss.backward()
    without = [key for key, value in model.named_parameters() if value.grad is None or not value.grad.any()]
    # A batch norm takes away what is added before it: the biases there have none.
    assert not [key for key in without if name != "dcgan_vae" or not key.endswith("bias")]


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_is_the_negative_elbo_in_nats(name, tree):
    """Written out with torch.distributions, on the same noise."""
    model = build_model(tree(name)).eval()
    x = torch.rand(5, 64)
    loss, terms = model.loss(x, torch.Generator().manual_seed(1))
    z_mean, z_logvar = model.encode(x)
    q = Normal(z_mean, (0.5 * z_logvar).exp())
    z = q.mean + q.stddev * torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    x_mean, x_logvar = model.decoder.decode(z)
    misfit = -Normal(x_mean, (0.5 * x_logvar).exp()).log_prob(x).sum(1).mean()
    kl = kl_divergence(q, Normal(torch.zeros_like(z), 1.0)).sum(1).mean()
    torch.testing.assert_close(terms["negative_log_likelihood"], misfit)
    torch.testing.assert_close(terms["kl"], kl)
    torch.testing.assert_close(loss, misfit + kl)


@pytest.mark.parametrize("learned", [True, False])
def test_the_variance_begins_at_x_var_and_is_learned_if_so_wished(learned, tree):
    model = build_model(tree(x_var=0.25, x_var_learned=learned))
    assert model.decoder.x_logvar.item() == pytest.approx(math.log(0.25))
    assert ("decoder.x_logvar" in dict(model.named_parameters())) == learned
    # Stored with the weights in either case.
    assert "x_logvar" in model.decoder.state_dict()


def test_the_learned_variance_finds_the_mean_square_of_the_residuals(tree):
    """d loss / d x_logvar = 0 exactly there."""
    model = build_model(tree("linear_vae"))
    x = torch.rand(50, 64)
    z_mean, z_logvar = model.encode(x)
    z = z_mean + (0.5 * z_logvar).exp() * torch.randn(50, 3, generator=torch.Generator().manual_seed(1))
    residual = (x - model.decoder.decode(z)[0]).square().mean()
    with torch.no_grad():
        model.decoder.x_logvar.copy_(residual.log())
    model.loss(x, torch.Generator().manual_seed(1))[0].backward()
    assert abs(model.decoder.x_logvar.grad) < 1e-4 * 64


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_gives_the_weights(name, tree):
    def weights(seed: int) -> torch.Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return nn.utils.parameters_to_vector(build_model(tree(name)).parameters())

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_the_deep_vae_is_the_papers(tree):
    model = build_model(tree("deep_vae", (1, 28, 28), z_size=10, hidden_sizes=[1024, 512]))

    def sizes(net: nn.Module) -> list[tuple[int, int]]:
        return [(part.in_features, part.out_features) for part in net if isinstance(part, nn.Linear)]

    assert sizes(model.encoder) == [(784, 1024), (1024, 512), (512, 20)]
    assert sizes(model.decoder.net) == [(10, 512), (512, 1024), (1024, 784)]
    assert [type(part).__name__ for part in model.decoder.net] == [
        "Linear",
        "Tanh",
        "Linear",
        "Tanh",
        "Linear",
        "Sigmoid",
    ]


def test_the_dcgan_has_batch_norm_save_next_to_the_image(tree):
    """With as many filters as channels, too."""

    def kinds(net: nn.Module) -> list[str]:
        return [type(part).__name__ for part in net if type(part).__name__.startswith(("Conv", "Batch"))]

    model = build_model(tree("dcgan_vae", (3, 32, 32), n_filters=3))
    assert kinds(model.encoder) == ["Conv2d", "Conv2d", "BatchNorm2d", "Conv2d", "BatchNorm2d"]
    assert kinds(model.decoder.net) == [
        "BatchNorm2d",
        *["ConvTranspose2d", "BatchNorm2d"] * 2,
        "ConvTranspose2d",
    ]


def test_every_set_of_the_catalogue_can_be_built():
    for name in set_names():
        small = {"model_train.n_filters": 2, "model_train.hidden_sizes": [4]}
        tree = get_hparams(name)
        if evaluates(tree):
            continue
        fields = {
            key: value for key, value in small.items() if getattr(tree.model_train, key[12:]) is not None
        }
        assert decoder_of(build_model(get_hparams(name, fields))) is not None


WRONG = [
    (
        "deep_vae",
        {"z_size": 0},
        "The hparam model_train.z_size is 0; it must be a whole number of at least 1.",
    ),
    (
        "deep_vae",
        {"z_size": None},
        "The hparam model_train.z_size is undefined; it must be a whole number",
    ),
    (
        "deep_vae",
        {"hidden_sizes": [4, -1]},
        "The hparam model_train.hidden_sizes is [4, -1]; it must be a list of",
    ),
    (
        "deep_vae",
        {"hidden_sizes": None},
        "The hparam model_train.hidden_sizes is undefined; it must be a list",
    ),
    ("deep_vae", {"x_var": 0.0}, "The hparam model_train.x_var is 0.0; it must be a number above 0."),
    (
        "deep_vae",
        {"x_var": math.nan},
        "The hparam model_train.x_var is nan; it must be a number above 0.",
    ),
    (
        "deep_vae",
        {"x_var_learned": "no"},
        "The hparam model_train.x_var_learned is 'no'; it must be true or false.",
    ),
    (
        "dcgan_vae",
        {"n_filters": True},
        "The hparam model_train.n_filters is True; it must be a whole number",
    ),
]


@pytest.mark.parametrize(("name", "fields", "said"), WRONG)
def test_a_field_that_does_not_fit_is_named(name, fields, said, tree):
    with pytest.raises(UsageError) as wrong:
        build_model(tree(name, **fields))
    assert wrong.value.what.startswith(said)


def test_images_that_the_fields_contradict_are_refused(tree):
    model = tree("deep_vae").model_train
    dataset = Hparam(input_dims=[1, 8, 8], input_vector_length=784)
    with pytest.raises(UsageError, match=r"input_vector_length is 784; it must be the product of .* 64"):
        build_model(Hparam(model_name="deep_vae", model_train=model, dataset=dataset))
    dataset = Hparam(input_dims=[64], input_vector_length=64)
    with pytest.raises(UsageError, match=r"input_dims is \[64\]; it must be \[channels, height, width\]"):
        build_model(Hparam(model_name="deep_vae", model_train=model, dataset=dataset))


@pytest.mark.parametrize("dims", [(1, 16, 16), (1, 28, 32), (4, 28, 28)])
def test_the_dcgan_names_the_images_it_can_make(dims, tree):
    with pytest.raises(UsageError, match="square ones of 8, 28, 32 pixels with 1 or 3 channels"):
        build_model(tree("dcgan_vae", dims))

"""The IWAE bound, against a likelihood that is known in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal

from lossy_mlflow.errors import UsageError
from lossy_mlflow.models.vae import GaussianDecoder, Vae
from lossy_mlflow.training import generator_for, iwae_bound

N_PIXELS, Z_SIZE, X_VAR = 6, 2, 0.5
SCALES = torch.tensor([2.0, 0.7])


def linear_vae(stretch: float = 1.0) -> Vae:
    """x = W z + noise, the columns of W orthogonal: so the posterior's covariance is diagonal.

    `stretch` multiplies the posterior's standard deviation: with 1 the encoder is exact.
    """
    decoder = GaussianDecoder(nn.Linear(Z_SIZE, N_PIXELS), X_VAR, learned=False)
    encoder = nn.Linear(N_PIXELS, 2 * Z_SIZE)
    directions = torch.linalg.qr(torch.randn(N_PIXELS, Z_SIZE, generator=torch.Generator().manual_seed(2))).Q
    precision = 1 + SCALES**2 / X_VAR
    with torch.no_grad():
        decoder.net.weight.copy_(directions * SCALES)
        decoder.net.bias.zero_()
        encoder.weight.zero_()
        encoder.weight[:Z_SIZE] = (directions * SCALES / X_VAR / precision).T
        encoder.bias.zero_()
        encoder.bias[Z_SIZE:] = 2 * math.log(stretch) - precision.log()
    return Vae(encoder, decoder)


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(40, N_PIXELS, generator=torch.Generator().manual_seed(4))


def log_likelihood(x: torch.Tensor) -> torch.Tensor:
    weight = linear_vae().decoder.net.weight.detach().double()
    covariance = weight @ weight.T + X_VAR * torch.eye(N_PIXELS, dtype=torch.float64)
    return MultivariateNormal(torch.zeros(N_PIXELS, dtype=torch.float64), covariance).log_prob(x.double())


@pytest.mark.parametrize("n_samples", [1, 7])
def test_with_the_exact_posterior_it_is_the_likelihood(x, n_samples):
    """Every weight p(x, z)/q(z|x) is then p(x): no spread, whatever k."""
    mean, error = iwae_bound(linear_vae(), x, n_samples, generator_for(1, "iwae"))
    exact = log_likelihood(x)
    assert mean == pytest.approx(exact.mean().item(), abs=1e-5)
    assert error == pytest.approx(exact.std().item() / math.sqrt(40), abs=1e-5)


def test_with_another_it_lies_below_and_rises_with_the_samples(x):
    exact = log_likelihood(x).mean().item()
    gaps = [
        exact - iwae_bound(linear_vae(1.5), x, k, generator_for(1, "iwae"))[0] for k in (1, 10, 100, 5000)
    ]
    assert gaps == sorted(gaps, reverse=True)
    # k = 1 is the ELBO: its gap is KL(q || posterior), each dimension (r^2 - 1)/2 - log r.
    assert gaps[0] == pytest.approx(Z_SIZE * ((1.5**2 - 1) / 2 - math.log(1.5)), abs=0.3)
    assert 0 < gaps[3] + 0.005 < 0.01


def test_parts_of_any_size_make_one_bound(x):
    """Exact encoder: the noise, which differs, doesn't matter."""
    bounds = {
        round(iwae_bound(linear_vae(), x, 2, generator_for(1, "iwae"), size)[0], 4) for size in (1, 7, 100)
    }
    assert len(bounds) == 1


def test_the_model_is_left_in_the_mode_it_was_in(x):
    for training in (True, False):
        model = linear_vae().train(training)
        iwae_bound(model, x, 1, generator_for(1, "iwae"))
        assert model.training == training


def test_a_model_without_an_encoder_has_none(x):
    with pytest.raises(UsageError, match=r"GaussianDecoder has no encode\(x\): its IWAE bound can't be had."):
        iwae_bound(linear_vae().decoder, x, 1, generator_for(1, "iwae"))

"""The variational curve: an encoder for each beta, under a decoder that stays as it is (Huang et al. 2020, section 6.3).

Any q(z|x) gives a point above the true curve: KL(q || p) + beta E_q d is at least -log Z. How far above tells what the encoder's
family costs; AIS has no such limit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from lossy_mlflow.models.gaussian import kl_from_standard, sample
from lossy_mlflow.rate_distortion.distortion import Distortion

_BATCH, _SAMPLES = 100, 100
_HIDDEN = (512, 512)


@dataclass(frozen=True, slots=True)
class VariationalPoint:
    """At beta, by datum (n_data,), float64: rate KL(q || p) in nats, distortion E_q d with the standard error of its samples."""

    beta: float
    rate: Tensor
    distortion: Tensor
    distortion_se: Tensor


def variational_curve(
    made: Callable[[Tensor], Distortion],
    train_images: Tensor,
    images: Tensor,
    betas: Sequence[float],
    epochs: int,
    generator: torch.Generator,
    *,
    encoder: nn.Module,
    on_point: Callable[[VariationalPoint], None],
    learning_rate: float = 1e-3,
) -> None:
    """`on_point` hears of each of `betas`, in their order, as its encoder is trained: q is a diagonal Gaussian.

    `encoder` maps (batch, pixels) to (batch, 2 z_size), the mean and the log variance; at each beta it begins where the one
    before has left it. `made` gives the distortion of some images; `train_images` (n, pixels) train the encoder for `epochs` at
    each, `images` are measured. The prior is N(0, I). With the encoder and the generator as they were at a point, the rest of the
    betas give the same numbers.
    """
    for beta in betas:
        optimizer = torch.optim.Adam(encoder.parameters(), lr=learning_rate)
        for _ in range(epochs):
            order = torch.randperm(len(train_images), generator=generator, device=generator.device)
            for chosen in torch.split(order, _BATCH):
                _step(encoder, made, train_images[chosen], beta, optimizer, generator)
        on_point(_measured(encoder, made, images, beta, generator))


def fresh_encoder(n_pixels: int, z_size: int, generator: torch.Generator) -> nn.Sequential:
    """Two layers of tanh, on the generator's device, with weights that it draws."""
    sizes = [n_pixels, *_HIDDEN, 2 * z_size]
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(sizes):
        linear = nn.Linear(n_in, n_out, device=generator.device)
        with torch.no_grad():
            for parameter in (linear.weight, linear.bias):
                parameter.uniform_(-(n_in**-0.5), n_in**-0.5, generator=generator)
        layers += [linear, nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def _step(
    encoder: nn.Module,
    made: Callable[[Tensor], Distortion],
    batch: Tensor,
    beta: float,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
) -> None:
    """One step down KL + beta E d. The decoder's gradient by z is the distortion's own."""
    mean, logvar = encoder(batch).chunk(2, dim=1)
    z = sample(mean, logvar, generator)
    with torch.no_grad():
        _, slope = made(batch)(z.detach().double().unsqueeze(1))
    pulled = beta * (slope.squeeze(1).to(z.dtype) * z).sum(1)
    loss = (kl_from_standard(mean, logvar) + pulled).mean()
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    optimizer.step()


@torch.no_grad()
def _measured(
    encoder: nn.Module,
    made: Callable[[Tensor], Distortion],
    images: Tensor,
    beta: float,
    generator: torch.Generator,
) -> VariationalPoint:
    mean, logvar = (part.double() for part in encoder(images).chunk(2, dim=1))
    noise = torch.randn(
        (len(images), _SAMPLES, mean.shape[1]), generator=generator, device=images.device, dtype=torch.float64
    )
    d, _ = made(images)(mean.unsqueeze(1) + torch.exp(0.5 * logvar).unsqueeze(1) * noise)
    return VariationalPoint(beta, kl_from_standard(mean, logvar), d.mean(1), d.std(1) / _SAMPLES**0.5)

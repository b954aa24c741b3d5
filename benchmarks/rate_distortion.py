"""What a rate-distortion curve costs: the gap that so many gradients leave, and how close a gradient comes to what it must cost.

    python benchmarks/rate_distortion.py [NAME[@ALIAS]:MAX_BETA ...] [--data 8] [--chains 8] [--quick]

Without a NAME, vae10_digits is trained, and vae10_mnist where its files are at hand (LOSSY_DATA_DIR). First table: the gap at
the largest beta, in nats, against decoder gradients a chain, on data that the decoder drew. `published` is the rule of Huang et
al. 2020: step sizes that follow the cumulative acceptance, tuned in a first round and frozen in the second, 20 leapfrog steps, a
sigmoid schedule; `ours` is `lossy_mlflow.rate_distortion`. What the tuning costs is counted in both. Second table: seconds a
gradient, of the same number of chains, against the matrix products alone; a linear decoder through the network and as what it is.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

import lossy_mlflow
from lossy_mlflow.data import data_folder
from lossy_mlflow.models.vae import GaussianDecoder
from lossy_mlflow.rate_distortion import Distortion, gap, simulate, squared_error, tune
from lossy_mlflow.rate_distortion.distortion import SquaredError
from lossy_mlflow.rate_distortion.hmc import State, drawn, hmc, leapfrog, state_at
from lossy_mlflow.rate_distortion.network import FullyConnected, fully_connected_layers
from lossy_mlflow.rate_distortion.tuning import schedule

_LEAPFROG = 20
_A_WHILE_S = 0.02


@dataclass(frozen=True, slots=True)
class Row:
    rule: str
    gradients: float
    gap: float
    se: float


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("subjects", nargs="*", metavar="NAME:MAX_BETA")
    parser.add_argument("--data", type=int, default=8)
    parser.add_argument("--chains", type=int, default=8)
    parser.add_argument("--quick", action="store_true", help="few of the published rule's steps")
    arguments = parser.parse_args()
    with _subjects(arguments.subjects) as subjects:
        for name, decoder, largest in subjects:
            _gaps(name, decoder, largest, arguments.data, arguments.chains, arguments.quick)
            _speed(name, decoder)
    _linear()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(f"peak memory of the whole: {peak:.0f} MB")


@contextmanager
def _subjects(given: list[str]) -> Iterator[list[tuple[str, nn.Module, float]]]:
    if given:
        pairs = [text.rpartition(":") for text in given]
        yield [(name, lossy_mlflow.load_decoder(name), float(beta)) for name, _, beta in pairs]
        return
    epochs = {"vae10_digits": 80}
    if (data_folder(None) / "MNIST").is_dir():
        epochs["vae10_mnist"] = 10
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        os.chdir(folder)
        found = []
        for name, n_epochs in epochs.items():
            print(f"training {name}, {n_epochs} epochs", file=sys.stderr)
            lossy_mlflow.train(name, overrides={"model_train.epochs": n_epochs})
            found.append((name, lossy_mlflow.load_decoder(name), 36_000.0))
        yield found


def _z_size(decoder: nn.Module) -> int:
    return next(module.in_features for module in decoder.modules() if isinstance(module, nn.Linear))


def _n_pixels(decoder: nn.Module) -> int:
    return [module for module in decoder.modules() if isinstance(module, nn.Linear)][-1].out_features


def _gaps(name: str, decoder: nn.Module, beta: float, n_data: int, n_chains: int, quick: bool) -> None:
    z_size = _z_size(decoder)
    nothing = squared_error(decoder, torch.zeros(1, _n_pixels(decoder)), z_size)
    data, z = simulate(nothing, n_data, beta, torch.Generator().manual_seed(1))
    print(f"{name}: z = {z_size}, beta = {beta:g}, {n_data} images x {n_chains} chains")
    print(f"{'rule':<12}{'gradients a chain':>19}{'gap':>12}{'+-':>8}")
    theirs = [
        _shown(_published(data, z, beta, steps, n_chains))
        for steps in ((30, 150) if quick else (300, 1500, 5000))
    ]
    n_leapfrog = 4 if z_size > 50 else 2
    tuning = tune(data, [beta], torch.Generator().manual_seed(2), n_leapfrog=n_leapfrog)
    ours = []
    for steps in (25, 50, 100, 200, 400, 1000, 1200):
        laid = replace(tuning, betas=schedule(tuning, [beta], steps))
        found = gap(data, z, laid, n_chains, torch.Generator().manual_seed(3))
        cost = tuning.n_gradients + n_leapfrog * (len(laid.betas) - 1)
        ours.append(_shown(Row("ours", cost, found.mean, found.se or 0.0)))
    for row in theirs:
        enough = next((mine for mine in ours if mine.gap <= row.gap), None)
        if enough:
            times = row.gradients / enough.gradients
            print(f"as small a gap as {row.gap:.1f} with {times:.0f} x fewer gradients (target 100 x)")
    within = [row for row in ours if row.gradients <= (5000 if z_size > 50 else 3000)]
    print(f"gap within the budget: {within[-1].gap:.2f} nats (target {'1' if z_size > 50 else '0.5'})\n")


def _shown(row: Row) -> Row:
    print(f"{row.rule:<12}{row.gradients:>19.0f}{row.gap:>12.2f}{row.se:>8.2f}", flush=True)
    return row


def _published(data: Distortion, z: Tensor, beta: float, n_steps: int, n_chains: int) -> Row:
    """Two rounds, and a reverse run: the first tunes, for each step and chain, what the other two hold fixed."""
    gamma = torch.sigmoid(torch.linspace(-10, 10, n_steps + 1, dtype=torch.float64))
    betas = (beta * (gamma - gamma[0]) / (gamma[-1] - gamma[0])).tolist()
    shape = (data.n_data, n_chains, data.z_size)
    scale = torch.eye(data.z_size, dtype=torch.float64).expand(data.n_data, -1, -1)
    noise = torch.Generator().manual_seed(4)
    state = state_at(drawn(shape, noise), data)
    size = torch.full(shape[:2], 0.01, dtype=torch.float64)
    accepted, sizes = torch.zeros_like(size), []
    for step in range(1, n_steps + 1):
        sizes.append(size)
        state, info = hmc(state, betas[step], scale, size, leapfrog(_LEAPFROG), data, noise)
        accepted += info.acceptance
        size = torch.where(accepted / step > 0.65, size * 1.02, size * 0.98).clamp(1e-4, 0.5)

    def moved(state: State, step: int) -> State:
        return hmc(state, betas[step], scale, sizes[step - 1], leapfrog(_LEAPFROG), data, noise)[0]

    state = state_at(drawn(shape, noise), data)
    forward, backward = torch.zeros_like(size), torch.zeros_like(size)
    for step in range(1, n_steps + 1):
        forward -= (betas[step] - betas[step - 1]) * state.d
        state = moved(state, step)
    state = state_at(z.unsqueeze(1).expand(shape).contiguous(), data)
    for step in range(n_steps, 0, -1):
        state = moved(state, step)
        backward += (betas[step] - betas[step - 1]) * state.d
    each = -torch.logsumexp(backward, 1) - torch.logsumexp(forward, 1) + 2 * torch.log(torch.tensor(n_chains))
    cost = 2 * _LEAPFROG * n_steps
    return Row("published", cost, float(each.mean()), float(each.std() / len(each) ** 0.5))


def _speed(name: str, decoder: nn.Module) -> None:
    """A gradient of 800 chains against its matrix products, forward and backward, alone."""
    n_data, n_chains = 50, 16
    layers = fully_connected_layers(getattr(decoder, "net", decoder))
    if layers is None:
        return
    images = torch.rand(n_data, len(layers[-1].bias))
    distortion = squared_error(decoder, images, _z_size(decoder))
    z = torch.randn(n_data, n_chains, distortion.z_size, dtype=torch.float64)
    rows = n_data * n_chains
    inputs = [torch.rand(rows, layer.weight.shape[1]) for layer in layers]
    outputs = [torch.rand(rows, layer.weight.shape[0]) for layer in layers]

    def products() -> None:
        for layer, x, y in zip(layers, inputs, outputs, strict=True):
            torch.mm(x, layer.weight.t(), out=y)
            torch.mm(y, layer.weight, out=x)

    floor, ours = _in_turn([products, lambda: distortion(z)])
    print(
        f"{name}: a gradient of {rows} chains {ours * 1e3:.1f} ms, {ours / floor:.2f} x its products (target 1.2 x)\n"
    )


def _linear() -> None:
    layer = nn.Linear(10, 784)
    images, z = torch.rand(50, 784), torch.randn(50, 16, 10, dtype=torch.float64)
    through = SquaredError(FullyConnected(fully_connected_layers(layer) or []), images, torch.ones(()))
    deep = nn.Sequential(
        nn.Linear(10, 1024),
        nn.Tanh(),
        nn.Linear(1024, 1024),
        nn.Tanh(),
        nn.Linear(1024, 1024),
        nn.Tanh(),
        nn.Linear(1024, 784),
    )
    full = SquaredError(FullyConnected(fully_connected_layers(deep) or []), images, torch.ones(()))
    linear = GaussianDecoder(layer, 1.0, learned=False)
    quadratic = squared_error(linear, images, 10)
    slow, deepest, fast = _in_turn([lambda: through(z), lambda: full(z), lambda: quadratic(z)])
    print(
        f"a linear decoder of 784 pixels, 800 chains: {fast * 1e6:.0f} us a gradient, {slow / fast:.0f} x faster than through its"
        f" pixels, {deepest / fast:.0f} x faster than a deep decoder of that size (target 50 x)"
    )


def _in_turn(calls: list[Callable[[], object]], rounds: int = 15) -> list[float]:
    """The median seconds of each, in turn: short ones again and again for a while, as a sampler calls them."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, taken in zip(calls, times, strict=True):
            call()
            begun, n = time.perf_counter(), 0
            while n == 0 or time.perf_counter() - begun < _A_WHILE_S:
                call()
                n += 1
            taken.append((time.perf_counter() - begun) / n)
    return [sorted(taken)[rounds // 2] for taken in times]


if __name__ == "__main__":
    main()

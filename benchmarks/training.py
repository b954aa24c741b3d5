"""How fast an epoch is: against the usual loop, and against a bare step that does nothing but arithmetic.

    python benchmarks/training.py [--quick] [--threads N] [--data-dir D]

Each of the three is a process of its own with as many threads; they run an epoch of the same images in turn,
so that what else the machine does falls on each alike, and the quickest turn of each counts.
The usual loop: a torchvision dataset with ToTensor, a shuffling DataLoader, torch.optim.Adam as it comes, a
loss of elementwise log densities through the model's forward. The bare step: forward, backward and a fused
Adam step on one batch that lies there. Ours is `train_epochs`, with ten images of validation.
MNIST is read from LOSSY_DATA_DIR or --data-dir (a torchvision root); without it, random images of that shape
take its place.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from lossy_mlflow.data import data_folder, load_splits
from lossy_mlflow.hparams import Hparam, get_hparams
from lossy_mlflow.models import build_model
from lossy_mlflow.models.vae import Vae
from lossy_mlflow.training import Settings, make_optimizer, seeded, train_epochs

N_MNIST = 2000  # images an epoch: turns of a second or two find the machine's quiet moments


@dataclass(frozen=True, slots=True)
class Case:
    """A set, the folder of its images (None: random ones), and the ratios that it is to reach."""

    hparam_set: str
    folder: Path | None
    least_to_usual: float
    least_to_bare: float


class AsTorchvision(Dataset[tuple[Tensor, int]]):
    """uint8 images (n, height, width), as torchvision.datasets.MNIST gives them: by PIL and ToTensor."""

    def __init__(self, images: Tensor) -> None:
        from torchvision.transforms import ToTensor

        self._images = images
        self._transform = ToTensor()

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image

        return self._transform(Image.fromarray(self._images[index].numpy())), 0


class UsualVae(nn.Module):
    """The same networks, written as VAEs usually are."""

    def __init__(self, vae: Vae) -> None:
        super().__init__()
        self.encoder, self.decoder = vae.encoder, vae.decoder

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        z_mean, z_logvar = self.encoder(x).chunk(2, dim=1)
        z = z_mean + torch.exp(0.5 * z_logvar) * torch.randn_like(z_mean)
        x_mean, x_logvar = self.decoder.decode(z)
        return x_mean, x_logvar, z, z_mean, z_logvar


def log_normal(x: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    return (-0.5 * (math.log(2 * math.pi) + logvar + (x - mean) ** 2 / torch.exp(logvar))).sum(1)


def usual_epoch(tree: Hparam, case: Case) -> Callable[[], None]:
    model = UsualVae(build(tree))
    optimizer = torch.optim.Adam(model.parameters(), lr=tree.learning_rate)
    loader = DataLoader(usual_dataset(case), batch_size=tree.model_train.batch_size, shuffle=True)

    def epoch() -> None:
        total = 0.0
        for batch, _ in loader:
            x = batch.view(len(batch), -1)
            optimizer.zero_grad()
            x_mean, x_logvar, z, z_mean, z_logvar = model(x)
            zero = torch.zeros_like(z)
            log_joint = log_normal(x, x_mean, x_logvar) + log_normal(z, zero, zero)
            loss = -(log_joint - log_normal(z, z_mean, z_logvar)).mean()
            torch.autograd.backward(loss)
            optimizer.step()
            total += loss.item()

    return epoch


def bare_epoch(tree: Hparam, case: Case) -> Callable[[], None]:
    model, images = build(tree), image_tensor(case)
    optimizer = make_optimizer(model, tree.learning_rate)
    batch_size = tree.model_train.batch_size
    x = images[:batch_size].clone()
    noise = torch.randn(batch_size, tree.model_train.z_size)

    def epoch() -> None:
        for _ in range(len(images) // batch_size):
            optimizer.zero_grad()
            z_mean, z_logvar = model.encoder(x).chunk(2, dim=1)
            x_mean, x_logvar = model.decoder.decode(z_mean + torch.exp(0.5 * z_logvar) * noise)
            misfit = (x - x_mean).square().sum() * torch.exp(-x_logvar) + x.numel() * x_logvar
            kl = (z_mean.square() + z_logvar.exp() - z_logvar).sum()
            torch.autograd.backward((misfit + kl) / (2 * batch_size))
            optimizer.step()

    return epoch


def our_epoch(tree: Hparam, case: Case) -> Callable[[], None]:
    model, images = build(tree), image_tensor(case)
    settings = Settings(tree.model_train.batch_size, 10**9, tree.learning_rate, seed=6)
    optimizer = make_optimizer(model, tree.learning_rate)
    epochs = train_epochs(model, optimizer, images, images[:10], settings)

    def epoch() -> None:
        next(epochs)

    return epoch


def build(tree: Hparam) -> Vae:
    with seeded(6):
        model = build_model(tree)
    assert isinstance(model, Vae)
    return model


def image_tensor(case: Case) -> Tensor:
    """(n, pixels), float32 in [0, 1]."""
    if case.folder is None:
        return torch.rand(N_MNIST, 784)
    dataset = get_hparams(case.hparam_set).dataset.name
    return load_splits(dataset, case.folder, seed=6).train[:N_MNIST].clone()


def usual_dataset(case: Case) -> Dataset[tuple[Tensor, int]]:
    if case.folder and case.hparam_set == "vae10_mnist":
        from torchvision.datasets import MNIST
        from torchvision.transforms import ToTensor

        return Subset(MNIST(case.folder, transform=ToTensor()), range(N_MNIST))
    images = image_tensor(case)
    side = math.isqrt(images.shape[1])
    return AsTorchvision((images * 255).to(torch.uint8).reshape(-1, side, side))


KINDS = {"usual": usual_epoch, "bare": bare_epoch, "ours": our_epoch}


def worker(pipe: Connection, kind: str, case: Case, threads: int) -> None:
    """Run one epoch to warm up, then one for each thing the pipe brings, and answer with its seconds."""
    torch.set_num_threads(threads)
    epoch = KINDS[kind](get_hparams(case.hparam_set), case)
    epoch()
    pipe.send(0.0)
    while pipe.recv():
        begin = time.perf_counter()
        epoch()
        pipe.send(time.perf_counter() - begin)


def best_seconds(case: Case, threads: int, turns: int) -> dict[str, float]:
    """The shortest time of an epoch of each kind."""
    context = multiprocessing.get_context("spawn")
    best = dict.fromkeys(KINDS, math.inf)
    with ExitStack() as stack:
        pipes = {}
        for kind in KINDS:
            here, there = context.Pipe()
            pipes[kind] = stack.enter_context(closing(here))
            process = context.Process(target=worker, args=(there, kind, case, threads))
            process.start()
            stack.callback(process.join)
            stack.callback(here.send, False)
            here.recv()
        for _ in range(turns):
            for kind, pipe in pipes.items():
                pipe.send(True)
                best[kind] = min(best[kind], pipe.recv())
    return best


def report(case: Case, threads: int, turns: int) -> None:
    n = len(image_tensor(case))
    usual, bare, ours = (n / seconds for seconds in best_seconds(case, threads, turns).values())
    to_usual, to_bare = ours / usual, ours / bare
    missed = to_usual < case.least_to_usual or to_bare < case.least_to_bare
    target = f">= {case.least_to_usual} x" + (f", >= {case.least_to_bare:.0%}" if case.least_to_bare else "")
    print(
        f"{case.hparam_set:<16}{usual:>10.0f}{bare:>10.0f}{ours:>10.0f}{to_usual:>9.2f} x{to_bare:>9.0%}   "
        f"{target}{'   missed' if missed else ''}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer turns")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--data-dir", help="a torchvision root with MNIST")
    options = parser.parse_args()
    folder = data_folder(options.data_dir)
    mnist = folder if (folder / "MNIST" / "raw").exists() else None
    turns = 5 if options.quick else 25
    source = f"MNIST of {mnist}" if mnist else "random images of MNIST's size (no MNIST in --data-dir)"
    print(f"{options.threads} threads, the best of {turns} turns, {source}")
    print(f"{'images/s':<16}{'usual':>10}{'bare':>10}{'ours':>10}{'to usual':>11}{'to bare':>9}   target")
    report(Case("vae10_mnist", mnist, 1.8, 0.85), options.threads, turns)
    report(Case("vae10_digits", folder, 2.5, 0.0), options.threads, 4 * turns)  # they are short


if __name__ == "__main__":
    main()

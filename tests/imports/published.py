"""Files laid out as the published code lays them out, and decoders of the tests' own that say what each must decode to."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class TheirVae(nn.Module):
    """en1..en4, de1..de3, de_mean; tanh, a sigmoid on the mean; a scalar x_logvar that is learned."""

    def __init__(self, z: int = 4, width: int = 6, n_pixels: int = 784) -> None:
        super().__init__()
        self.en1, self.en2 = nn.Linear(n_pixels, width), nn.Linear(width, width)
        self.en3, self.en4 = nn.Linear(width, width), nn.Linear(width, 2 * z)
        self.de1, self.de2, self.de3 = nn.Linear(z, width), nn.Linear(width, width), nn.Linear(width, width)
        self.de_mean = nn.Linear(width, n_pixels)
        self.x_logvar = nn.Parameter(torch.tensor(-3.2))

    def decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(self.de2(torch.tanh(self.de1(z))))
        return torch.sigmoid(self.de_mean(torch.tanh(self.de3(h)))), self.x_logvar


class TheirLinearVae(nn.Module):
    """enc, dec_mean; its variance is 1 whatever x_logvar says."""

    def __init__(self, z: int = 100) -> None:
        super().__init__()
        self.enc, self.dec_mean = nn.Linear(784, 2 * z), nn.Linear(z, 784)
        self.x_logvar = nn.Parameter(torch.tensor(-3.5))

    def decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.dec_mean(z), torch.zeros(1)


class TheirMlp(nn.Module):
    """One, two or three hidden layers, tanh, a sigmoid at the end."""

    def __init__(self, n_hidden: int, z: int = 5, width: int = 8, n_pixels: int = 784) -> None:
        super().__init__()
        self.n_hidden = n_hidden
        for number in range(1, n_hidden + 1):
            setattr(self, f"de{number}", nn.Linear(z if number == 1 else width, width))
        self.out = nn.Linear(width, n_pixels)

    def decode(self, z: Tensor) -> Tensor:
        for number in range(1, self.n_hidden + 1):
            z = torch.tanh(getattr(self, f"de{number}")(z))
        return torch.sigmoid(self.out(z))


class TheirDcgan(nn.Module):
    """A projection, then [norm, ReLU, ConvTranspose2d] as often as the image's side was halved, tanh, cropped."""

    def __init__(
        self,
        side: int,
        channels: int,
        norm: str,
        n_convs: int,
        spectral: bool = False,
        z: int = 5,
        ngf: int = 4,
    ):
        super().__init__()
        self.side, first = side, side
        for _ in range(n_convs):
            first = (first + 1) // 2
        width = ngf * 2 ** (n_convs - 1)
        self.first_shape = (width, first, first)
        self.proj = nn.Linear(z, width * first * first, bias=False)
        layers: list[nn.Module] = []
        for step in range(n_convs):
            out = channels if step == n_convs - 1 else width // 2
            if norm == "bn":
                layers.append(nn.BatchNorm2d(width))
            if norm == "in":
                layers.append(nn.InstanceNorm2d(width))
            conv: nn.Module = nn.ConvTranspose2d(width, out, 4, 2, 1, bias=norm == "none")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                layers += [nn.ReLU(), nn.utils.spectral_norm(conv) if spectral else conv]
            width = out
        self.main = nn.Sequential(*layers, nn.Tanh())
        # As after some training: running statistics and singular vectors that aren't their first ones.
        for _ in range(3):
            self.decode(torch.randn(16, z))
        self.eval()

    def decode(self, z: Tensor) -> Tensor:
        images = self.main(self.proj(z).view(-1, *self.first_shape))[:, :, : self.side, : self.side]
        return (images.reshape(len(z), -1) + 1) / 2


class TheirAae:
    """TensorFlow's layout: x @ w + b; ReLU, a sigmoid at the end."""

    def __init__(self, z: int = 3, width: int = 7) -> None:
        sizes = [z, width, width, width, 784]
        random = np.random.default_rng(1)
        self.arrays: dict[str, Any] = {}
        for number in range(1, 5):
            n_in, n_out = sizes[number - 1 : number + 1]
            self.arrays[f"decoder_h{number}/w_dense:0"] = random.normal(size=(n_in, n_out)).astype(np.float32)
            self.arrays[f"decoder_h{number}/b_dense:0"] = random.normal(size=n_out).astype(np.float32)

    def decode(self, z: Tensor) -> Tensor:
        h = z.numpy()
        for number in range(1, 5):
            h = h @ self.arrays[f"decoder_h{number}/w_dense:0"] + self.arrays[f"decoder_h{number}/b_dense:0"]
            h = np.maximum(h, 0) if number < 4 else 1 / (1 + np.exp(-h))
        return torch.from_numpy(h)


def vae_checkpoint(vae: nn.Module, epoch: int, losses: list[float]) -> dict[str, Any]:
    return {
        "state_dict": vae.state_dict(),
        "optimizer": torch.optim.Adam(vae.parameters()).state_dict(),
        "global_step": 600 * epoch,
        "global_epoch": epoch,
        # It takes means by numpy.
        "test_loss_list": [np.float64(loss) for loss in losses],
    }


def save(folder: Path, path: str, content: Any, *, new_zip: bool = True) -> None:
    """`new_zip=False`: as torch before 1.6 wrote it, which the published weights are."""
    file = folder / path
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, file, _use_new_zipfile_serialization=new_zip)


def save_gan(
    folder: Path, note: str, base: str, epoch: int, settings: str, weights: dict[str, Tensor]
) -> str:
    """Weights and the settings beside them; the path of the weights."""
    hash_ = f"LT_delta-0x11111111_base-{base}_LT"
    path = f"checkpoints/gans/results/{note}_{hash_}/{hash_}_netG_epoch_{epoch}.pth"
    save(folder, path, weights, new_zip=False)
    records = folder / "checkpoints" / "gans" / "lt_records" / hash_
    records.mkdir(parents=True, exist_ok=True)
    (records / f"settings_{hash_}.txt").write_text(settings)
    return path

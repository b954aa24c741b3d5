"""What a decoder draws and how it redraws held-out images: step images of the run, and the picture of a version."""

from __future__ import annotations

import contextlib
import io
import math
import re
from collections.abc import Iterator

import torch
from mlflow import MlflowClient
from PIL import Image

from lossy_mlflow.hparams import Hparam
from lossy_mlflow.models import Autoencoder, Decoder, decode, decoder_of
from lossy_mlflow.plots import image_grid, reconstruction_grid
from lossy_mlflow.tracking.runs import artifacts_of, paths_in
from lossy_mlflow.training import generator_for

_COLUMNS = 8


def drawn_epochs(client: MlflowClient, run_id: str) -> set[int]:
    """The epochs whose pictures the run has already."""
    there = paths_in(artifacts_of(client, run_id), "images")
    return {int(found[1]) for path in there if (found := re.search(r"samples\+step\+(\d+)\+", path))}


@torch.no_grad()
def log_pictures(
    client: MlflowClient, run_id: str, tree: Hparam, model: torch.nn.Module, images: torch.Tensor, epoch: int
) -> None:
    """Samples from 64 fixed z, and the reconstructions of the first 16 of `images`, at step `epoch`.

    `images` (n, input_vector_length) lie on the model's device. A model without an encoder has no reconstructions, one without a
    decoder has none of either.
    """
    with _evaluating(model):
        decoder = decoder_of(model)
        if not isinstance(decoder, Decoder):
            return
        samples, _ = decode(decoder, _fixed_z(tree).to(images.device))
        drawn = {"samples": image_grid(samples, tree.dataset.input_dims, _COLUMNS)}
        if isinstance(model, Autoencoder):
            originals = images[: 2 * _COLUMNS]
            redrawn, _ = decode(decoder, model.encode(originals)[0])
            drawn["reconstructions"] = reconstruction_grid(
                originals, redrawn, tree.dataset.input_dims, _COLUMNS
            )
    # Samples last: where they stand, the step is whole.
    for key in ("reconstructions", "samples"):
        if key in drawn:
            client.log_image(run_id, drawn[key], key=key, step=epoch)
            # The newest under a plain name as well: one click away in the run, side by side when runs are compared.
            client.log_image(run_id, drawn[key], artifact_file=f"{key}.png")


@torch.no_grad()
def samples_png(decoder: torch.nn.Module, tree: Hparam, device: torch.device | str) -> bytes:
    """The samples from the same 64 z as a PNG file; empty where it decodes nothing, or no picture.

    The decoder lies on `device`.
    """
    if not isinstance(decoder, Decoder) or not _is_picture(tree):
        return b""
    with _evaluating(decoder):
        samples, _ = decode(decoder, _fixed_z(tree).to(device))
    grid, file = image_grid(samples, tree.dataset.input_dims, _COLUMNS), io.BytesIO()
    is_grey = tree.dataset.input_dims[0] == 1
    Image.fromarray(grid[..., 0] if is_grey else grid).save(file, "PNG")
    return file.getvalue()


def _fixed_z(tree: Hparam) -> torch.Tensor:
    # The same z at every step and on every device: pictures of two epochs differ by the training alone.
    noise = generator_for(tree.random_seed or 0, "samples", 0, "cpu")
    return torch.randn(_COLUMNS**2, tree.model_train.z_size, generator=noise)


def _is_picture(tree: Hparam) -> bool:
    """Whether a vector that is decoded is an image of one or three channels."""
    dims = tree.dataset.input_dims
    is_shape = isinstance(dims, list) and len(dims) == 3 and all(type(side) is int for side in dims)
    return is_shape and dims[0] in (1, 3) and math.prod(dims) == tree.dataset.input_vector_length


@contextlib.contextmanager
def _evaluating(module: torch.nn.Module) -> Iterator[None]:
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)

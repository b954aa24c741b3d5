"""What a decoder draws and how it redraws held-out images, as step images of the run."""

from __future__ import annotations

import re

import torch
from mlflow import MlflowClient

from lossy_mlflow.hparams import Hparam
from lossy_mlflow.models import Autoencoder, decode, decoder_of
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

    `images` (n, input_vector_length) lie on the model's device. A model without an encoder has no reconstructions.
    """
    was_training = model.training
    model.eval()
    decoder = decoder_of(model)
    # The same z at every step and on every device: pictures of two epochs differ by the training alone.
    z = torch.randn(
        _COLUMNS**2, tree.model_train.z_size, generator=generator_for(tree.random_seed, "samples", 0, "cpu")
    )
    samples, _ = decode(decoder, z.to(images.device))
    drawn = {"samples": image_grid(samples, tree.dataset.input_dims, _COLUMNS)}
    if isinstance(model, Autoencoder):
        originals = images[: 2 * _COLUMNS]
        redrawn, _ = decode(decoder, model.encode(originals)[0])
        drawn["reconstructions"] = reconstruction_grid(originals, redrawn, tree.dataset.input_dims, _COLUMNS)
    model.train(was_training)
    # Samples last: where they stand, the step is whole.
    for key in ("reconstructions", "samples"):
        if key in drawn:
            client.log_image(run_id, drawn[key], key=key, step=epoch)
            # The newest under a plain name as well: one click away in the run, side by side when runs are compared.
            client.log_image(run_id, drawn[key], artifact_file=f"{key}.png")

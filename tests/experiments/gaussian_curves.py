"""Decoders whose curves are known: x_mean = scale * z, one latent dimension for each of the first pixels; d the squared error."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

BETAS = np.geomspace(0.03, 3000, 60)


@dataclass(frozen=True)
class Gaussian:
    """It explains the first `n_latent` pixels, each with that scale; pixels are N(0, variance)."""

    scale: float
    n_latent: int
    n_pixels: int = 6
    variance: float = 2.0
    offset: float = 0.0  # of every distortion, as a likelihood's normalizer is

    def draw(self, n: int, generator: np.random.Generator) -> Any:
        return generator.normal(0, np.sqrt(self.variance), (n, self.n_pixels))

    def log_z(self, squares: Any, beta: Any) -> Any:
        """(betas, images) for the squares of the pixels (images, n_pixels): a Gaussian integral a latent dimension."""
        beta, share = beta[:, None], 1 / (1 + 2 * beta[:, None] * self.scale**2)
        explained, rest = squares[:, : self.n_latent].sum(1), squares[:, self.n_latent :].sum(1)
        return 0.5 * self.n_latent * np.log(share) - beta * (explained * share + rest + self.offset)

    def distortion(self, squares: Any, beta: Any) -> Any:
        """The derivative of -log Z."""
        share = 1 / (1 + 2 * beta[:, None] * self.scale**2)
        explained, rest = squares[:, : self.n_latent].sum(1), squares[:, self.n_latent :].sum(1)
        return self.n_latent * self.scale**2 * share + explained * share**2 + rest + self.offset

    def true_rate(self, distortion: float) -> float:
        """Of the whole population: the largest of -log Z - beta D, on a grid so fine that nothing is left to interpolate."""
        squares = np.full((1, self.n_pixels), self.variance)
        fine = np.geomspace(1e-4, 1e5, 400_000)
        return float((-self.log_z(squares, fine)[:, 0] - fine * distortion).max())


def log_evaluation(
    client: Any, label: str, decoder: Gaussian, images: Any, folder: Path, **changes: Any
) -> str:
    """A finished evaluation, as `lossy evaluate` leaves one, by MLflow's own client. Returns the run's id."""
    squares = images**2
    log_z, distortion = decoder.log_z(squares, BETAS), decoder.distortion(squares, BETAS)
    by_image = {
        "log_z": log_z,
        "distortion": distortion,
        "rate": -log_z - BETAS[:, None] * distortion,
        "ess": np.full_like(log_z, 16.0),
    }
    n = len(images)
    curve = {
        "label": label,
        "reference": f"{label}/1",
        "weights_sha256": "ab" * 32,
        "data_digest": f"{abs(hash(images.tobytes())):064x}",
        "target": "mse",
        "estimator": "ais",
        "n_data": n,
        "n_chains": 16,
        "n_dimensions": decoder.n_pixels,
        "z_size": decoder.n_latent,
        "quick": False,
        "beta": BETAS.tolist(),
        "acceptance": [0.8] * len(BETAS),
        "gap": [{"beta": float(BETAS[-1]), "gap": 0.4, "se": 0.1}],
        "closed_form": None,
        "log_likelihood": {},
        "doubts": [],
    }
    curve |= {name: values.mean(1).tolist() for name, values in by_image.items()}
    for name in ("rate", "distortion", "log_z"):
        curve[f"{name}_se"] = (by_image[name].std(1) / np.sqrt(n)).tolist()
    curve |= changes
    experiment = client.get_experiment_by_name("curves")
    experiment_id = experiment.experiment_id if experiment else client.create_experiment("curves")
    tags = {"kind": "evaluate", "label": label, "target": curve["target"]} | (
        {"quick": "true"} if curve["quick"] else {}
    )
    run_id = client.create_run(experiment_id, tags=tags, run_name=label).info.run_id
    (folder / "rd_curve.json").write_text(json.dumps(curve))
    save_file(by_image, folder / "rd_data.safetensors")
    for name in ("rd_curve.json", "rd_data.safetensors"):
        client.log_artifact(run_id, str(folder / name))
    client.set_terminated(run_id, "FINISHED")
    return str(run_id)

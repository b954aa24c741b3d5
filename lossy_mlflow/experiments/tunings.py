"""A pilot's result as a file of its run, for another evaluation to take: step sizes and betas, on the same data masses too."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch

from lossy_mlflow.errors import ConflictError, LossyError, NotFoundError
from lossy_mlflow.experiments.evaluations import finished_evaluations, none_finished
from lossy_mlflow.rate_distortion import Tuning
from lossy_mlflow.tracking.connection import Connection
from lossy_mlflow.tracking.provenance import log_bytes
from lossy_mlflow.tracking.runs import artifacts_of, paths_in

FOLDER = "tuning"
_TENSORS = [field.name for field in fields(Tuning) if field.name not in ("n_leapfrog", "n_gradients")]


@dataclass(frozen=True, slots=True)
class Target:
    """The evaluation whose tuning is taken. `same_data`: of the same decoder and images, by the same distortion and prior."""

    run_id: str
    label: str
    same_data: bool


def find_target(connection: Connection, label: str, tags: dict[str, str]) -> Target:
    """The latest finished evaluation of `label` by chains, `--quick` ones left out. `tags`: of the evaluation that wants it.

    Raises NotFoundError where there is none.
    """
    runs = finished_evaluations(connection.client, label, quick=False)
    # Encoders leave no tuning.
    runs = [run for run in runs if run.data.params.get("rd.estimator") != "variational"]
    if not runs:
        error = none_finished(connection, label, quick=False)
        raise NotFoundError(f"step_sizes_target is {label!r}. {error.what}", error.hint)
    there = runs[0].data.tags
    what = ("weights_sha256", "data_digest", "target", "feature_map", "n_batch", "prior", "changed")
    same = all(there.get(key) == tags.get(key) for key in what)
    return Target(runs[0].info.run_id, label, same)


def store_tuning(connection: Connection, run_id: str, batch: int, tuning: Tuning) -> None:
    """As the run's artifact tuning/batch_N.safetensors."""
    from safetensors.torch import save

    about = {"n_leapfrog": tuning.n_leapfrog, "n_gradients": tuning.n_gradients}
    tensors = {name: getattr(tuning, name).cpu().contiguous() for name in _TENSORS}
    content = save(tensors, {"tuning": json.dumps(about)})
    log_bytes(connection.client, run_id, content, _path(batch))


def load_tuning(connection: Connection, run_id: str, batch: int, device: torch.device) -> Tuning | None:
    """None where the run has none of that batch. Raises LossyError where it is damaged."""
    from safetensors import SafetensorError, safe_open

    artifacts = artifacts_of(connection.client, run_id)
    path = _path(batch)
    if path not in paths_in(artifacts, FOLDER):
        return None
    with tempfile.TemporaryDirectory() as folder:
        file = artifacts.download_artifacts(path, folder)
        try:
            with safe_open(file, framework="pt", device=str(device)) as content:
                about = json.loads((content.metadata() or {})["tuning"])
                return Tuning(**{name: content.get_tensor(name) for name in _TENSORS}, **about)
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise LossyError(f"The tuning of the run {run_id} is damaged: {path}.") from error


def _path(batch: int) -> str:
    return f"{FOLDER}/batch_{batch}.safetensors"


def tuning_of_target(
    connection: Connection, target: Target, batch: int, betas: Sequence[float], device: torch.device
) -> Tuning:
    """The target's tuning, its schedule cut at the last of `betas` and holding all of them. It cost nothing here.

    Raises LossyError where it is gone; ConflictError where its betas end before these do.
    """
    found = load_tuning(connection, target.run_id, batch if target.same_data else 0, device)
    if found is None:
        raise LossyError(
            f"The tuning of {target.label} is gone: its run {target.run_id} has no file in {FOLDER}.",
            "Evaluate it anew with another rd.random_seed, or without step_sizes_target.",
        )
    last, wanted = float(found.betas[-1]), max(betas)
    if last < wanted:
        raise ConflictError(
            f"The betas of {target.label} end at {last:g}; here they go up to {wanted:g}.",
            f"Evaluate up to there: --set rd.max_beta={last:g}",
        )
    inner = [beta for beta in found.betas.tolist() if beta < wanted]
    together = torch.tensor(sorted({*inner, *betas}), dtype=torch.float64)
    return replace(found, betas=together, n_gradients=0.0)


def fitted(target: Tuning, own: Tuning) -> Tuning:
    """The step sizes (the median over its data) and the betas of `target`, with the masses that a pilot found on these data."""
    found = torch.stack([target.step_sizes(beta).median() for beta in own.knots.tolist()])
    steps = found.unsqueeze(1).expand_as(own.step_size)
    return replace(own, step_size=steps.contiguous(), betas=target.betas, n_leapfrog=target.n_leapfrog)

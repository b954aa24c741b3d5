"""What a person finds beside the numbers of a run: its description, its data, where its code came from."""

from __future__ import annotations

import json
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag

from lossy_mlflow.data import Splits
from lossy_mlflow.hparams import Hparam
from lossy_mlflow.tracking.provenance import installed_packages, log_text, uncommitted_difference

_DIGEST_LENGTH = 36  # all that MLflow keeps of a data set's digest


def describe(hparam_set: str, label: str, tree: Hparam) -> str:
    """The Markdown text that the tracking UI shows above a run and its registered model."""
    z_size = tree.model_train.z_size
    return (
        f"`{tree.model_name}` with {z_size} latent dimensions on `{tree.dataset.name}`, trained by the name `{hparam_set}`.\n\n"
        f"    decoder = lossy_mlflow.load_decoder({label + '@best'!r})\n"
        f"    mlflow.pyfunc.load_model({f'models:/{label}@best'!r}).predict(z)    # z: (n, {z_size}), float32\n"
    )


def log_datasets(client: MlflowClient, run_id: str, splits: Splits) -> None:
    """The images that were trained on and validated on, as MLflow dataset inputs. Safe to repeat."""
    inputs = []
    for context, images in (("training", splits.train), ("validation", splits.val)):
        dataset = Dataset(
            name=f"{splits.name}-{context}",
            digest=splits.digest[:_DIGEST_LENGTH],
            source_type="lossy_mlflow",
            source=json.dumps({"data set": splits.name}),
            profile=json.dumps({"images": len(images), "input_dims": list(splits.input_dims)}),
        )
        inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", context)]))
    client.log_inputs(run_id, inputs)


def log_provenance(client: MlflowClient, run_id: str, user_code: Path | None) -> None:
    """Installed packages, the uncommitted difference, and the user's own file, as artifacts."""
    log_text(client, run_id, installed_packages(), "environment/packages.txt")
    if difference := uncommitted_difference():
        log_text(client, run_id, difference, "code/uncommitted.diff")
    if user_code:
        client.log_artifact(run_id, str(user_code), "code")

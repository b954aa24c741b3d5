"""What a person finds beside the numbers of a run: its description, its data, its log, where its code came from."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag

from lossy_mlflow.data import Splits
from lossy_mlflow.hparams import Hparam
from lossy_mlflow.tracking.connection import Connection
from lossy_mlflow.tracking.provenance import (
    git_commit,
    installed_packages,
    log_file,
    log_text,
    uncommitted_difference,
)
from lossy_mlflow.tracking.runs import artifacts_of

# As long as those that MLflow makes; the tags dataset_digest and data_digest have it whole.
_DIGEST_LENGTH = 8


def describe(label: str, tree: Hparam) -> str:
    """The text that the tracking UI shows above a run and its registered model; its table has room for half the first line."""
    z_size = tree.model_train.z_size
    if z_size is None:
        return (
            f"{tree.model_name}, a map of features, {tree.dataset.name}.\n\n"
            f"    features = lossy_mlflow.load_decoder({label + '@best'!r}).features(x)\n\n"
            f"    lossy evaluate NAME --set rd.target=features --set rd.feature_map={label}\n"
        )
    return (
        f"{tree.model_name}, {z_size} latent dimensions, {tree.dataset.name}.\n\n"
        f"    decoder = lossy_mlflow.load_decoder({label + '@best'!r})\n\n"
        f"    # z: (n, {z_size}), float32\n"
        f"    mlflow.pyfunc.load_model({f'models:/{label}@best'!r}).predict(z)\n"
    )


def log_datasets(client: MlflowClient, run_id: str, splits: Splits) -> None:
    """The images that were trained on and validated on, as MLflow dataset inputs. Safe to repeat."""
    source, dims = {"data set": splits.name}, splits.input_dims
    both = (("training", splits.train), ("validation", splits.val))
    inputs = [
        dataset_input(splits.name, context, splits.digest, source, len(images), dims)
        for context, images in both
    ]
    client.log_inputs(run_id, inputs)


def dataset_input(
    of: str, context: str, digest: str, source: Mapping[str, str], n_images: int, input_dims: Sequence[int]
) -> DatasetInput:
    """Images as a run's input. MLflow knows a data set by its name, which is OF-CONTEXT, and the beginning of the digest."""
    dataset = Dataset(
        name=f"{of}-{context}",
        digest=digest[:_DIGEST_LENGTH],
        source_type="lossy_mlflow",
        source=json.dumps(source),
        profile=json.dumps({"images": n_images, "input_dims": list(input_dims)}),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", context)])


class AttemptRecords:
    """The folder attempts/N of a run: the log of its Nth attempt, and the code and packages that this one ran with.

    The log is stored on leaving, however the block ends; a log that can't be stored is not in the way of what ended it.
    """

    def __init__(self, connection: Connection, run_id: str, user_code: Path | None) -> None:
        self._connection = connection
        self._client = connection.client
        self._run_id = run_id
        number = len(artifacts_of(connection.client, run_id).list_artifacts("attempts")) + 1
        self._folder = f"attempts/{number}"
        self._user_code = user_code
        self._log_file = log_file()

    def __enter__(self) -> Self:
        self._log_path = self._log_file.__enter__()
        self._log_text(installed_packages(), "packages.txt")
        if commit := git_commit():
            self._log_text(f"{commit}\n", "git_commit.txt")
        if difference := uncommitted_difference():
            self._log_text(difference, "uncommitted.diff")
        if self._user_code:
            self._client.log_artifact(self._run_id, str(self._user_code), self._folder)
        return self

    def store_log(self) -> None:
        self._client.log_artifact(self._run_id, str(self._log_path), self._folder)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(Exception):
            self.store_log()
        self._log_file.__exit__(None, None, None)

    def _log_text(self, text: str, name: str) -> None:
        path = f"{self._folder}/{name}"
        with self._connection.keeping(self._run_id, path):
            log_text(self._client, self._run_id, text, path)

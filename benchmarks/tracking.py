"""What tracking adds to training: params, metrics, pictures, versions, training state, against the epochs themselves.

    LOSSY_DATA_DIR=ROOT python benchmarks/tracking.py [--epochs 20] [--hparam-set vae10_mnist]

One training by name on the embedded default, with a checkpoint every five epochs. An epoch's seconds, validation included, are
those that the run logs; all else that passes from the start of the first epoch to the end of the run is what tracking adds.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import torch

TARGET = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--hparam-set", default="vae10_mnist")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        os.environ["XDG_STATE_HOME"] = str(Path(folder, "state"))
        epochs, total = _measure(arguments.hparam_set, arguments.epochs)
    added = total - epochs
    print(f"{arguments.hparam_set}, {arguments.epochs} epochs, {torch.get_num_threads()} threads")
    print(f"{'epochs':<22}{epochs:>9.2f} s")
    print(f"{'added by tracking':<22}{added:>9.2f} s{added / epochs:>9.1%}  target < {TARGET:.0%}")


def _measure(hparam_set: str, epochs: int) -> tuple[float, float]:
    """(seconds of the epochs, seconds from the start of the first epoch to the end of the run)."""
    import mlflow

    import lossy_mlflow

    overrides = {"model_train.epochs": epochs, "checkpointing_freq": 5, "start_checkpointing": 5}
    first_epoch_ended: list[float] = []
    result = lossy_mlflow.train(
        hparam_set, overrides=overrides, progress=lambda _: first_epoch_ended.append(time.perf_counter())
    )
    ended = time.perf_counter()
    history = mlflow.MlflowClient().get_metric_history(result.run_id, "epoch_seconds")
    seconds = {point.step: point.value for point in history}
    return sum(seconds.values()), ended - first_epoch_ended[0] + seconds[1]


if __name__ == "__main__":
    main()

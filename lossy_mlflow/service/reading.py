"""Whether the installed MLflow can read a database: `python -m lossy_mlflow.service.reading URI`, an exit code and a message."""

from __future__ import annotations

import sys

from mlflow import MlflowClient


def main() -> None:
    client = MlflowClient(sys.argv[1])
    for experiment in client.search_experiments(max_results=10):
        client.search_runs([experiment.experiment_id], max_results=10)
        client.search_logged_models([experiment.experiment_id], max_results=10)
    for model in client.search_registered_models(max_results=10):
        client.search_model_versions(
            f"name = '{model.name}'" if "'" not in model.name else None, max_results=10
        )


if __name__ == "__main__":
    main()

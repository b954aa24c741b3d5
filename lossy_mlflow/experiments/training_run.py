"""One training as a run: what is loaded and built before it exists, and then its loop."""

from __future__ import annotations

import logging

from lossy_mlflow.checkpoints.publish import ensure_registered_model
from lossy_mlflow.data import data_folder, load_splits
from lossy_mlflow.experiments.loop import Training
from lossy_mlflow.experiments.new_run import make_run, run_tags
from lossy_mlflow.experiments.records import describe
from lossy_mlflow.experiments.request import Request
from lossy_mlflow.experiments.settings import check_sizes, choose_device, settings_of
from lossy_mlflow.experiments.warm_start import warm_start
from lossy_mlflow.models import build_model
from lossy_mlflow.tracking.connection import Connection
from lossy_mlflow.tracking.ownership import lock_domain
from lossy_mlflow.tracking.provenance import log_file
from lossy_mlflow.tracking.session import running
from lossy_mlflow.tracking.signals import stop_request
from lossy_mlflow.training import seeded

log = logging.getLogger("lossy_mlflow")


def run_training(
    connection: Connection, request: Request, *, resumed: str | None, made_for_us: str | None
) -> str:
    """Train, and return the id of the run: `resumed`, if given, else a new one, for which `mlflow run` may have made the shell.

    Whatever can be found wrong (the device, the data, the model, the rights) is found before the run exists.
    """
    tree = request.tree
    with stop_request() as asked:
        device = choose_device(request.device)
        settings = settings_of(tree)
        splits = load_splits(
            tree.dataset.name,
            data_folder(request.data_dir),
            settings.seed,
            train=tree.dataset.train is not False,
            progress=log.warning,  # a download is worth a line, asked for or not
        )
        check_sizes(tree, splits)
        with seeded(settings.seed):
            model = build_model(tree)
        taken = None if resumed else warm_start(connection, tree, model)
        model.to(device)
        ensure_registered_model(
            connection.client, request.label, describe(request.hparam_set, request.label, tree)
        )
        tags = run_tags(request, splits, device, taken)
        run_id = resumed or make_run(connection, request, tags, made_for_us)
        with running(connection, run_id, lock_domain()), log_file("train.log") as log_path:
            training = Training(connection, request, settings, splits, model, device, run_id, log_path, asked)
            training.run(tags)
        return run_id

"""One training as a run: what is loaded and built before it exists, and then its loop."""

from __future__ import annotations

import logging

from lossy_mlflow.checkpoints.publish import ensure_registered_model
from lossy_mlflow.data import data_folder, load_splits
from lossy_mlflow.experiments.loop import Training
from lossy_mlflow.experiments.new_run import check_same_data, make_run, run_tags
from lossy_mlflow.experiments.records import describe
from lossy_mlflow.experiments.request import Request
from lossy_mlflow.experiments.settings import check_sizes, experiment_name, settings_of
from lossy_mlflow.experiments.trial import check_model, check_parts
from lossy_mlflow.experiments.warm_start import warm_start
from lossy_mlflow.models import build_model, needs_labels
from lossy_mlflow.models.device import choose_device, convolutions
from lossy_mlflow.tracking.connection import Connection
from lossy_mlflow.tracking.runs import experiment_for, set_tags
from lossy_mlflow.tracking.session import running
from lossy_mlflow.tracking.signals import stop_request
from lossy_mlflow.tracking.training_state import load_training_state
from lossy_mlflow.training import seeded, with_labels

log = logging.getLogger("lossy_mlflow")


def run_training(
    connection: Connection, request: Request, *, resumed: str | None, made_for_us: str | None
) -> str:
    """Train, and return the id of the run: `resumed`, if given, else a new one, for which `mlflow run` may have made the shell.

    What the user can have got wrong (the fields, the device, the data, the model) and what the server may refuse (the names, the
    rights) is found before the run exists. A stop that is asked for until then simply ends the process.
    """
    tree, client = request.tree, connection.client
    settings = settings_of(tree)
    device = choose_device(request.device)
    with seeded(settings.seed):
        model = build_model(tree)
    # Before data are fetched for what can't be trained.
    check_parts(model, tree)
    # A download is worth a line, asked for or not.
    splits = load_splits(
        tree.dataset.name,
        data_folder(request.data_dir),
        settings.seed,
        train=tree.dataset.train is not False,
        progress=log.warning,
        labels=needs_labels(model),
    )
    check_sizes(tree, splits)
    check_model(model, tree, with_labels(splits.val, splits.val_labels), settings, device)
    state = load_training_state(client, resumed) if resumed else None
    taken = warm_start(connection, tree, model) if state is None else None
    model.to(device)
    experiment = experiment_for(client, experiment_name(tree))
    about = describe(request.label, tree)
    connection.unless_away(lambda: ensure_registered_model(client, request.label, about))
    tags = run_tags(request, splits, device, taken)
    with stop_request() as asked:
        if resumed is None:
            run_id = make_run(connection, request, tags, experiment.experiment_id, made_for_us)
        else:
            run_id = resumed
            check_same_data(client, run_id, splits)
            if taken:
                set_tags(client, run_id, {key: tags[key] for key in ("parent_version", "started_from")})
        with running(connection, run_id) as attempt, convolutions(exact=False):
            Training(attempt, request, settings, splits, model, device, state, asked).run()
    return run_id

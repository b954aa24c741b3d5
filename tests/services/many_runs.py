# ruff: noqa: S608 (nothing in it comes from anybody)
"""A database and a store as years of trainings leave them, made in seconds: by SQL into MLflow's tables, not by its API."""

from __future__ import annotations

from collections.abc import Iterator

import sqlalchemy

from lossy_mlflow.checkpoints.flavor import FILES
from lossy_mlflow.tracking.run_files import HPARAMS_FILE, STATE_FOLDER, STATE_SLOTS

_RUN = "md5('run' || i)"
_MODEL = "'m-' || md5('model' || i)"
_STARTED = "(extract(epoch from now()) * 1000)::bigint - i * 60000::bigint - 600000"
_TAGS = {
    "kind": "'train'",
    "label": "'trained_' || i",
    "hparam_set": "'trained_' || i",
    "mlflow.user": "'somebody'",
    "mlflow.runName": "'trained_' || i",
    "mlflow.source.name": "'lossy'",
    "mlflow.source.type": "'LOCAL'",
    "owner": "'machine:0123456789ab'",
    "attempt": "md5('attempt' || i)",
    "heartbeat": "'1.5'",
    "hparams_sha256": "md5('tree' || i)",
}
_STATE = """json_build_object('file', 'a.safetensors', 'sha256', repeat('0', 64), 'epoch', 100)::text"""


def fill(uri: str, n_runs: int, n_metrics: int = 100) -> None:
    """Into an empty migrated PostgreSQL: finished runs of ours in the experiment `filled`, `n_metrics` metrics, 30 params and
    11 tags each; every fifth has a training state, every tenth a version with aliases. Started a minute after each other.
    """
    runs, versions = f"generate_series(1, {n_runs}) i", f"generate_series(10, {n_runs}, 10) i"
    metrics = f"{runs}, generate_series(1, {n_metrics}) k"
    now = "(extract(epoch from now()) * 1000)::bigint"
    tags = ", ".join(f"('{key}', {value})" for key, value in _TAGS.items())
    statements = [
        "insert into experiments (experiment_id, name, artifact_location, lifecycle_stage, creation_time,"
        f" last_update_time) values (1, 'filled', 'mlflow-artifacts:/1', 'active', {now}, {now})",
        "insert into runs (run_uuid, name, source_type, source_name, entry_point_name, user_id, status, start_time,"
        " end_time, source_version, lifecycle_stage, artifact_uri, experiment_id)"
        f" select {_RUN}, 'trained_' || i, 'UNKNOWN', '', '', 'somebody', 'FINISHED', {_STARTED},"
        f" {_STARTED} + 50000, '', 'active', 'mlflow-artifacts:/1/' || {_RUN} || '/artifacts', 1 from {runs}",
        f"insert into tags (run_uuid, key, value) select {_RUN}, t.key, t.value"
        f" from {runs}, lateral (values {tags}) as t(key, value)",
        f"insert into tags (run_uuid, key, value) select {_RUN}, 'training_state', {_STATE}"
        f" from generate_series(5, {n_runs}, 5) i",
        f"insert into params (run_uuid, key, value) select {_RUN}, 'model_train.field_' || k, (i * k)::text"
        f" from {runs}, generate_series(1, 30) k",
        "insert into metrics (run_uuid, key, value, timestamp, step, is_nan)"
        f" select {_RUN}, 'metric_' || k, i + k / 100.0, {_STARTED} + k, 100, false from {metrics}",
        "insert into latest_metrics (run_uuid, key, value, timestamp, step, is_nan)"
        f" select {_RUN}, 'metric_' || k, i + k / 100.0, {_STARTED} + k, 100, false from {metrics}",
        "insert into logged_models (model_id, experiment_id, name, artifact_location, creation_timestamp_ms,"
        " last_updated_timestamp_ms, status, lifecycle_stage, model_type, source_run_id)"
        f" select {_MODEL}, 1, 'decoder-epoch-100', 'mlflow-artifacts:/1/models/' || {_MODEL} || '/artifacts',"
        f" {_STARTED}, {_STARTED}, 2, 'active', 'decoder', {_RUN} from {versions}",
        "insert into logged_model_tags (model_id, experiment_id, tag_key, tag_value)"
        f" select {_MODEL}, 1, 'files_sha256', repeat('0', 64) from {versions}",
        "insert into registered_models (workspace, name, creation_time, last_updated_time)"
        f" select 'default', 'trained_' || i, {_STARTED}, {_STARTED} from {versions}",
        "insert into model_versions (workspace, name, version, creation_time, last_updated_time, current_stage, source,"
        f" storage_location, run_id, status) select 'default', 'trained_' || i, 1, {_STARTED}, {_STARTED}, 'None',"
        f" 'models:/' || {_MODEL}, 'mlflow-artifacts:/1/models/' || {_MODEL} || '/artifacts', {_RUN}, 'READY'"
        f" from {versions}",
        "insert into model_version_tags (workspace, name, version, key, value)"
        f" select 'default', 'trained_' || i, 1, t.key, t.value from {versions},"
        " (values ('files_sha256', repeat('0', 64)), ('epoch', '100'), ('val_loss', '12.5')) as t(key, value)",
        "insert into registered_model_aliases (workspace, name, alias, version)"
        f" select 'default', 'trained_' || i, alias, 1 from {versions}, unnest(array['best', 'last']) alias",
        "select setval(pg_get_serial_sequence('experiments', 'experiment_id'), 1)",
    ]
    engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool)
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(sqlalchemy.text(statement))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        # As its own housekeeping would have by then.
        connection.execute(sqlalchemy.text("vacuum analyze"))


def files_of(uri: str) -> Iterator[str]:
    """The paths in the store of the files that those rows promise: two a run, on average."""
    engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:
        for (run_id,) in connection.execute(sqlalchemy.text("select run_uuid from runs")):
            yield f"1/{run_id}/artifacts/{HPARAMS_FILE}"
        for (run_id,) in connection.execute(
            sqlalchemy.text("select run_uuid from tags where key = 'training_state'")
        ):
            yield f"1/{run_id}/artifacts/{STATE_FOLDER}/{STATE_SLOTS[0]}"
        for (model_id,) in connection.execute(sqlalchemy.text("select model_id from logged_models")):
            yield from (f"1/models/{model_id}/artifacts/{name}" for name in sorted(FILES))

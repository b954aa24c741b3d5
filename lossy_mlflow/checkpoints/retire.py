"""What becomes of a label's earlier runs once a new one has a version."""

from __future__ import annotations

from lossy_mlflow.checkpoints.publish import versions_of_run
from lossy_mlflow.tracking.connection import Connection
from lossy_mlflow.tracking.runs import known_run, runs_of_label

_OWN_ALIASES = {"best", "last"}


def retire_earlier_runs(connection: Connection, label: str, run_id: str) -> None:
    """Soft-delete the same user's runs of the label that started before `run_id` (`mlflow runs restore` brings them back).

    A run whose versions carry a promoted alias, or a tag `pinned`, stays, tagged `superseded_by`; so does another user's. A run
    that lives is left alone.
    """
    client = connection.client
    mine = client.get_run(run_id)
    aliases = client.get_registered_model(label).aliases
    promoted = {version for alias, version in aliases.items() if alias not in _OWN_ALIASES}
    for run in runs_of_label(client, label):
        if run.info.start_time >= mine.info.start_time or known_run(run).lives(connection.now()):
            continue
        versions = versions_of_run(client, run.info.run_id, label)
        kept = any(item.version in promoted or "pinned" in item.tags for item in versions)
        if kept or run.data.tags.get("mlflow.user") != mine.data.tags.get("mlflow.user"):
            client.set_tag(run.info.run_id, "superseded_by", run_id)
        else:
            client.delete_run(run.info.run_id)

"""What becomes of a label's earlier runs once a new one has a version."""

from __future__ import annotations

from mlflow import MlflowClient

from lossy_mlflow.tracking.runs import runs_of_label

_OWN_ALIASES = {"best", "last"}


def retire_earlier_runs(client: MlflowClient, label: str, run_id: str) -> None:
    """Soft-delete the label's other runs of the same user (`mlflow runs restore` brings them back).

    A run whose versions carry a promoted alias, or a tag `pinned`, stays, tagged `superseded_by`; so does another user's.
    """
    others = [run for run in runs_of_label(client, label) if run.info.run_id != run_id]
    if not others:
        return
    mine = client.get_run(run_id).data.tags.get("mlflow.user")
    aliases = client.get_registered_model(label).aliases
    promoted = {int(version) for alias, version in aliases.items() if alias not in _OWN_ALIASES}
    for run in others:
        versions = client.search_model_versions(f"run_id = '{run.info.run_id}'")
        kept = any(
            int(item.version) in promoted or "pinned" in item.tags for item in versions if item.name == label
        )
        if kept or run.data.tags.get("mlflow.user") != mine:
            client.set_tag(run.info.run_id, "superseded_by", run_id)
        else:
            client.delete_run(run.info.run_id)

"""Whose a label is, and what becomes of its earlier runs once a new one has a version."""

from __future__ import annotations

from mlflow import MlflowClient
from mlflow.entities import Run

from lossy_mlflow.checkpoints.versions import versions_of_run
from lossy_mlflow.tracking.connection import Connection
from lossy_mlflow.tracking.runs import STARTED_OFFLINE, known_run, runs_of_label

_OWN_ALIASES = {"best", "last"}


def has_its_label(connection: Connection, label: str, run_id: str) -> bool:
    """Whether the label is this run's, so that its versions take the aliases and earlier runs go.

    It is the newest training's; an import's where no training and no other import is newer. A run that was started while the
    server was away could not know of others: where there are any, it leaves them what is theirs. The tag `clashes_with` names
    the run that has the label instead.
    """
    client = connection.client
    mine = client.get_run(run_id)
    if "same_as" in mine.data.tags:  # it holds what an attempt has made that another had superseded
        return False
    others = [run for run in _rivals(client, label, mine) if run.info.run_id != run_id]
    if STARTED_OFFLINE not in mine.data.tags:
        others = [run for run in others if run.info.start_time > mine.info.start_time]
    if not others:
        return True
    client.set_tag(run_id, "clashes_with", others[0].info.run_id)
    return False


def retire_earlier_runs(connection: Connection, label: str, run_id: str) -> None:
    """Soft-delete the same user's runs of the label that started before `run_id` (`mlflow runs restore` brings them back).

    A run whose versions carry a promoted alias, or a tag `pinned`, stays, tagged `superseded_by`; so does another user's. A run
    that lives is left alone.
    """
    client = connection.client
    mine = client.get_run(run_id)
    earlier = [run for run in _rivals(client, label, mine) if run.info.start_time < mine.info.start_time]
    if not earlier:
        return
    aliases = client.get_registered_model(label).aliases
    promoted = {version for alias, version in aliases.items() if alias not in _OWN_ALIASES}
    for run in earlier:
        if known_run(run).lives(connection.now()):
            continue
        versions = versions_of_run(client, run.info.run_id, label)
        kept = any(item.version in promoted or "pinned" in item.tags for item in versions)
        if kept or run.data.tags.get("mlflow.user") != mine.data.tags.get("mlflow.user"):
            client.set_tag(run.info.run_id, "superseded_by", run_id)
        else:
            client.delete_run(run.info.run_id)


def _rivals(client: MlflowClient, label: str, mine: Run) -> list[Run]:
    """The runs that may have the label instead of `mine`: trainings, and for an import the other imports too."""
    imports = runs_of_label(client, label, "import") if mine.data.tags.get("kind") == "import" else []
    return [*runs_of_label(client, label), *imports]

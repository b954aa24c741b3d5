"""Whose a label is, and what becomes of its earlier runs once a new one has a version."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion

from lossy_mlflow.checkpoints.versions import TRAINING_ALIASES, versions_of_run
from lossy_mlflow.tracking.connection import Connection
from lossy_mlflow.tracking.runs import STARTED_OFFLINE, known_run, runs_of_label


@dataclass(frozen=True, slots=True)
class RunsOfLabel:
    """A run that has its label, and the earlier runs of the label, newest first."""

    own: Run
    earlier: list[Run]


def runs_if_label_is_its_own(connection: Connection, label: str, mine: Run) -> RunsOfLabel | None:
    """The label's runs if the label is this run's, so that its versions take the aliases and earlier runs go; else None.

    It is the newest training's; an import's where no training and no other import is newer. A run that was started while the
    server was away could not know of others: where there are any, it leaves them what is theirs. The tag `clashes_with` names
    the run that has the label instead.
    """
    client, run_id = connection.client, mine.info.run_id
    if "same_as" in mine.data.tags:  # it holds what an attempt has made that another had superseded
        return None
    others = [run for run in _rivals(client, label, mine) if run.info.run_id != run_id]
    knew_of_none = STARTED_OFFLINE in mine.data.tags
    in_its_way = [run for run in others if knew_of_none or run.info.start_time > mine.info.start_time]
    if in_its_way:
        client.set_tag(run_id, "clashes_with", in_its_way[0].info.run_id)
        return None
    return RunsOfLabel(mine, [run for run in others if run.info.start_time < mine.info.start_time])


def retire_earlier_runs(connection: Connection, label: str, runs: RunsOfLabel) -> None:
    """Soft-delete the same user's earlier runs of the label (`mlflow runs restore` brings them back).

    A run whose versions carry a promoted alias, or a tag `pinned`, stays, tagged `superseded_by`, also where they do so as copies
    in another model; so does another user's. A run that lives is left alone.
    """
    client, mine = connection.client, runs.own
    if not runs.earlier:
        return
    for run in runs.earlier:
        if known_run(run).lives(connection.now()):
            continue
        kept = _any_is_kept(client, label, versions_of_run(client, run.info.run_id))
        if kept or run.data.tags.get("mlflow.user") != mine.data.tags.get("mlflow.user"):
            client.set_tag(run.info.run_id, "superseded_by", mine.info.run_id)
        else:
            client.delete_run(run.info.run_id)


def _rivals(client: MlflowClient, label: str, mine: Run) -> list[Run]:
    """The runs that may have the label instead of `mine`: trainings, and for an import the other imports too."""
    imports = runs_of_label(client, label, "import") if mine.data.tags.get("kind") == "import" else []
    return [*runs_of_label(client, label), *imports]


def _any_is_kept(client: MlflowClient, label: str, versions: Iterable[ModelVersion]) -> bool:
    by_model: dict[str, list[ModelVersion]] = {}
    for version in versions:
        by_model.setdefault(version.name, []).append(version)
    for name, its_versions in by_model.items():
        aliases = client.get_registered_model(name).aliases
        own = TRAINING_ALIASES if name == label else frozenset()
        promoted = {version for alias, version in aliases.items() if alias not in own}
        if any(item.version in promoted or "pinned" in item.tags for item in its_versions):
            return True
    return False

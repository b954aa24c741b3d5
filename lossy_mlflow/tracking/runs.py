"""Runs by label: how one is found, made, described, and its Hparam tree written and read back."""

from __future__ import annotations

import hashlib
import itertools
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from mlflow import MlflowClient
from mlflow.entities import Experiment, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.entities import PagedList
from mlflow.store.tracking import SEARCH_MAX_RESULTS_DEFAULT
from mlflow.tracking.context.registry import resolve_tags

from lossy_mlflow.errors import ConflictError, NotFoundError, UsageError
from lossy_mlflow.hparams import MLFLOW_RUN_PARAMETERS, Hparam, flatten, hparams_sha256, unflatten
from lossy_mlflow.tracking.identity import KnownRun
from lossy_mlflow.tracking.run_files import HPARAMS_FILE
from lossy_mlflow.tracking.tags import number

if TYPE_CHECKING:
    from lossy_mlflow.outbox.program import Outbox
    from lossy_mlflow.tracking.connection import Connection

T = TypeVar("T")

# The tag of a run that was started while its server was away: what the server had of the label wasn't known.
STARTED_OFFLINE = "started_offline"

PARAM_LENGTH_LIMIT = 6000
_PARAMS_A_BATCH = 100


def quoted(text: str) -> str:
    """A string literal of MLflow's search language, which has no escapes: labels hold one kind of quotes at most."""
    return f'"{text}"' if "'" in text else f"'{text}'"


def search_all_runs(client: MlflowClient, filter_string: str, limit: int | None = None) -> list[Run]:
    """The active runs of every MLflow experiment that match, newest first; the first `limit` of them, if it is given."""
    experiments = all_pages(lambda token: client.search_experiments(page_token=token))
    ids = [experiment.experiment_id for experiment in experiments]
    pages = all_pages(
        lambda token: client.search_runs(
            ids,
            filter_string,
            ViewType.ACTIVE_ONLY,
            limit or SEARCH_MAX_RESULTS_DEFAULT,
            order_by=["attributes.start_time DESC"],
            page_token=token,
        )
    )
    return list(itertools.islice(pages, limit))


def runs_of_label(client: MlflowClient, label: str, kind: str = "train") -> list[Run]:
    """The active runs that train (or evaluate, or imported) this label, newest first; surplus ones left out."""
    runs = search_all_runs(client, f"tags.label = {quoted(label)} and tags.kind = {quoted(kind)}")
    return [run for run in runs if "same_as" not in run.data.tags]


def runs_known_here(client: MlflowClient, outbox: Outbox, label: str, kind: str = "train") -> list[Run]:
    """The same runs as far as this machine's outbox has them: what is known while the server doesn't answer."""
    found = [client.get_run(folder.key) for folder in outbox.folder.runs()]
    ours = [
        run
        for run in found
        if run.data.tags.get("label") == label
        and run.data.tags.get("kind") == kind
        and "same_as" not in run.data.tags
    ]
    return sorted(ours, key=lambda run: -run.info.start_time)


def known_run(run: Run) -> KnownRun:
    """What of a run decides what starting its label means."""
    tags = run.data.tags
    return KnownRun(
        run_id=run.info.run_id,
        status=run.info.status,
        hparam_set=tags.get("hparam_set", ""),
        hparams_sha256=tags.get("hparams_sha256", ""),
        owner=tags.get("owner", ""),
        heartbeat=number(tags, "heartbeat") or 0.0,
    )


def artifacts_of(client: MlflowClient, run_id: str) -> ArtifactRepository:
    """The run's artifacts. MLflow's own functions would ask the server for logged models of the run as well."""
    return get_artifact_repository(client.get_run(run_id).info.artifact_uri, tracking_uri=client.tracking_uri)


def paths_in(artifacts: ArtifactRepository, folder: str | None = None) -> set[str]:
    """What lies directly in a folder of a run's artifacts, by path.

    To be asked before a download: what downloading a file that is gone raises is another thing for every kind of store.
    """
    return {item.path for item in artifacts.list_artifacts(folder)}


def experiment_for(client: MlflowClient, name: str) -> Experiment:
    """The MLflow experiment of that name, made if it isn't there; many processes may ask at once."""
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.get_experiment(client.create_experiment(name))
        except MlflowException as error:
            found = client.get_experiment_by_name(name)
            if found is None:
                raise error
    if found.lifecycle_stage == "deleted":
        raise ConflictError(
            f"The experiment {name!r} (id {found.experiment_id}) is deleted.",
            f"Restore it: mlflow experiments restore --experiment-id {found.experiment_id}",
        )
    return found


def log_hparams(client: MlflowClient, run_id: str, tree: Hparam) -> None:
    """The tree as run params, and whole as the artifact hparams.json. Safe to repeat: the same values are accepted."""
    flat = flatten(tree)
    params = [Param(key, _within_limit(value)) for key, value in flat.items()]
    for start in range(0, len(params), _PARAMS_A_BATCH):
        client.log_batch(run_id, params=params[start : start + _PARAMS_A_BATCH])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, HPARAMS_FILE)
        file.write_text(json.dumps(flat, indent=1))
        client.log_artifact(run_id, str(file))


def hparams_of_run(client: MlflowClient, run: Run) -> Hparam:
    """The tree that a run was started from: from its params where they give it exactly, else from its artifact.

    Raises NotFoundError where that one is gone, or isn't what was stored.
    """
    wanted = run.data.tags.get("hparams_sha256", "")
    params = {key: value for key, value in run.data.params.items() if key not in MLFLOW_RUN_PARAMETERS}
    try:
        tree = unflatten(params)
    except UsageError:  # a param of the user's own that can't be a field
        tree = Hparam()
    if hparams_sha256(tree) == wanted:
        return tree
    with tempfile.TemporaryDirectory() as folder:
        artifacts = artifacts_of(client, run.info.run_id)
        if HPARAMS_FILE not in paths_in(artifacts):
            raise _unknown_hparams(run, "is gone")
        file = artifacts.download_artifacts(HPARAMS_FILE, folder)
        try:
            return unflatten(json.loads(Path(file).read_text()))
        except (ValueError, AttributeError, UsageError) as error:
            raise _unknown_hparams(run, "is damaged") from error


def _unknown_hparams(run: Run, why: str) -> NotFoundError:
    what = f"The hparams of the run {run.info.run_id} can't be read: its {HPARAMS_FILE} {why}."
    return NotFoundError(what, "Train anew: --overwrite")


def _within_limit(value: str) -> str:
    if len(value) <= PARAM_LENGTH_LIMIT:
        return value
    return "sha256:" + hashlib.sha256(value.encode()).hexdigest()


def create_run(connection: Connection, experiment_id: str, name: str, tags: Mapping[str, str]) -> str:
    """The id of a new run, with these tags and those that MLflow gives every run."""
    run = connection.client.create_run(
        experiment_id,
        # By the server's clock: which of two runs is the earlier must not depend on whose clock is right.
        start_time=int(connection.now() * 1000),
        tags=resolve_tags(dict(tags)),
        run_name=name,
    )
    return str(run.info.run_id)


def end_surplus_run(client: MlflowClient, surplus: str, run_id: str) -> None:
    """The run that `mlflow run` made for what has one already points at that one."""
    client.set_tag(surplus, "same_as", run_id)
    client.set_terminated(surplus, "FINISHED")


def set_tags(client: MlflowClient, run_id: str, tags: Mapping[str, str]) -> None:
    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])


def all_pages(ask: Callable[[str | None], PagedList[T]]) -> Iterator[T]:
    """What all pages hold that `ask` gives when it is called with each page's token in turn."""
    token = None
    while True:
        page = ask(token)
        yield from page
        token = page.token
        if not token:
            return

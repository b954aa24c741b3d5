"""Where a version comes from, and what has come of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from lossy_mlflow.checkpoints.copies import COPIED_FROM, copies_of
from lossy_mlflow.checkpoints.evidence import evaluations_of
from lossy_mlflow.checkpoints.lookup import resolve_at
from lossy_mlflow.checkpoints.reference import Reference, parse_reference
from lossy_mlflow.checkpoints.versions import search_versions
from lossy_mlflow.tracking.connection import Connection, connect, explained
from lossy_mlflow.tracking.runs import quoted
from lossy_mlflow.tracking.tags import number, whole_number

T = TypeVar("T")

_PARENT = "parent_version"
# The tags by which a version names where it comes from, and what they mean.
_RELATIONS = {COPIED_FROM: "copied from", _PARENT: "started from"}
GONE = "gone"
_THERE = "there"


@dataclass(frozen=True, slots=True)
class Ancestor:
    """`version` is what `of` was copied, or started, from; both are NAME/VERSION. `state`: there, or gone."""

    of: str
    relation: str
    version: str
    state: str


@dataclass(frozen=True, slots=True)
class Lineage:
    """Of `version`: its run, data and code; its ancestors, the nearest first; and what has come of it. All as NAME/VERSION.

    `evaluations`: the runs that evaluated its weights, the newest first, `--quick` ones left out.

    `state`: there, or gone. `run_state`: as MLflow says it, DELETED while the run can be restored, gone, or '' where it has none.
    """

    version: str
    state: str
    aliases: list[str]
    epoch: int | None
    val_loss: float | None
    run_id: str
    run_state: str
    hparam_set: str
    dataset_digest: str
    git_commit: str
    ancestors: list[Ancestor]
    started_from_it: list[str]
    copies: list[str]
    evaluations: list[str]


def lineage(reference: str) -> Lineage:
    """The lineage of the version that `reference` means. What it names and is deleted is said to be gone.

    Raises NotFoundError as `resolve` does; a version that is gone has a lineage as long as others come of it.
    """
    wanted = parse_reference(reference)
    with explained():
        connection = connect()
        client = connection.client
        itself, found = _find(connection, wanted)
        started, copies = _started_from(client, itself), copies_of(client, itself)
        if not (found or started or copies):
            resolve_at(connection, wanted)  # which says what there is instead
        tags = found.tags if found else {}
        run_id = (found.run_id if found else "") or ""
        run = _unless_gone(lambda: client.get_run(run_id)) if run_id else None
        run_tags = run.data.tags if run else {}
        return Lineage(
            version=itself,
            state=_THERE if found else GONE,
            aliases=sorted(found.aliases) if found else [],
            epoch=whole_number(tags, "epoch"),
            val_loss=number(tags, "val_loss"),
            run_id=run_id,
            run_state=_run_state(run) if run_id else "",
            hparam_set=tags.get("hparam_set") or run_tags.get("hparam_set", ""),
            dataset_digest=tags.get("dataset_digest") or run_tags.get("dataset_digest", ""),
            git_commit=tags.get("git_commit") or run_tags.get("git_commit", ""),
            ancestors=ancestors(itself, tags, lambda name: _tags_of(client, name)),
            started_from_it=_names(started),
            copies=_names(copies),
            evaluations=[run.info.run_id for run in evaluations_of(client, found)] if found else [],
        )


def ancestors(
    version: str, tags: Mapping[str, str], tags_of: Callable[[str], Mapping[str, str] | None]
) -> list[Ancestor]:
    """All that `version`, with these tags, comes from, the nearest first. `tags_of`: a version's tags, None where it is gone.

    Each version is followed once: tags that name each other in a circle end it.
    """
    found: list[Ancestor] = []
    seen = {version}
    waiting = [(version, tags)]
    while waiting:
        of, its_tags = waiting.pop(0)
        for tag, relation in _RELATIONS.items():
            origin = its_tags.get(tag, "")
            if not origin or origin in seen:
                continue
            seen.add(origin)
            known = tags_of(origin)
            found.append(Ancestor(of, relation, origin, GONE if known is None else _THERE))
            if known is not None:
                waiting.append((origin, known))
    return found


def _find(connection: Connection, wanted: Reference) -> tuple[str, ModelVersion | None]:
    """The version's NAME/VERSION, and the version; None where it is gone. What no version says, an alias, must be there."""
    if wanted.version is None:
        checkpoint = resolve_at(connection, wanted)
        wanted = Reference(checkpoint.name, version=checkpoint.version)
    return str(wanted), _version(connection.client, str(wanted))


def _started_from(client: MlflowClient, version: str) -> list[ModelVersion]:
    return search_versions(client, f"tags.{_PARENT} = {quoted(version)}")


def _names(versions: list[ModelVersion]) -> list[str]:
    found = sorted((version.name, int(version.version)) for version in versions)
    return [f"{name}/{number}" for name, number in found]


def _tags_of(client: MlflowClient, version: str) -> Mapping[str, str] | None:
    found = _version(client, version)
    return found.tags if found else None


def _version(client: MlflowClient, version: str) -> ModelVersion | None:
    """The version NAME/VERSION; None where it is gone, and for what is no such name: anybody can edit a tag."""
    name, _, number = version.rpartition("/")
    if not name or not number.isdecimal():
        return None
    return _unless_gone(lambda: client.get_model_version(name, number))


def _unless_gone(ask: Callable[[], T]) -> T | None:
    """What the server answers; None where it has no such thing, or takes its name for none."""
    try:
        return ask()
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
    return None


def _run_state(run: Run | None) -> str:
    if run is None:
        return GONE
    deleted = run.info.lifecycle_stage == "deleted"
    return "DELETED" if deleted else str(run.info.status)

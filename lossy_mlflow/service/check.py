"""Whether a server's database and its files agree: what is missing, damaged, half made, dead, or left over. Changes nothing."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lossy_mlflow.checkpoints.promotions import promotions_in, under_way
from lossy_mlflow.service.findings import Finding, Kind, finding
from lossy_mlflow.service.holdings import Holdings, Places, survey
from lossy_mlflow.service.promised import Progress, Promise, damaged, missing, promises
from lossy_mlflow.service.references import FREED_TAG, ModelRow, References, read_references
from lossy_mlflow.service.stores import Stores
from lossy_mlflow.tracking.connection import without_password
from lossy_mlflow.tracking.reconcile import why_dead_seen_from_here

OLDER_THAN_S = 7 * 86400.0
# A promotion takes less than a second.
_PROMOTING_S = 60.0


@dataclass(frozen=True, slots=True)
class Report:
    """What was found, and among how much.

    `n_known`: files of the store to which the database refers. `n_elsewhere`: versions, LoggedModels and runs whose files lie
    where nothing is looked at, since no place of the server's holds them.
    """

    findings: list[Finding]
    n_runs: int
    n_models: int
    n_versions: int
    n_files: int
    n_bytes: int
    n_known: int
    n_elsewhere: int


def check(
    stores: Stores,
    *,
    deep: bool = False,
    older_than_s: float = OLDER_THAN_S,
    progress: Progress | None = None,
) -> Report:
    """Compare the database with the files. `deep`: read every file whose digest is known (`progress`: bytes read, bytes in all).

    What is younger than `older_than_s` seconds may still become something, and is no leftover. Raises as the stores do.
    """
    began = Places(stores, []).store.now()
    references = read_references(stores.database)
    places = Places(stores, references.experiments)
    promised, n_elsewhere = _promised(places, references)
    spots = {spot for spot, _ in promised} | {spot for spot, _ in _unnamed(places, references)}
    holdings = survey(places, references, spots, began)
    outside = [file for spot in spots if spot.startswith("/") for file in holdings.files[spot].values()]
    lost = [*missing(promised, holdings.files)]
    if deep:
        lost += damaged(promised, holdings.files, places, progress)
    findings = [
        *(_again(stores, lost, deep) if lost else []),
        *_of_versions(references),
        *_of_registered(references, older_than_s),
        *_of_models(places, references, holdings, older_than_s),
        *_of_runs(references, older_than_s),
        *_of_store(holdings, began, older_than_s),
    ]
    return Report(
        findings=findings,
        n_runs=len(references.runs),
        n_models=len(references.models),
        n_versions=len(references.versions),
        n_files=holdings.n_files + len(outside),
        n_bytes=holdings.n_bytes + sum(file.size for file in outside),
        n_known=holdings.n_files - sum(one.n_files for one in holdings.orphans.values()),
        n_elsewhere=n_elsewhere,
    )


def _promised(places: Places, references: References) -> tuple[list[tuple[str, Promise]], int]:
    """What is promised, by spot; and of how many the files lie elsewhere."""
    found, n_elsewhere = [], 0
    for promise in promises(references):
        spot = places.spot(promise.address)
        if spot is None:
            n_elsewhere += 1
        else:
            found.append((spot, promise))
    return found, n_elsewhere


def _again(stores: Stores, suspects: Sequence[Finding], deep: bool) -> list[Finding]:
    """What is still so at a second look: the server goes on meanwhile, and what was deleted or written anew is not lost."""
    references = read_references(stores.database)
    places = Places(stores, references.experiments)
    names = {suspect.what for suspect in suspects}
    promised = [item for item in _promised(places, references)[0] if item[1].what in names]
    files = {spot: places.files_at(spot) for spot, _ in promised}
    lost = missing(promised, files)
    return lost + (damaged(promised, files, places) if deep else [])


def _of_versions(references: References) -> Iterator[Finding]:
    for version in references.versions:
        if version.status != "READY":
            yield finding(Kind.HALF_MADE, version.title, version.status)
        if version.run_id and version.run_id not in references.runs:
            yield finding(Kind.RUN_GONE, version.title, f"run {version.run_id}")
        if version.model_id and version.model_id not in references.models:
            yield finding(Kind.SOURCE_GONE, version.title, version.model_id)
    yield from _in_the_bin(references)


def _in_the_bin(references: References) -> Iterator[Finding]:
    models = {row.address: row for row in references.models.values() if not row.is_active}
    runs = {row.address: row for row in references.runs.values() if not row.is_active}
    for version in references.versions:
        if model := models.get(version.address):
            where = f"LoggedModel {model.model_id}"
            yield finding(Kind.IN_BIN, version.title, where, repairable=True, key=(model.model_id,))
        elif run := next((runs[above] for above in _above(version.address) if above in runs), None):
            yield finding(Kind.IN_BIN, version.title, f"run {run.run_id}")


def _above(address: str) -> Iterator[str]:
    while "/" in address:
        yield address
        address = address.rpartition("/")[0]


def _of_registered(references: References, older_than_s: float) -> Iterator[Finding]:
    there = {(one.workspace, one.name, one.version) for one in references.versions}
    named = {(one.workspace, one.name) for one in references.versions}
    trained = {run.label for run in references.open_runs}
    for model in references.registered:
        for alias, version in sorted(model.aliases.items()):
            if (model.workspace, model.name, version) not in there:
                key = (model.workspace, model.name, alias, str(version))
                what, where = f"{model.name}@{alias}", f"version {version}"
                yield finding(Kind.NOWHERE, what, where, repairable=True, key=key)
        promotions, _ = promotions_in(model.promotions)
        for alias, version in under_way(promotions, model.aliases).items():
            newest = [one for one in promotions if one.alias == alias][-1]
            age = references.now - datetime.datetime.fromisoformat(newest.when).timestamp()
            if age > _PROMOTING_S:
                yield finding(Kind.PROMOTION, f"{model.name}@{alias}", f"to version {version}", age_s=age)
        if (model.workspace, model.name) not in named and model.name not in trained:
            age = references.now - model.made
            if age >= older_than_s:
                yield finding(Kind.NO_VERSION, model.name, age_s=age)


def _unnamed(places: Places, references: References) -> Iterator[tuple[str, ModelRow]]:
    """The LoggedModels, by spot, that no version of any model names, and that are not in the bin, save those that are freed."""
    named = {version.address for version in references.versions}
    ids = {version.model_id for version in references.versions}
    for model in references.models.values():
        if model.address in named or model.model_id in ids:
            continue
        spot = places.spot(model.address)
        if spot is not None and (model.is_active or FREED_TAG in model.tags):
            yield spot, model


def _of_models(
    places: Places, references: References, holdings: Holdings, older_than_s: float
) -> Iterator[Finding]:
    for spot, model in _unnamed(places, references):
        files = holdings.files[spot].values()
        age = references.now - model.touched
        is_begun = FREED_TAG in model.tags and not model.is_active
        if is_begun:
            if not files:
                continue
        elif age < older_than_s or not (model.is_decoder or model.status != "READY"):
            continue
        yield finding(
            Kind.UNUSED if model.is_decoder and model.status == "READY" else Kind.HALF_MODEL,
            model.model_id,
            f"{model.name} at {without_password(model.address)}",
            repairable=model.is_decoder,
            n_files=len(files),
            n_bytes=sum(file.size for file in files),
            age_s=age,
            key=(model.model_id,),
        )


def _of_runs(references: References, older_than_s: float) -> Iterator[Finding]:
    for run in references.open_runs:
        if why := why_dead_seen_from_here(run, references.now):
            age = references.now - run.last_sign
            what = f"{run.label} {run.run_id}"
            yield finding(Kind.DEAD_RUN, what, why, repairable=True, age_s=age, key=(run.run_id,))
    for silent in references.silent_runs:
        age = references.now - silent.last_sign
        if age >= older_than_s:
            yield finding(Kind.SILENT_RUN, f"{silent.name} {silent.run_id}", age_s=age)


def _of_store(holdings: Holdings, now: float, older_than_s: float) -> Iterator[Finding]:
    for orphans in sorted(holdings.orphans.values(), key=lambda one: one.path):
        age = now - orphans.modified
        yield finding(
            Kind.ORPHANS,
            orphans.path,
            "" if orphans.item_id else "not in a folder that MLflow has made",
            repairable=bool(orphans.item_id) and age >= older_than_s,
            n_files=orphans.n_files,
            n_bytes=orphans.n_bytes,
            age_s=age,
            key=(orphans.path, orphans.item_id),
        )
    for file in holdings.unfinished:
        age = now - file.modified
        if age >= older_than_s:
            yield finding(
                Kind.UNFINISHED,
                file.path,
                repairable=True,
                n_files=1,
                n_bytes=file.size,
                age_s=age,
                key=(file.path, file.mark),
            )

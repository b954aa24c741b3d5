"""What lies in the places of a server's files, and what of the database's rows it belongs to."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lossy_mlflow.service.files import FilePlace, StoredFile, file_place
from lossy_mlflow.service.folder import Folder
from lossy_mlflow.service.locations import folder_of, path_in_store
from lossy_mlflow.service.references import References
from lossy_mlflow.service.stores import Stores

# How MLflow names what it makes in an experiment's folder: of a run, of a LoggedModel, of a trace.
_ITS_OWN = r"(?P<id>[0-9a-f]{32})|models/(?P<model>m-[0-9a-f]{32})|traces/(?P<trace>(tr-)?[0-9a-f]{32})"
_IN_EXPERIMENT = re.compile(rf"({_ITS_OWN})/artifacts(/|$)")
_IN_STORE = re.compile(rf"\d+/({_ITS_OWN})/artifacts(/|$)")


class Places:
    """Where files lie: in the store of artifacts, or in folders of this machine that the database names.

    A spot is a path in the store, or an absolute folder; None is somewhere else, where nothing is looked at.
    """

    def __init__(self, stores: Stores, experiments: Iterable[str]) -> None:
        self.store = file_place(stores.artifacts)
        self._destination = stores.artifacts
        # A client may have given an experiment a folder of its own machine: what isn't here is not this one's to judge.
        folders = (folder for folder in map(folder_of, experiments) if folder)
        self._folders = {str(folder) for folder in folders if folder.is_dir()}

    def spot(self, address: str) -> str | None:
        path = path_in_store(address, self._destination)
        if path is not None:
            return path
        folder = folder_of(address)
        if folder and any(above in self._folders for above in _and_above(str(folder))):
            return str(folder)
        return None

    def at(self, spot: str) -> tuple[FilePlace, str]:
        """The place of a spot, and the path there."""
        return (Folder(Path(spot)), "") if spot.startswith("/") else (self.store, spot)

    def files_at(self, spot: str) -> dict[str, StoredFile]:
        """What lies there now, by the path below the spot."""
        place, path = self.at(spot)
        cut = len(path) + 1 if path else 0
        return {file.path[cut:]: file for file in place.files(path)}


@dataclass(slots=True)
class Orphans:
    """Files in the store that nothing in the database refers to: all below `path`.

    `item_id` is that of the run, LoggedModel or trace whose files they were, as their place says; '' where it says nothing.
    `modified`: of the newest.
    """

    path: str
    item_id: str
    n_files: int = 0
    n_bytes: int = 0
    modified: float = 0.0

    def add(self, file: StoredFile) -> None:
        self.n_files += 1
        self.n_bytes += file.size
        self.modified = max(self.modified, file.modified)


@dataclass(slots=True)
class Holdings:
    """`files`: of each spot that was asked for, by the path below it. `n_files`, `n_bytes`: all that the store has."""

    files: dict[str, dict[str, StoredFile]]
    orphans: dict[str, Orphans] = field(default_factory=dict)
    unfinished: list[StoredFile] = field(default_factory=list)
    n_files: int = 0
    n_bytes: int = 0


def survey(places: Places, references: References, wanted: Iterable[str], began: float) -> Holdings:
    """List the store once, and the `wanted` spots that are folders elsewhere.

    What was written after `began`, by the store's clock, may be of rows that are younger than `references`: it is no orphan.
    """
    spots = set(wanted)
    found = Holdings({spot: {} for spot in spots})
    for spot in spots:
        if spot.startswith("/"):
            found.files[spot] = places.files_at(spot)
    whose = _Owners(places, references, {spot for spot in spots if not spot.startswith("/")})
    listed = places.store.survey()
    found.unfinished = listed.unfinished
    found.n_files = len(listed.files)
    for file in listed.files:
        found.n_bytes += file.size
        owner = whose.of_folder(posixpath.dirname(file.path))
        for spot in owner.wanted:
            found.files[spot][file.path[len(spot) + 1 if spot else 0 :]] = file
        if owner.orphans and file.modified < began:
            orphans = Orphans(owner.orphans, owner.item_id)
            found.orphans.setdefault(owner.orphans, orphans).add(file)
    return found


@dataclass(frozen=True, slots=True)
class _Owner:
    """Of the files of a folder: the wanted spots that they lie in; and, if they are orphans, by which path they go together."""

    wanted: tuple[str, ...]
    orphans: str = ""
    item_id: str = ""


class _Owners:
    def __init__(self, places: Places, references: References, wanted: set[str]) -> None:
        self._wanted = wanted
        addresses = _addresses(references)
        self._owned = {spot for spot in map(places.spot, addresses) if spot is not None}
        self._experiments = {spot for spot in map(places.spot, references.experiments) if spot is not None}
        self._known: dict[str, _Owner] = {}

    def of_folder(self, folder: str) -> _Owner:
        if folder not in self._known:
            self._known[folder] = self._judge(folder)
        return self._known[folder]

    def _judge(self, folder: str) -> _Owner:
        above = list(_and_above(folder))
        wanted = tuple(spot for spot in above if spot in self._wanted)
        if any(spot in self._owned for spot in above):
            return _Owner(wanted)
        experiment = next((spot for spot in above if spot in self._experiments), None)
        if experiment is None:
            match = _IN_STORE.match(folder)
        else:
            match = _IN_EXPERIMENT.match(folder[len(experiment) + 1 if experiment else 0 :])
        if match:
            path = match[0].rstrip("/")
            path = f"{experiment}/{path}" if experiment else path
            return _Owner(wanted, path, match["id"] or match["model"] or match["trace"])
        # What somebody has put into an experiment's folder is that experiment's.
        return _Owner(wanted) if experiment is not None else _Owner(wanted, folder.partition("/")[0] or "/")


def _addresses(references: References) -> Iterator[str]:
    for rows in (references.runs, references.models):
        yield from (row.address for row in rows.values())
    yield from (version.address for version in references.versions)
    yield from references.traces


def _and_above(folder: str) -> Iterator[str]:
    """The folder and those above it, the nearest first; '' is the place itself."""
    while folder not in ("", "/"):
        yield folder
        folder = posixpath.dirname(folder)
    yield ""

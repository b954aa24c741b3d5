"""The files that a server's versions, LoggedModels and runs promise, and whether they are there and what they were."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from lossy_mlflow.checkpoints.flavor import FILES, MLFLOWS_OWN, WEIGHTS_FILE, combined_sha256
from lossy_mlflow.errors import UsageError
from lossy_mlflow.hparams import hparams_sha256, unflatten
from lossy_mlflow.service.files import StoredFile
from lossy_mlflow.service.findings import Finding, Kind, finding
from lossy_mlflow.service.holdings import Places
from lossy_mlflow.service.references import ModelRow, References, VersionRow
from lossy_mlflow.tracking.connection import without_password
from lossy_mlflow.tracking.identity import OPEN_STATES
from lossy_mlflow.tracking.run_files import HPARAMS_FILE, files_of_ended_run

_AT_ONCE = 8
_READ_BYTES = 1 << 20

Files = Mapping[str, Mapping[str, StoredFile]]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Promise:
    """`what` has files at `address`: those of `names`; where that is empty, any at all.

    Digests, as far as they are known: `each` by name, of all together as a decoder's files, of the tree in hparams.json.
    """

    what: str
    address: str
    names: frozenset[str] = frozenset()
    each: Mapping[str, str] = field(default_factory=dict)
    together: str = ""
    tree: str = ""


def promises(references: References) -> Iterator[Promise]:
    """Of all versions; of the LoggedModels that are ready; of the runs of ours that have ended."""
    for version in references.versions:
        yield _of_decoder(version.title, version)
    for model in references.models.values():
        # An external one has its files elsewhere, if any.
        is_whole = model.is_active and model.status == "READY"
        if is_whole and "mlflow.model.isExternal" not in model.tags:
            yield _of_decoder(model.model_id, model)
    for run in references.runs.values():
        if run.tags and run.is_active and run.status not in OPEN_STATES:
            files = files_of_ended_run(run.tags, run.status)
            each = {name: digest for name, digest in files.items() if digest}
            tree = run.tags.get("hparams_sha256", "") if HPARAMS_FILE in files else ""
            if files:
                yield Promise(f"run {run.run_id}", run.address, frozenset(files), each, tree=tree)


def _of_decoder(what: str, row: VersionRow | ModelRow) -> Promise:
    together = row.tags.get("files_sha256", "")
    if not together:  # not one of ours
        return Promise(what, row.address)
    weights = row.tags.get("weights_sha256")
    return Promise(what, row.address, FILES, {WEIGHTS_FILE: weights} if weights else {}, together)


def missing(promised: Iterable[tuple[str, Promise]], files: Files) -> list[Finding]:
    """Of promises by spot: those of whose files some are not there."""
    found = []
    for spot, promise in promised:
        there = files[spot]
        gone = sorted(promise.names - there.keys()) if promise.names else ([] if there else ["all files"])
        if gone:
            where = f"{without_password(promise.address)}: {', '.join(gone)}"
            found.append(finding(Kind.MISSING, promise.what, where, n_files=len(gone), key=(promise.what,)))
    return found


def damaged(
    promised: Iterable[tuple[str, Promise]], files: Files, places: Places, progress: Progress | None = None
) -> list[Finding]:
    """Of promises by spot: those of whose files some are not what was stored. Reads every file with a known digest, once.

    `progress` is called with the bytes that were read, and those that there are.
    """
    readable = [
        (spot, promise)
        for spot, promise in promised
        if (promise.each or promise.together or promise.tree) and promise.names <= files[spot].keys()
    ]
    read = _Reader(places, files, progress)
    read.all({(spot, name) for spot, promise in readable for name in _names(promise, files[spot])})
    found = []
    for spot, promise in readable:
        bad = sorted(_bad(promise, {name: read.digests[spot, name] for name in _names(promise, files[spot])}))
        if promise.tree and read.trees.get(spot) != promise.tree:
            bad.append(HPARAMS_FILE)
        if bad:
            where = f"{without_password(promise.address)}: {', '.join(bad)}"
            found.append(finding(Kind.DAMAGED, promise.what, where, n_files=len(bad), key=(promise.what,)))
    return found


def _names(promise: Promise, there: Mapping[str, StoredFile]) -> set[str]:
    """What is read for a promise: of a decoder all that lies there, since what is too much is refused as well."""
    if promise.together:
        return {name for name in there if name.rpartition("/")[2] != MLFLOWS_OWN}
    return {*promise.each, *([HPARAMS_FILE] if promise.tree else [])}


def _bad(promise: Promise, digests: Mapping[str, str]) -> set[str]:
    bad = {name for name, digest in promise.each.items() if digests[name] != digest}
    if promise.together and combined_sha256(digests) != promise.together:
        # One digest for all: which one it is, is known of the weights alone.
        return bad or (digests.keys() - promise.names) or {"a file"}
    return bad


class _Reader:
    """Reads files for their digests, several at once. A file that goes away meanwhile has the digest ''."""

    def __init__(self, places: Places, files: Files, progress: Progress | None) -> None:
        self._places = places
        self._files = files
        self._progress = progress
        self.digests: dict[tuple[str, str], str] = {}
        self.trees: dict[str, str] = {}

    def all(self, wanted: set[tuple[str, str]]) -> None:
        total, done = sum(self._files[spot][name].size for spot, name in wanted), 0
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for which, digest, tree in pool.map(self._read, sorted(wanted)):
                self.digests[which] = digest
                if tree:
                    self.trees[which[0]] = tree
                done += self._files[which[0]][which[1]].size
                if self._progress:
                    self._progress(done, total)

    def _read(self, which: tuple[str, str]) -> tuple[tuple[str, str], str, str]:
        spot, name = which
        place, path = self._places.at(spot)
        digest, kept = hashlib.sha256(), bytearray()
        try:
            with place.open(f"{path}/{name}" if path else name) as stream:
                while block := stream.read(_READ_BYTES):
                    digest.update(block)
                    if name == HPARAMS_FILE:
                        kept += block
        except FileNotFoundError:
            return which, "", ""
        return which, digest.hexdigest(), _tree_sha256(bytes(kept)) if name == HPARAMS_FILE else ""


def _tree_sha256(content: bytes) -> str:
    try:
        return hparams_sha256(unflatten(json.loads(content)))
    except (ValueError, AttributeError, TypeError, UsageError):
        return "unreadable"

"""What the database refers to outside the server's place of artifacts: folders of this machine, and other addresses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from lossy_mlflow.service.database import engine_of
from lossy_mlflow.service.locations import folder_of, path_in_store
from lossy_mlflow.service.stores import Stores

# What MLflow itself has put below an experiment's address: a folder of a run's own, never one that a user could name as he likes.
_OF_RUNS = {
    "runs": "select artifact_uri from runs",
    "logged_models": "select artifact_location from logged_models",
    "trace_tags": "select value from trace_tags where key = 'mlflow.artifactLocation'",
}
_OF_VERSIONS = {
    # Of a deleted version MLflow keeps the row, with words in place of its source.
    "model_versions": "select coalesce(storage_location, source) from model_versions"
    " where current_stage != 'Deleted_Internal'"
}
# They stand for a run's files, or a model's.
_INDIRECT = ("runs", "models")
_MODEL_FILE = "MLmodel"


@dataclass(slots=True)
class Outside:
    """`folders` of this machine, none in another; `elsewhere`: addresses of other stores; `proxied`: addresses that the server
    itself answers for; `fixed`: those that name its place of artifacts by that place's own address.
    """

    folders: set[Path] = field(default_factory=set)
    elsewhere: set[str] = field(default_factory=set)
    proxied: int = 0
    fixed: int = 0


def outside(stores: Stores) -> Outside:
    """All addresses in the database. A version's source counts as a folder only if a model lies in it: users name sources."""
    found = Outside()
    for address in _addresses(stores.database, _OF_RUNS):
        _add(found, address, stores.artifacts, named_by_user=False)
    for address in _addresses(stores.database, _OF_VERSIONS):
        _add(found, address, stores.artifacts, named_by_user=True)
    return found


def _add(found: Outside, address: str, artifacts: str, *, named_by_user: bool) -> None:
    scheme = urlsplit(address).scheme
    # A prompt's version has a word for its source.
    is_word = named_by_user and not scheme and not address.startswith("/")
    if scheme in _INDIRECT or is_word:
        return
    if path_in_store(address, artifacts) is not None:
        if scheme == "mlflow-artifacts":
            found.proxied += 1
        else:
            found.fixed += 1
        return
    folder = folder_of(address)
    if folder is None:
        found.elsewhere.add(address)
    elif folder not in found.folders and found.folders.isdisjoint(folder.parents):
        if named_by_user and not (folder / _MODEL_FILE).is_file():
            found.elsewhere.add(address)
        else:
            found.folders.add(folder)


def _addresses(uri: str, statements: dict[str, str]) -> Iterator[str]:
    import sqlalchemy

    engine = engine_of(uri)
    tables = set(sqlalchemy.inspect(engine).get_table_names())
    with engine.connect() as connection:
        for table, statement in statements.items():
            if table in tables:
                rows = connection.execution_options(yield_per=1000).execute(sqlalchemy.text(statement))
                yield from (str(address) for (address,) in rows if address)

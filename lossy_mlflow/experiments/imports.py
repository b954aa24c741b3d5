"""Import by name: what other code has trained becomes versions of a registered model, in a run of kind `import`."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from lossy_mlflow.checkpoints.foreign.archive import Files, Found, find_checkpoint, open_archive, read_file
from lossy_mlflow.checkpoints.foreign.contents import Contents
from lossy_mlflow.checkpoints.foreign.converters import converter_for
from lossy_mlflow.checkpoints.foreign.published import architecture_of
from lossy_mlflow.checkpoints.foreign.read import convert, is_checkpoint, read_checkpoint
from lossy_mlflow.checkpoints.reference import parse_reference
from lossy_mlflow.errors import ConflictError, LossyError, NotFoundError, UsageError
from lossy_mlflow.hparams import Hparam, evaluates, get_hparams, set_names
from lossy_mlflow.user_code import load_user_code

if TYPE_CHECKING:
    from lossy_mlflow.experiments.import_run import Incoming
    from lossy_mlflow.tracking.connection import Connection

# The set of a published checkpoint whose name is no set's, by its architecture.
_NEAREST_SETS = {
    "deep_vae": "icml_vae10_rd",
    "linear_vae": "icml_linear_vae100",
    "aae_decoder": "icml_aae10",
}
_LONGEST_NAME = 250  # MLflow's limit for the name of a run or model, with room to spare


@dataclass(frozen=True, slots=True)
class ImportedFile:
    """What became of a file. `outcome`: imported, already there, refused, not recognised; in a dry run also would be imported.

    `name` is the registered model, '' where the file was not recognised; `note` says why not, or what was changed on the way.
    """

    file: str
    name: str
    version: int | None
    outcome: str
    note: str

    @property
    def is_there(self) -> bool:
        return self.outcome in ("imported", "would be imported", "already there")


@dataclass(frozen=True, slots=True)
class ImportResult:
    """Every file that was looked at, in order; and the server that it was done on."""

    files: tuple[ImportedFile, ...]
    tracking_uri: str


def import_files(
    files: Sequence[str],
    *,
    name: str,
    hparam_set: str,
    user_code: str | None = None,
    dry_run: bool = False,
    overwrite: bool = False,
) -> ImportResult:
    """Make each file a version of the registered model `name`, whose architecture the set says.

    All or nothing: what is wrong with any file is found before the first is stored. A file that was imported before, by its
    SHA-256, is reported. The epoch comes from the file, else from its name (epoch_12), else it is 0.
    Raises NotFoundError for a file or set that isn't there; UsageError for a name that a model can't have, and for weights that
    make no images; UnreadableError (a LossyError) for what is damaged, of no known format, or more than tensors; ConflictError
    where the tensors don't fit the set, and, unless `overwrite`, where `name` is a training's or another set's.
    """
    from lossy_mlflow.tracking.connection import connect, explained, without_password

    load_user_code(user_code)
    tree = get_hparams(hparam_set)
    if evaluates(tree):
        raise UsageError(
            f"The set {hparam_set!r} is an evaluation: it has no model that a file could be of.",
            f"Name the set that it evaluates: --hparam-set {tree.load_checkpoint_name}",
        )
    _check_name(name, hparam_set)
    with explained():
        incoming = [_incoming_file(Path(file), name, hparam_set, tree) for file in files]
        connection = connect()
        stored = _store(connection, incoming, overwrite, dry_run)
        return ImportResult(tuple(stored), without_password(connection.uri))


def import_archive(
    archive: str,
    *,
    user_code: str | None = None,
    dry_run: bool = False,
    overwrite: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> ImportResult:
    """Import the archive of the published code, a zip or a folder: every checkpoint in it whose kind is recognised.

    What is not, or is damaged, or belongs to a name that is a training's, is reported and left out. `progress` hears of each file
    when it is done: its path, how many are, and of how many.
    Raises NotFoundError where there is no such archive, UsageError where it is neither a zip nor a folder, and UnreadableError
    (a LossyError) where the zip can't be read or would write outside its folder.
    """
    from lossy_mlflow.tracking.connection import connect, explained, without_password

    load_user_code(user_code)
    path = Path(archive)
    if not path.exists():
        raise _no_such_file(path)
    if path.is_file() and is_checkpoint(path):
        raise UsageError(
            f"{archive} is not the published archive, which is a zip or a folder.",
            f"A single checkpoint: lossy import {archive} --name NAME --hparam-set SET",
        )
    with explained(), open_archive(path) as files:
        connection = connect()
        parts = list(_models(files))
        total = sum(1 if isinstance(part, ImportedFile) else len(part) for part in parts)
        rows: list[ImportedFile] = []
        for part in parts:
            if isinstance(part, ImportedFile):
                rows.append(part)
            else:
                rows += _import_model(connection, files, part, overwrite, dry_run)
            if progress:
                progress(rows[-1].file, len(rows), total)
        return ImportResult(tuple(sorted(rows, key=lambda row: row.file)), without_password(connection.uri))


def _models(files: Files) -> Iterator[list[Found] | ImportedFile]:
    """The checkpoints by the model that they belong to, and a row for each file that is none."""
    models: dict[str, list[Found]] = {}
    for path in files.paths():
        try:
            if found := find_checkpoint(files, path):
                models.setdefault(found.name, []).append(found)
        except LossyError as error:
            yield _left_out(path, "", error)
    yield from models.values()


def _import_model(
    connection: Connection, files: Files, model: Sequence[Found], overwrite: bool, dry_run: bool
) -> list[ImportedFile]:
    """Of one model of an archive, what its files became."""
    rows: list[ImportedFile] = []
    incoming: list[Incoming] = []
    for found in model:
        try:
            incoming.append(_incoming_found(files, found))
        except LossyError as error:
            rows.append(_left_out(found.path, "", error))
    try:
        if incoming:
            rows += _store(connection, incoming, overwrite, dry_run, refuse=False)
    except ConflictError as error:
        rows += [_left_out(item.file, item.name, error) for item in incoming]
    return rows


def _store(
    connection: Connection, incoming: list[Incoming], overwrite: bool, dry_run: bool, refuse: bool = True
) -> list[ImportedFile]:
    from lossy_mlflow.experiments.import_run import plan, publish_all
    from lossy_mlflow.tracking.ownership import label_lock

    # No training and no other import of this machine takes the name meanwhile.
    with label_lock(connection.uri, incoming[0].name):
        # The oldest first, so that versions count up as epochs do.
        made = plan(connection, sorted(incoming, key=lambda item: item.epoch), overwrite)
        if refuse and (clashes := [item for item in made.items if item.clash]):
            raise ConflictError(clashes[0].clash, "Import it anew, with all files of the name: --overwrite")
        versions = {} if dry_run else publish_all(connection, made)
    rows = []
    for item in made.items:
        notes = "; ".join(item.incoming.notes)
        file, name = item.incoming.file, item.incoming.name
        if item.clash:
            rows.append(ImportedFile(file, name, None, "refused", item.clash))
        elif item.same_as is not None:
            version = item.version or versions.get(item.incoming.epoch)
            rows.append(ImportedFile(file, name, version, "already there", item.same_as))
        else:
            outcome = "would be imported" if dry_run else "imported"
            rows.append(ImportedFile(file, name, versions.get(item.incoming.epoch), outcome, notes))
    return rows


def _incoming_file(path: Path, name: str, hparam_set: str, tree: Hparam) -> Incoming:
    if not path.is_file():
        if path.is_dir():
            raise UsageError(
                f"{path} is a folder, not a checkpoint.", f"The published archive: lossy import {path}"
            )
        raise _no_such_file(path)
    content = read_file(path, str(path))
    converter = converter_for(path.name)
    contents = convert(converter, path) if converter else read_checkpoint(content, str(path))
    return _incoming(str(path), content, contents, name, hparam_set, tree)


def _incoming_found(files: Files, found: Found) -> Incoming:
    _check_name(found.name, found.name)
    content = files.read(found.path)
    contents = read_checkpoint(content, found.path)
    if found.settings:
        nearest, overrides = found.settings.hparam_set, found.settings.overrides
    else:
        architecture = architecture_of(contents.tensors)
        nearest, overrides = _NEAREST_SETS[architecture.model_name], architecture.sizes
    # The set that its name says, unless that one is of another architecture than the file.
    named = _set_of(found.name)
    fits = named and get_hparams(named).model_name == get_hparams(nearest).model_name
    hparam_set = named if named and fits else nearest
    tree = get_hparams(hparam_set, overrides)
    return _incoming(found.path, content, contents, found.name, hparam_set, tree)


def _incoming(
    file: str, content: bytes, contents: Contents, name: str, hparam_set: str, tree: Hparam
) -> Incoming:
    from lossy_mlflow.checkpoints.foreign.fit import fitted
    from lossy_mlflow.experiments.import_run import Incoming
    from lossy_mlflow.experiments.pictures import samples_png

    fit = fitted(contents.tensors, tree, file)
    return Incoming(
        file=_printable(file),
        size=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        name=name,
        hparam_set=hparam_set,
        tree=tree,
        epoch=_epoch_in(PurePosixPath(file).name) if contents.epoch is None else contents.epoch,
        val_loss=contents.val_loss,
        weights=fit.weights,
        rest=fit.rest,
        samples=samples_png(fit.decoder, tree, "cpu"),
        notes=fit.notes,
    )


def _epoch_in(file_name: str) -> int:
    found = re.findall(r"epoch_?(\d{1,9})(?!\d)", file_name)
    return int(found[-1]) if found else 0


def _set_of(name: str) -> str | None:
    """The set whose label `name` is: that of this name, else the longest that it begins with, and an e_name."""
    fitting = [known for known in set_names() if name == known or name.startswith(f"{known}_")]
    return max((known for known in fitting if not evaluates(get_hparams(known))), key=len, default=None)


def _check_name(name: str, hparam_set: str) -> None:
    """Raises UsageError for what can't be a model's name, ConflictError for one that is another set's."""
    both_quotes = "'" in name and '"' in name
    if not parse_reference(name).is_plain or both_quotes or len(name) > _LONGEST_NAME or "?" in name:
        raise UsageError(
            f"{name[:60]!r} can't be the name of a model.",
            "Take letters, digits, blanks and _ - . at most 250 of them.",
        )
    if name in set_names() and evaluates(get_hparams(name)):
        raise ConflictError(
            f"{name!r} is the name of an evaluation, which has no model.",
            f"Name it otherwise: --name {name}_imported",
        )
    if name != hparam_set and name in set_names():
        raise ConflictError(
            f"{name!r} is the name of an hparam set, and the file is to be of the set {hparam_set!r}.",
            f"Name it otherwise: --name {hparam_set}_imported    or say --hparam-set {name}",
        )


def _no_such_file(path: Path) -> NotFoundError:
    return NotFoundError(
        f"There is no file {str(path)!r} in {path.absolute().parent}.", "Look at its name, and where you are."
    )


def _left_out(path: str, name: str, error: LossyError) -> ImportedFile:
    return ImportedFile(_printable(path), name, None, "refused" if name else "not recognised", error.what)


def _printable(path: str) -> str:
    """Names in a folder may be bytes of no encoding; neither a terminal nor a server takes those."""
    return path.encode(errors="replace").decode()

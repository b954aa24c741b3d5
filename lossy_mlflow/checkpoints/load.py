"""From a reference to a decoder that runs here: downloaded once, verified, built, loaded."""

from __future__ import annotations

import contextlib
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs

from lossy_mlflow.checkpoints.flavor import load_model
from lossy_mlflow.checkpoints.lookup import Checkpoint, resolve
from lossy_mlflow.checkpoints.obtain import obtain, refuse_not_ours
from lossy_mlflow.user_code import load_user_code

if TYPE_CHECKING:
    from torch import nn

    from lossy_mlflow.hparams import Hparam


def load_decoder(reference: str, chkt_step: int | None = None, device: str = "cpu") -> nn.Module:
    """The decoder that `reference` means (see `resolve`), in evaluation mode, wherever it was trained.

    It lies on `device`: auto, cpu or cuda.
    `decoder.decode(z)` with z (batch, z_size) gives x_mean (batch, input_vector_length) and x_logvar, as in models/protocols.py.
    A model of the user's own is found when its file has been imported, or is named by LOSSY_USER_CODE.
    Raises NotFoundError, where nothing of that name is there, its files are gone, or its model's code isn't here; LossyError,
    where the files are not what was published; UsageError, as `resolve` does, and for a device that isn't there.
    """
    from lossy_mlflow.models.device import choose_device

    on = choose_device(device)
    load_user_code(None)
    return load_checkpoint(resolve(reference, chkt_step), str(on))


def load_checkpoint(checkpoint: Checkpoint, device: str = "cpu") -> nn.Module:
    """The decoder of that version, in evaluation mode on `device`. Raises as `load_decoder` does."""
    return load_with_hparams(checkpoint, device)[0]


def load_with_hparams(checkpoint: Checkpoint, device: str = "cpu") -> tuple[nn.Module, Hparam]:
    """The same, and the tree that it was trained from."""
    from lossy_mlflow.checkpoints.rebuild import UnregisteredModelError

    folder = local_copy(checkpoint)
    try:
        return load_model(folder, device, whole=True)
    except UnregisteredModelError as error:
        code = _user_code_of(checkpoint.run_id)
        if code is None:
            raise
        raise UnregisteredModelError(f"{checkpoint.uri}: {error.what}", code, error.run_id) from None


def local_copy(checkpoint: Checkpoint) -> Path:
    """The folder of the version's files in the cache, shared by all processes of the user; downloaded if it isn't there.

    The cache is keyed by the digest of all files, which the version's tag names; what comes into it is compared with that. What
    is found there is compared again if a file of it has been touched since. Raises as `obtain` does.
    """
    refuse_not_ours(checkpoint)
    cache = cache_folder()
    entry, seen = cache / "decoders" / checkpoint.files_sha256, cache / "verified" / checkpoint.files_sha256
    if _read(seen) != (_stamp(entry) or "none"):
        obtain(checkpoint, entry, replace=True)
        _note(seen, _stamp(entry))
    return entry


def _stamp(folder: Path) -> str:
    """What changes when a file in `folder` is written, replaced, removed or added; reading them all takes ten times as long."""
    lines = []
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        stat = file.stat()
        lines.append(f"{file} {stat.st_ino} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}\n")
    return "".join(lines)


def _read(file: Path) -> str:
    return file.read_text() if file.exists() else ""


def _note(file: Path, text: str) -> None:
    """So that the next one needn't read all files; a cache that can't be written works as well."""
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        written = file.with_suffix(f".{os.getpid()}")
        written.write_text(text)
        written.replace(file)


def cache_folder() -> Path:
    """LOSSY_CACHE_DIR, else the platform's cache folder."""
    named = os.environ.get("LOSSY_CACHE_DIR")
    return Path(named) if named else platformdirs.user_cache_path("lossy_mlflow")


def _user_code_of(run_id: str) -> str | None:
    """Commands that bring the newest user code that the run was started with; None where it had none, or is gone."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    from lossy_mlflow.tracking.runs import artifacts_of

    try:
        repository = artifacts_of(MlflowClient(), run_id)
        attempts = sorted(repository.list_artifacts("attempts"), key=lambda item: (len(item.path), item.path))
        files = [file.path for attempt in attempts for file in repository.list_artifacts(attempt.path)]
    except (MlflowException, OSError):
        return None
    code = [path for path in files if path.endswith(".py")]
    if not code:
        return None
    # Into a folder of its own: a file of that name may be here already, and be another one.
    file = shlex.quote(f"{run_id}/{Path(code[-1]).name}")
    return (
        f"Read the code of that run, then name it: mlflow artifacts download --run-id {run_id} "
        f"--artifact-path {shlex.quote(code[-1])} --dst-path {run_id} && export LOSSY_USER_CODE={file}    "
        f"(for one command of lossy: --user-code {file})"
    )

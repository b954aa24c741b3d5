"""From a reference to a decoder that runs here: downloaded once, verified, built, loaded."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs

from lossy_mlflow.checkpoints.flavor import FILES, files_sha256, load_model
from lossy_mlflow.checkpoints.lookup import Checkpoint, resolve
from lossy_mlflow.errors import LossyError, NotFoundError
from lossy_mlflow.tracking.connection import explained, without_password
from lossy_mlflow.user_code import load_user_code

if TYPE_CHECKING:
    from torch import nn


def load_decoder(reference: str, chkt_step: int | None = None, device: str = "cpu") -> nn.Module:
    """The decoder that `reference` means (see `resolve`), in evaluation mode, wherever it was trained.

    It lies on `device`: auto, cpu or cuda.
    `decoder.decode(z)` with z (batch, z_size) gives x_mean (batch, input_vector_length) and x_logvar, as in models/protocols.py.
    A model of the user's own is found when its file has been imported, or is named by LOSSY_USER_CODE.
    Raises NotFoundError, where nothing of that name is there, or its files are gone; LossyError, where they are not what was
    published; UsageError, as `resolve` does, and for a device that isn't there.
    """
    from lossy_mlflow.models.device import choose_device

    on = choose_device(device)
    load_user_code(None)
    checkpoint = resolve(reference, chkt_step)
    decoder, _ = load_model(local_copy(checkpoint), str(on))
    return decoder


def local_copy(checkpoint: Checkpoint) -> Path:
    """The folder of the version's files in the cache, shared by all processes of the user; downloaded if it isn't there.

    The cache is keyed by the digest of all files, which the version's tag names: what was downloaded is compared with it
    before it is moved into place, and what is found there is compared again before it is used.
    """
    if not re.fullmatch(r"[0-9a-f]{64}", checkpoint.files_sha256):
        raise LossyError(
            f"{checkpoint.uri} was not published by lossy_mlflow: its tag files_sha256 is no digest.",
            f"Load it with MLflow's own API: mlflow.pyfunc.load_model({checkpoint.uri!r})",
        )
    cache = _cache_folder()
    entry = cache / checkpoint.files_sha256
    if entry.exists():
        if files_sha256(entry) == checkpoint.files_sha256:
            return entry
        shutil.rmtree(entry, ignore_errors=True)
    with explained():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".incoming-") as scratch:
            folder = _download(checkpoint, scratch)
            _verify(checkpoint, folder)
            try:
                folder.rename(entry)
            except OSError:
                if not entry.exists():  # else another process was quicker, with the same files
                    raise
    return entry


def _verify(checkpoint: Checkpoint, folder: Path) -> None:
    """Raises NotFoundError where files are missing from what was downloaded to `folder`, LossyError where one is altered."""
    found = files_sha256(folder)
    if found == checkpoint.files_sha256:
        return
    others = f"take another version: lossy checkpoints {shlex.quote(checkpoint.name)}"
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    if missing := sorted(FILES - there):
        from mlflow import MlflowClient

        where = MlflowClient().get_model_version_download_uri(checkpoint.name, str(checkpoint.version))
        which = ", ".join(missing) if there else "all of them"
        raise NotFoundError(
            f"Files of {checkpoint.uri} are gone, {which}: they are not in {without_password(where)}",
            f"Put them back there from a backup, or {others}",
        )
    raise LossyError(
        f"The files of {checkpoint.uri} are not what was published: their digest is {found[:12]}..., "
        f"its tag says {checkpoint.files_sha256[:12]}...",
        f"Put them back from a backup, or {others}",
    )


def _download(checkpoint: Checkpoint, scratch: str) -> Path:
    import mlflow.artifacts

    target = Path(scratch, "download")
    target.mkdir()
    folder = mlflow.artifacts.download_artifacts(artifact_uri=checkpoint.uri, dst_path=str(target))
    moved = Path(scratch, "model")
    shutil.move(folder, moved)
    (moved / "registered_model_meta").unlink(missing_ok=True)
    return moved


def _cache_folder() -> Path:
    """LOSSY_CACHE_DIR, else the platform's cache folder."""
    named = os.environ.get("LOSSY_CACHE_DIR")
    return (Path(named) if named else platformdirs.user_cache_path("lossy_mlflow")) / "decoders"

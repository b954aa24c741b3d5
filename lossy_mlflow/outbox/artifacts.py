"""A run's artifacts by way of the outbox: written to its folder, read from there and from the server."""

from __future__ import annotations

import posixpath
import shutil
import tempfile
from pathlib import Path
from typing import Any

from mlflow.entities import FileInfo
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, TEMPORARILY_UNAVAILABLE
from mlflow.store.artifact.artifact_repo import ArtifactRepository, verify_artifact_path
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.runs_artifact_repo import RunsArtifactRepository
from mlflow.utils.async_logging.run_operations import RunOperations

from lossy_mlflow.outbox.address import PREFIX, server_uri
from lossy_mlflow.outbox.api import MissingError, WaitingError
from lossy_mlflow.outbox.direct import away, is_away
from lossy_mlflow.outbox.program import Outbox, outbox_for, read_artifact_uri
from lossy_mlflow.outbox.target import get_run


class OutboxArtifacts(ArtifactRepository):
    """The repository of `outbox-artifacts:///SERVER_FOLDER/runs/RUN/artifacts[/PATH]`."""

    def __init__(
        self, artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None
    ) -> None:
        super().__init__(artifact_uri, tracking_uri, registry_uri)
        server, self._run_id, self._root = read_artifact_uri(artifact_uri)
        self._outbox: Outbox = outbox_for(PREFIX + server)
        self._server_repository: ArtifactRepository | None = None

    def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
        verify_artifact_path(artifact_path)
        source = Path(local_file)
        path = posixpath.join(self._root, artifact_path or "", source.name)
        self._outbox.journal(self._run_id).add_file(source, path)

    def log_artifacts(self, local_dir: str, artifact_path: str | None = None) -> None:
        root = Path(local_dir)
        for file in sorted(path for path in root.rglob("*") if path.is_file()):
            folder = file.parent.relative_to(root).as_posix()
            self.log_artifact(
                str(file), posixpath.normpath(posixpath.join(artifact_path or "", folder)).lstrip(".")
            )

    def _log_artifact_async(
        self, filename: str, artifact_path: str | None = None, artifact: Any = None
    ) -> RunOperations:
        """At once: what an asynchronous queue holds would die with the process."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, filename)
            if artifact is not None:
                artifact.save(file)
            self.log_artifact(str(file), artifact_path)
        return RunOperations([])

    def list_artifacts(self, path: str | None = None) -> list[FileInfo]:
        wanted = posixpath.join(self._root, path or "").strip("/")
        repository = self._on_server()
        found = {info.path: info for info in repository.list_artifacts(path)} if repository else {}
        for full, content in (self._waiting() if repository else self._here()).items():
            inside = posixpath.relpath(full, wanted) if wanted else full
            if inside.startswith("..") or inside == ".":
                continue
            first, _, rest = inside.partition("/")
            name = posixpath.join(path or "", first)
            found[name] = FileInfo(name, bool(rest), None if rest else content["size"])
        return sorted(found.values(), key=lambda info: info.path)

    def _download_file(self, remote_file_path: str, local_path: str) -> None:
        full = posixpath.join(self._root, remote_file_path)
        waiting = self._waiting().get(full)
        repository = self._on_server() if waiting is None else None
        if repository is None:
            waiting = waiting or self._here().get(full)
        if waiting:
            shutil.copyfile(self._outbox.folder.run(self._run_id).files / waiting["file"], local_path)
            return
        if repository is None:
            raise MlflowException(
                f"The artifact {full} of the run {self._run_id} is on the server, which can't be asked now.",
                TEMPORARILY_UNAVAILABLE,
            )
        repository._download_file(remote_file_path, local_path)

    def _waiting(self) -> dict[str, Any]:
        """By path, the files that the server doesn't have yet."""
        folder = self._outbox.folder.run(self._run_id)
        if not folder.path.exists():
            return {}
        return dict(folder.view(folder.delivered(self._outbox.uri).file_offsets).artifacts)

    def _here(self) -> dict[str, Any]:
        """By path, the files that this machine has a copy of, though the server may have them as well."""
        folder = self._outbox.folder.run(self._run_id)
        return dict(folder.view().artifacts) if folder.path.exists() else {}

    def _on_server(self) -> ArtifactRepository | None:
        """The server's own repository; None where it can't be asked now, and all there is is known here.

        Raises MlflowException where it isn't.
        """
        server_id = self._outbox.server_run_id(self._run_id)
        if server_id is None:
            return None
        try:
            # Where a run's artifacts are never changes: a download of many files asks for it once.
            if self._server_repository is None:
                uri = self._outbox.ask(lambda api: get_run(api, server_id)).artifact_uri
                full = posixpath.join(uri, self._root) if self._root else uri
                plain = self._outbox.uri.removeprefix(PREFIX)
                self._server_repository = get_artifact_repository(full, tracking_uri=plain)
            self._outbox.check_server()
        except (WaitingError, MissingError) as error:
            if self._outbox.folder.run(self._run_id).made_here():
                return None
            raise away(self._outbox, f"for the artifacts of the run {self._run_id}", error) from None
        return self._server_repository

    def delete_artifacts(self, artifact_path: str | None = None) -> None:
        raise MlflowException(
            f"The outbox deletes no artifacts ({artifact_path or 'all'} of the run {self._run_id})."
            f" Name the server itself: MLFLOW_TRACKING_URI={server_uri(self._outbox.uri)}",
            INVALID_PARAMETER_VALUE,
        )

    def has_models_elsewhere(self) -> bool:
        """Whether the run may have logged models, whose files are not among its own."""
        folder = self._outbox.folder.run(self._run_id)
        return not folder.made_here() or bool(folder.view().outputs)

    def raise_if_away(self) -> None:
        """Raises MlflowException where what is asked for is on the server, and that is away."""
        self._on_server()


class OutboxRuns(RunsArtifactRepository):
    """MLflow's own repository of `runs:` URIs, which asks the server for models wherever it looks for a file."""

    def _get_logged_model_artifact_repo(self, run_id: str, name: str) -> ArtifactRepository | None:
        try:
            return super()._get_logged_model_artifact_repo(run_id, name)
        except MlflowException as error:
            if (
                is_away(error)
                and isinstance(self.repo, OutboxArtifacts)
                and not self.repo.has_models_elsewhere()
            ):
                return None
            raise

    def download_artifacts(self, artifact_path: str, dst_path: str | None = None) -> str:
        try:
            return super().download_artifacts(artifact_path, dst_path)
        except MlflowException:
            # It says that the path is wrong, whatever the reason.
            if isinstance(self.repo, OutboxArtifacts):
                self.repo.raise_if_away()
            raise

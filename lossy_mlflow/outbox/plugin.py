"""What MLflow calls for `outbox+http://...`: the tracking store, the registry's, and two kinds of artifact URIs."""

from __future__ import annotations

from typing import Any

from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository
from mlflow.store.model_registry.rest_store import RestStore as RegistryStore
from mlflow.utils.credentials import get_default_host_creds

from lossy_mlflow.outbox.address import PREFIX
from lossy_mlflow.outbox.direct import ask_directly, check_server
from lossy_mlflow.outbox.program import outbox_for
from lossy_mlflow.outbox.store import OutboxStore


def tracking_store(store_uri: str, **_: Any) -> OutboxStore:
    """MLflow says where artifacts go as well: that the server decides."""
    return OutboxStore(store_uri)


class OutboxRegistry(RegistryStore):
    """The registry is asked directly: a promotion that waits in an outbox would be no promotion."""

    def __init__(self, store_uri: str) -> None:
        plain = store_uri.removeprefix(PREFIX)
        super().__init__(lambda: get_default_host_creds(plain))
        self._outbox = outbox_for(store_uri)

    def _call_endpoint(self, api: Any, json_body: Any, *arguments: Any, **named: Any) -> Any:
        return ask_directly(self._outbox, super()._call_endpoint, api, json_body, *arguments, **named)


def registry_store(store_uri: str, **_: Any) -> OutboxRegistry:
    return OutboxRegistry(store_uri)


class ProxiedArtifacts(MlflowArtifactsRepository):
    """MLflow's own repository of `mlflow-artifacts:` URIs, which doesn't know that `outbox+http` is http."""

    def __init__(
        self, artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None
    ) -> None:
        from mlflow.tracking import get_tracking_uri  # not above: it loads this module

        self._named = tracking_uri or get_tracking_uri()
        super().__init__(
            artifact_uri, tracking_uri=self._named.removeprefix(PREFIX), registry_uri=registry_uri
        )

    @property
    def _host_creds(self) -> Any:
        self._check_server()
        return super()._host_creds

    def list_artifacts(self, path: str | None = None) -> Any:
        self._check_server()
        return super().list_artifacts(path)

    def _check_server(self) -> None:
        if self._named.startswith(PREFIX):
            check_server(outbox_for(self._named))


def outbox_artifacts(
    artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None
) -> ArtifactRepository:
    from lossy_mlflow.outbox.artifacts import OutboxArtifacts

    return OutboxArtifacts(artifact_uri, tracking_uri, registry_uri)


def outbox_runs(
    artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None
) -> ArtifactRepository:
    from lossy_mlflow.outbox.artifacts import OutboxRuns

    return OutboxRuns(artifact_uri, tracking_uri, registry_uri)

"""What MLflow calls for `outbox+http://...`: the tracking store, the registry's, and two kinds of artifact URIs."""

from __future__ import annotations

from typing import Any

from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository
from mlflow.store.model_registry.rest_store import RestStore as RegistryStore
from mlflow.utils.credentials import get_default_host_creds

from lossy_mlflow.outbox.address import PREFIX
from lossy_mlflow.outbox.store import OutboxStore


def tracking_store(store_uri: str, **_: Any) -> OutboxStore:
    """MLflow says where artifacts go as well: that the server decides."""
    return OutboxStore(store_uri)


def registry_store(store_uri: str, **_: Any) -> RegistryStore:
    """The registry is asked directly: a promotion that waits in an outbox would be no promotion."""
    plain = store_uri.removeprefix(PREFIX)
    return RegistryStore(lambda: get_default_host_creds(plain))


class ProxiedArtifacts(MlflowArtifactsRepository):
    """MLflow's own repository of `mlflow-artifacts:` URIs, which doesn't know that `outbox+http` is http."""

    def __init__(
        self, artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None
    ) -> None:
        from mlflow.tracking import get_tracking_uri

        plain = (tracking_uri or get_tracking_uri()).removeprefix(PREFIX)
        super().__init__(artifact_uri, tracking_uri=plain, registry_uri=registry_uri)


def outbox_artifacts(
    artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None
) -> ArtifactRepository:
    from lossy_mlflow.outbox.artifacts import OutboxArtifacts

    return OutboxArtifacts(artifact_uri, tracking_uri, registry_uri)

"""Logged models of a program whose server is away: kept as files of their run, since nobody but the server can make another kind.

What they would have on the server besides (their own params and tags, and which metrics are theirs) they lack.
"""

from __future__ import annotations

import logging
import posixpath
import time
import uuid
from collections.abc import Sequence
from typing import Any

from mlflow.entities import (
    LoggedModel,
    LoggedModelOutput,
    LoggedModelParameter,
    LoggedModelStatus,
    LoggedModelTag,
)
from mlflow.exceptions import MlflowException
from mlflow.store.tracking.rest_store import RestStore
from mlflow.utils.name_utils import _generate_random_name

from lossy_mlflow.outbox.direct import is_away

log = logging.getLogger("lossy_mlflow.outbox")


class ModelStore(RestStore):
    """MLflow's store, except that a run's model can be logged while the server is away."""

    def __init__(self, get_host_creds: Any) -> None:
        super().__init__(get_host_creds)
        self._made_here: dict[str, LoggedModel] = {}

    def create_logged_model(
        self,
        experiment_id: str,
        name: str | None = None,
        source_run_id: str | None = None,
        tags: list[LoggedModelTag] | None = None,
        params: list[LoggedModelParameter] | None = None,
        model_type: str | None = None,
    ) -> LoggedModel:
        try:
            made: LoggedModel = super().create_logged_model(
                experiment_id, name, source_run_id, tags, params, model_type
            )
        except MlflowException as error:
            if source_run_id is None or not is_away(error):
                raise
            name, now = name or _generate_random_name(), int(time.time() * 1000)
            log.warning("%s The model is kept as the run's artifact %r.", error.message, name)
            place = posixpath.join(self.get_run(source_run_id).info.artifact_uri, name)
            identity = f"m-{uuid.uuid4().hex}"
            made = LoggedModel(experiment_id, identity, name, place, now, now, model_type, source_run_id)
            self._made_here[identity] = made
        return made

    def get_logged_model(self, model_id: str, allow_deleted: bool = False) -> LoggedModel:
        return self._made_here.get(model_id) or super().get_logged_model(model_id, allow_deleted)

    def finalize_logged_model(self, model_id: str, status: LoggedModelStatus) -> LoggedModel:
        return self._made_here.get(model_id) or super().finalize_logged_model(model_id, status)

    def log_logged_model_params(self, model_id: str, params: list[LoggedModelParameter]) -> None:
        if model_id not in self._made_here:
            super().log_logged_model_params(model_id, params)

    def set_logged_model_tags(self, model_id: str, tags: list[LoggedModelTag]) -> None:
        if model_id not in self._made_here:
            super().set_logged_model_tags(model_id, tags)

    def server_model_id(self, model_id: str | None) -> str | None:
        """None for one that the server doesn't know: a metric of it is the run's."""
        return None if model_id in self._made_here else model_id

    def known_to_server(self, models: Sequence[LoggedModelOutput]) -> list[LoggedModelOutput]:
        return [model for model in models if model.model_id not in self._made_here]

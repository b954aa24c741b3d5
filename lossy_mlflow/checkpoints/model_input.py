"""The LoggedModel that holds a version's files: what MLflow's pages show as the model that a run has used."""

from __future__ import annotations

import re

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

# It may not be named, is gone, or the server is.
_LEFT_OUT = ("PERMISSION_DENIED", "RESOURCE_DOES_NOT_EXIST", "TEMPORARILY_UNAVAILABLE")


def nameable_model(client: MlflowClient, name: str, version: int) -> str | None:
    """Its id; None where there is none, it is gone, or this user may not name it as a run's input.

    MLflow wants the right to edit the model for that, not only to read it, and an outbox that delivers later would wait for such
    a right: so it is found out here.
    """
    try:
        model_id = _logged_model(client, name, version)
        if model_id:
            # No tag at all: it changes nothing, and is refused to whom naming the model is. The client's own function would ask
            # for the model first, and hide the error's code.
            client._tracking_client.set_logged_model_tags(model_id, {})
    except MlflowException as error:
        if error.error_code not in _LEFT_OUT:
            raise
        return None
    return model_id


def _logged_model(client: MlflowClient, name: str, version: int) -> str | None:
    """A copy names the version that it was copied from, that one its LoggedModel; what others have registered, any place."""
    source = f"models:/{name}/{version}"
    while found := re.fullmatch(r"models:/(.+)/(\d+)", source):
        source = client.get_model_version(found[1], found[2]).source or ""
    model = re.fullmatch(r"models:/(m-\w+)", source)
    return model[1] if model else None

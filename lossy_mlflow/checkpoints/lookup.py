"""From a reference to one version of a registered model; and the versions that a name has."""

from __future__ import annotations

import datetime
import shlex
from dataclasses import dataclass

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.exceptions import MlflowException

from lossy_mlflow.checkpoints.reference import BEST_STEP, LAST_STEP, Reference, parse_reference, refuse_step
from lossy_mlflow.checkpoints.versions import search_versions
from lossy_mlflow.errors import LossyError, NotFoundError, UsageError, did_you_mean
from lossy_mlflow.hparams import evaluates, get_hparams, set_of_label, train_command
from lossy_mlflow.models import comes_trained
from lossy_mlflow.tracking.connection import Connection, connect, explained, without_password
from lossy_mlflow.tracking.runs import all_pages, quoted
from lossy_mlflow.tracking.tags import number, whole_number


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A version of a registered model. `epoch` and `val_loss` (nats per image) are None where its tags don't say them."""

    name: str
    version: int
    epoch: int | None
    val_loss: float | None
    aliases: tuple[str, ...]
    run_id: str
    created: str
    hparam_set: str
    e_name: str
    weights_sha256: str
    files_sha256: str
    uri: str


def resolve(reference: str, chkt_step: int | None = None) -> Checkpoint:
    """The version that `reference` means. A plain NAME follows `chkt_step`: -2 or None its best, -1 its last, N that of epoch N.

    Raises NotFoundError, which says what there is instead; UsageError, where the reference can't be read, and for a `chkt_step`
    below -2 or beside a reference that means one version already.
    """
    wanted = parse_reference(reference)
    refuse_step(wanted, chkt_step)
    with explained():
        return resolve_at(connect(), wanted, chkt_step)


def resolve_at(connection: Connection, wanted: Reference, chkt_step: int | None = None) -> Checkpoint:
    """The same on a server that is connected already. Raises NotFoundError as `resolve` does, and what MLflow raises."""
    versions = versions_of(connection.client, registered_model(connection, wanted.name))
    return _pick(connection, wanted, versions, BEST_STEP if chkt_step is None else chkt_step)


def list_checkpoints(name: str) -> list[Checkpoint]:
    """Every version of the registered model `name`, newest first.

    Raises NotFoundError with the names that are near; UsageError, where `name` is a reference to one version.
    """
    wanted = parse_reference(name)
    if not wanted.is_plain:
        raise UsageError(
            f"{wanted} means one version; what is listed are all of a name.",
            f"lossy checkpoints {shlex.quote(wanted.name)}    that one alone: lossy resolve {shlex.quote(str(wanted))}",
        )
    with explained():
        connection = connect()
        return versions_of(connection.client, registered_model(connection, wanted.name))


def list_names() -> list[str]:
    """The names of all registered models that this user may see, sorted."""
    with explained():
        return sorted(_registered_names(connect().client))


def _registered_names(client: MlflowClient) -> list[str]:
    pages = all_pages(lambda token: client.search_registered_models(max_results=1000, page_token=token))
    return [model.name for model in pages]


def versions_of(client: MlflowClient, model: RegisteredModel) -> list[Checkpoint]:
    """The versions of `model`, newest first. Aliases come from the model: a search of versions doesn't return them."""
    aliases: dict[int, list[str]] = {}
    for alias, version in model.aliases.items():
        aliases.setdefault(int(version), []).append(alias)
    found = search_versions(client, f"name = {quoted(model.name)}")
    checkpoints = [_checkpoint(version, aliases.get(int(version.version), [])) for version in found]
    return sorted(checkpoints, key=lambda checkpoint: -checkpoint.version)


def registered_model(connection: Connection, name: str) -> RegisteredModel:
    """The registered model `name`. Raises NotFoundError with the names that are near; LossyError, where a member has no right."""
    try:
        return connection.client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "PERMISSION_DENIED"):
            raise
        hidden = error.error_code == "PERMISSION_DENIED"
    names = _registered_names(connection.client)
    near = did_you_mean(name, names)
    if hidden:
        # The server doesn't say which, for a name that it doesn't show.
        raise LossyError(
            f"{without_password(connection.uri)} shows you no registered model {name!r}: there is none, or you have no right"
            f" on it{f'; {near}' if near else '.'}",
            f"Ask an admin, who gives it: lossy users grant YOU --model {shlex.quote(name)} READ    and READ on its experiment,"
            " where its files are",
        )
    there = near or (f"it has {len(names)} of other names." if names else "it has none yet.")
    raise NotFoundError(
        f"No registered model {name!r} at {without_password(connection.uri)}; {there}",
        f"{_way_to(name)}    or name another server: export MLFLOW_TRACKING_URI=...",
    )


def is_only_imported(name: str) -> bool:
    """Whether the set that gives this label is of a model that nobody trains here."""
    found = set_of_label(name)
    return found is not None and comes_trained(get_hparams(found[0]).model_name)


def _way_to(name: str) -> str:
    """The command that makes a model of that name, where there is one."""
    if is_only_imported(name):
        return "Import it, from the published archive: lossy import ARCHIVE"
    if (found := set_of_label(name)) and evaluates(evaluation := get_hparams(found[0])):
        return f"{found[0]} is an evaluation: load what it evaluates, {evaluation.load_checkpoint_name}"
    command = train_command(name)
    return f"Train it: {command}" if command else "See what there is: lossy checkpoints"


def _pick(
    connection: Connection, wanted: Reference, versions: list[Checkpoint], chkt_step: int
) -> Checkpoint:
    if wanted.version is not None:
        chosen = [item for item in versions if item.version == wanted.version]
        looked_for = f"version {wanted.version}"
    elif wanted.alias is not None:
        chosen = [item for item in versions if wanted.alias in item.aliases]
        looked_for = f"alias {wanted.alias!r}"
    elif chkt_step in (BEST_STEP, LAST_STEP):
        alias = "best" if chkt_step == BEST_STEP else "last"
        chosen = [item for item in versions if alias in item.aliases]
        looked_for = f"alias {alias!r} (chkt_step {chkt_step})"
    else:
        # Versions of an overwritten run stay: the newest of that epoch is the label's.
        chosen = [item for item in versions if item.epoch == chkt_step][:1]
        looked_for = f"version of epoch {chkt_step}"
    if chosen:
        return chosen[0]
    there = ", ".join(_in_short(item) for item in versions[:8]) or "no version at all"
    raise NotFoundError(
        f"{wanted.name} at {without_password(connection.uri)} has no {looked_for}; it has {there}.",
        f"See all: lossy checkpoints {shlex.quote(wanted.name)}",
    )


def _in_short(checkpoint: Checkpoint) -> str:
    names = "".join(f" @{alias}" for alias in checkpoint.aliases)
    epoch = f" (epoch {checkpoint.epoch})" if checkpoint.epoch is not None else ""
    return f"{checkpoint.version}{epoch}{names}"


def _checkpoint(version: ModelVersion, aliases: list[str]) -> Checkpoint:
    tags = version.tags
    created = datetime.datetime.fromtimestamp(version.creation_timestamp / 1000, datetime.UTC)
    return Checkpoint(
        name=version.name,
        version=int(version.version),
        epoch=whole_number(tags, "epoch"),
        val_loss=number(tags, "val_loss"),
        aliases=tuple(sorted(aliases)),
        run_id=version.run_id or "",
        created=created.isoformat(timespec="seconds"),
        hparam_set=tags.get("hparam_set", ""),
        e_name=tags.get("e_name", ""),
        weights_sha256=tags.get("weights_sha256", ""),
        files_sha256=tags.get("files_sha256", ""),
        uri=f"models:/{version.name}/{version.version}",
    )

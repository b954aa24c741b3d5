"""Which versions of a registered model nobody needs any more, and deleting them."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.exceptions import MlflowException

from lossy_mlflow.checkpoints.lookup import registered_model
from lossy_mlflow.checkpoints.promotions import promotions_in, under_way
from lossy_mlflow.checkpoints.reference import parse_reference
from lossy_mlflow.checkpoints.versions import search_versions
from lossy_mlflow.errors import UsageError
from lossy_mlflow.tracking.connection import connect, explained
from lossy_mlflow.tracking.runs import quoted
from lossy_mlflow.tracking.tags import number, whole_number

KEEP = 5
OLDER_THAN_S = 30 * 86400.0
_PINNED = "pinned"
_GONE = "RESOURCE_DOES_NOT_EXIST"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A version that goes (`stays_because` is '') or stays.

    `age_s`: in seconds, by the server's clock. `val_loss` in nats per image.
    """

    version: int
    epoch: int | None
    val_loss: float | None
    age_s: float
    stays_because: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What pruning the model `name` means, or has done; newest first."""

    name: str
    goes: list[Verdict]
    stays: list[Verdict]


def plan_prune(name: str, keep: int = KEEP, older_than_s: float = OLDER_THAN_S) -> Plan:
    """What goes: versions without alias and pin that are not among the `keep` newest, and older. Changes nothing.

    Raises NotFoundError with the names that are near; UsageError where `name` means one version.
    """
    wanted = parse_reference(name)
    if not wanted.is_plain:
        raise UsageError(
            f"{wanted} means one version; what is pruned is a model.",
            f"lossy prune {shlex.quote(wanted.name)}",
        )
    with explained():
        connection = connect()
        client = connection.client
        model = registered_model(connection, wanted.name)
        found = search_versions(client, f"name = {quoted(model.name)}")
        versions = {int(version.version): version for version in found}
        pinned_runs = {
            run_id: _run_is_pinned(client, run_id) for run_id in {item.run_id for item in versions.values()}
        }
        now = connection.now()
    held = {which: held_by(model, item, pinned_runs[item.run_id]) for which, item in versions.items()}
    ages = {which: now - item.creation_timestamp / 1000 for which, item in versions.items()}
    why = stay_because(held, ages, keep, older_than_s)
    verdicts = [
        Verdict(
            which,
            whole_number(versions[which].tags, "epoch"),
            number(versions[which].tags, "val_loss"),
            round(ages[which], 1),
            why[which],
        )
        for which in sorted(versions, reverse=True)
    ]
    return _plan(wanted.name, verdicts)


def prune(plan: Plan, deleted: Callable[[int], None] | None = None) -> Plan:
    """Delete what goes by the plan, oldest first, and return what has gone and what has stayed.

    Just before each deletion it is asked again whether an alias or a pin holds that version now: then it stays. What another
    process has deleted meanwhile has gone. May be repeated: a plan that is made anew after a crash goes on with the rest.
    `deleted` is called with each version's number after it.
    """
    verdicts = {verdict.version: verdict for verdict in plan.stays}
    with explained():
        client = connect().client
        for verdict in sorted(plan.goes, key=lambda item: item.version):
            why = _delete(client, plan.name, verdict.version)
            if not why and deleted:
                deleted(verdict.version)
            verdicts[verdict.version] = Verdict(
                verdict.version, verdict.epoch, verdict.val_loss, verdict.age_s, why
            )
    return _plan(plan.name, [verdicts[which] for which in sorted(verdicts, reverse=True)])


def stay_because(
    held: Mapping[int, str], ages: Mapping[int, float], keep: int, older_than_s: float
) -> dict[int, str]:
    """For each version why it stays; '' where it goes. `held`: what holds it, or ''; `ages` in seconds."""
    newest = sorted(held, reverse=True)[:keep]
    why = {}
    for version, holder in held.items():
        if holder:
            why[version] = holder
        elif version in newest:
            why[version] = f"among the newest {keep}"
        else:
            why[version] = "" if ages[version] >= older_than_s else "too young"
    return why


def held_by(model: RegisteredModel, version: ModelVersion, run_is_pinned: bool) -> str:
    """The alias or the pin that holds the version, whatever its age; '' where there is none.

    A promotion that is under way, or was cut off, holds it too: its alias may come at any moment.
    """
    aliases = {alias: int(number) for alias, number in model.aliases.items()}
    if its := sorted(alias for alias, number in aliases.items() if number == int(version.version)):
        return f"alias {', '.join(its)}"
    coming = under_way(promotions_in(model.tags)[0], aliases)
    if its := sorted(alias for alias, number in coming.items() if number == int(version.version)):
        return f"a promotion to {', '.join(its)} that isn't carried out yet"
    if _PINNED in version.tags:
        return "pinned"
    return "its run is pinned" if run_is_pinned else ""


def _delete(client: MlflowClient, name: str, version: int) -> str:
    """'' where the version is gone after it, else what holds it."""
    try:
        found = client.get_model_version(name, str(version))
        pinned = _run_is_pinned(client, found.run_id)
        # The aliases last: the less time between them and the deletion, the better.
        if why := held_by(client.get_registered_model(name), found, pinned):
            return why
        client.delete_model_version(name, str(version))
    except MlflowException as error:
        if error.error_code != _GONE:
            raise
    return ""


def _run_is_pinned(client: MlflowClient, run_id: str | None) -> bool:
    if not run_id:
        return False
    try:
        return _PINNED in client.get_run(run_id).data.tags
    except MlflowException as error:
        if error.error_code != _GONE:
            raise
    return False


def _plan(name: str, verdicts: list[Verdict]) -> Plan:
    goes = [verdict for verdict in verdicts if not verdict.stays_because]
    return Plan(name, goes, [verdict for verdict in verdicts if verdict.stays_because])

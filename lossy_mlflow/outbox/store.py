"""MLflow's tracking store on an outbox: what is logged goes to the disk, what is read comes from the server and the disk.

Whatever isn't overridden here asks the server directly, as MLflow's own store does.
"""

from __future__ import annotations

import collections
import json
import sys
import uuid
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Any

from mlflow.entities import (
    Experiment,
    Metric,
    Param,
    Run,
    RunInfo,
    RunStatus,
    RunTag,
)
from mlflow.exceptions import MlflowException
from mlflow.protos import databricks_pb2
from mlflow.protos.service_pb2 import GetExperiment, GetRun, LogInputs, LogOutputs
from mlflow.store.entities import PagedList
from mlflow.utils.async_logging.run_operations import RunOperations
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.name_utils import _generate_random_name
from mlflow.utils.proto_json_utils import message_to_json

from lossy_mlflow.outbox.address import PREFIX
from lossy_mlflow.outbox.api import ExistsError, MissingError, RefusedError, WaitingError
from lossy_mlflow.outbox.direct import ask_directly, away, check_server, is_away
from lossy_mlflow.outbox.folder import RunFolder
from lossy_mlflow.outbox.models import ModelStore
from lossy_mlflow.outbox.owner import this_process
from lossy_mlflow.outbox.program import Outbox, outbox_for
from lossy_mlflow.outbox.records import RunView
from lossy_mlflow.outbox.target import create_run, experiment_id_of
from lossy_mlflow.outbox.views import (
    LOCAL_EXPERIMENT,
    defined_run,
    experiment_of,
    identity_of,
    local_experiment_id,
    merged,
    metric_entity,
    parse,
)

_PARENT_TAG = "mlflow.parentRunId"
_LOGGING = {
    ("mlflow.tracking.fluent", "log_metric"),
    ("mlflow.tracking.fluent", "log_metrics"),
    ("mlflow.tracking._tracking_service.client", "_get_artifact_repo"),
    ("mlflow.tracking._tracking_service.client", "_log_url"),
}
# Of MLflow's own functions between one of these and the store.
_LEVELS = 4


class OutboxStore(ModelStore):
    """The store of `outbox+http(s)://...`."""

    def __init__(self, store_uri: str) -> None:
        plain = store_uri.removeprefix(PREFIX)
        super().__init__(lambda: get_default_host_creds(plain))
        self._outbox: Outbox = outbox_for(store_uri)
        self._outputs: collections.defaultdict[str, list[Any]] = collections.defaultdict(list)

    # What is logged: never asks the server.

    def log_batch(
        self, run_id: str, metrics: Sequence[Metric], params: Sequence[Param], tags: Sequence[RunTag]
    ) -> None:
        journal = self._outbox.journal(run_id)
        if params:
            journal.append("params", [[param.key, param.value] for param in params])
        if metrics:
            journal.append("metrics", [self._entry(metric) for metric in metrics])
        if tags:
            journal.append("tags", [[tag.key, tag.value] for tag in tags])

    def _entry(self, metric: Metric) -> list[Any]:
        entry = [metric.key, metric.value, metric.timestamp, metric.step]
        model = [self.server_model_id(metric.model_id), metric.dataset_name, metric.dataset_digest]
        return entry + model if any(model) else entry

    def log_batch_async(
        self, run_id: str, metrics: Sequence[Metric], params: Sequence[Param], tags: Sequence[RunTag]
    ) -> RunOperations:
        """As `log_batch`: it is as quick, and what an asynchronous queue holds would die with the process."""
        self.log_batch(run_id, metrics, params, tags)
        return RunOperations([])

    def log_metric(self, run_id: str, metric: Metric) -> None:
        self.log_batch(run_id, [metric], [], [])

    def log_param(self, run_id: str, param: Param) -> None:
        self.log_batch(run_id, [], [param], [])

    def set_tag(self, run_id: str, tag: RunTag) -> None:
        self.log_batch(run_id, [], [], [tag])

    def delete_tag(self, run_id: str, key: str) -> None:
        self._outbox.append(run_id, "delete_tag", key)

    def log_inputs(self, run_id: str, datasets: Any = None, models: Any = None) -> None:
        message = LogInputs(
            datasets=[item.to_proto() for item in datasets or []],
            models=[item.to_proto() for item in models or []],
        )
        self._outbox.append(run_id, "inputs", json.loads(message_to_json(message)))

    def log_outputs(self, run_id: str, models: Any) -> None:
        known = self.known_to_server(models)
        if not known:
            return
        message = LogOutputs(models=[item.to_proto() for item in known])
        content = json.loads(message_to_json(message))
        self._outputs[run_id].append(content)
        self._outbox.append(run_id, "outputs", content)

    def update_run_info(
        self, run_id: str, run_status: int | None, end_time: int | None, run_name: str | None
    ) -> RunInfo:
        status = RunStatus.to_string(run_status) if run_status else None
        state = {"status": status, "end_time": end_time, "run_name": run_name}
        self._outbox.append(run_id, "state", state)
        return self._local_run(
            run_id, RunView(status=status or "", end_time=end_time, run_name=run_name or "")
        ).info

    def flush_async_logging(self) -> None:
        self._outbox.flush()

    # Runs and experiments: the server's where it answers at once, else made here and there later.

    def create_run(
        self, experiment_id: str, user_id: str, start_time: int, tags: Sequence[RunTag], run_name: str | None
    ) -> Run:
        key = uuid.uuid4().hex
        pairs = [{"key": tag.key, "value": tag.value} for tag in tags]
        named = next((tag.value for tag in tags if tag.key == "mlflow.runName"), None)
        definition = {
            "experiment_id": str(experiment_id),
            **self._experiment_definition(str(experiment_id)),
            "user_id": user_id,
            "start_time": start_time,
            "run_name": run_name or named or _generate_random_name(),
            "tags": pairs,
            "owner": str(this_process()),
        }
        journal = self._outbox.journal(key, definition)
        run_id = self._create_on_server(journal.folder, definition) or key
        journal.append("state", {"status": "RUNNING"})
        return self._local_run(run_id, journal.folder.view())

    def _create_on_server(self, folder: RunFolder, definition: Mapping[str, Any]) -> str | None:
        """The server's id of a new run; None where it can't be made now, and is made when the outbox is delivered."""
        if not folder.definition():
            return None  # the disk has no room for it: perhaps it never has, and then nobody would ever end the server's run
        if any(tag["key"] == _PARENT_TAG and self._waits(tag["value"]) for tag in definition["tags"]):
            return None
        try:
            experiment_id = definition["experiment_id"]
            if experiment_id.startswith(LOCAL_EXPERIMENT):
                experiment_id = self._outbox.ask(lambda api: experiment_id_of(api, definition))
            target = self._outbox.ask(lambda api: create_run(api, folder.key, experiment_id, definition))
        except (WaitingError, ExistsError):
            return None
        except MissingError as error:
            raise MlflowException(str(error), databricks_pb2.RESOURCE_DOES_NOT_EXIST) from None
        except RefusedError as error:
            raise MlflowException(str(error), databricks_pb2.INVALID_PARAMETER_VALUE) from None
        try:
            self._outbox.folder.remember_id(target.run_id, folder.key)
            state = folder.delivered(self._outbox.uri)
            state.server_run_id = target.run_id
            folder.save_delivered(state)
        except OSError:
            return None  # without these two files only the key leads to the run
        return target.run_id

    def _waits(self, run_id: str) -> bool:
        return self._outbox.server_run_id(run_id) is None

    def get_run(self, run_id: str) -> Run:
        """The server's answer, with what it doesn't have yet; all that is known here, where it is away."""
        folder = self._outbox.folder.run(run_id)
        there = self._outbox.knows(run_id)
        # The address of a run's page, which MLflow prints at its end, names its experiment.
        if there and (asked_by := _logging_caller()) and (asked_by != "_log_url" or folder.made_here()):
            return self._local_run(run_id, RunView(outputs=self._outputs[run_id]))
        state = folder.delivered(self._outbox.uri)
        server_id = self._outbox.server_run_id(run_id)
        found: Run | None = None
        if server_id:
            try:
                answer = self._outbox.ask(lambda api: api.get("runs/get", {"run_id": server_id}))
                found = Run.from_proto(parse(answer, GetRun.Response()).run)
            except MissingError as error:
                if not there:
                    raise MlflowException(str(error), databricks_pb2.RESOURCE_DOES_NOT_EXIST) from None
            except WaitingError as error:
                if not there:
                    raise self._away(f"for the run {run_id}", error) from None
        if found is None:
            return self._local_run(run_id, folder.view())
        return self._merged(run_id, found, folder.view(state.offsets) if there else None)

    def create_experiment(self, name: str, artifact_location: str | None = None, tags: Any = None) -> str:
        pairs = [{"key": tag.key, "value": tag.value} for tag in tags or []]
        body = {"name": name, "tags": pairs}
        if artifact_location:
            body["artifact_location"] = artifact_location
        try:
            identity = str(
                self._outbox.ask(lambda api: api.post("experiments/create", body))["experiment_id"]
            )
        except ExistsError as error:
            raise MlflowException(str(error), databricks_pb2.RESOURCE_ALREADY_EXISTS) from None
        except RefusedError as error:
            raise MlflowException(str(error), databricks_pb2.INVALID_PARAMETER_VALUE) from None
        except (WaitingError, MissingError):
            identity = local_experiment_id(name)
        definition = {
            "experiment_name": name,
            "artifact_location": artifact_location,
            "experiment_tags": pairs,
        }
        self._remember(identity, definition)
        return identity

    def get_experiment(self, experiment_id: str) -> Experiment:
        identity = str(experiment_id)
        known = self._outbox.folder.experiment(identity)
        if known and identity.startswith(LOCAL_EXPERIMENT):
            return experiment_of(identity, known)
        try:
            answer = self._outbox.ask(lambda api: api.get("experiments/get", {"experiment_id": identity}))
        except MissingError as error:
            raise MlflowException(str(error), databricks_pb2.RESOURCE_DOES_NOT_EXIST) from None
        except WaitingError as error:
            if known:
                return experiment_of(identity, known)
            raise self._away(f"for the experiment {identity}", error) from None
        return self._remembered(answer)

    def get_experiment_by_name(self, experiment_name: str) -> Experiment | None:
        local = self._outbox.folder.experiment(local_experiment_id(experiment_name))
        try:
            answer = self._outbox.ask(
                lambda api: api.get("experiments/get-by-name", {"experiment_name": experiment_name})
            )
        except MissingError:
            # Made offline, and not delivered yet.
            return experiment_of(local_experiment_id(experiment_name), local) if local else None
        except WaitingError:
            return (
                experiment_of(local_experiment_id(experiment_name), local)
                if local
                else self._known(experiment_name)
            )
        return self._remembered(answer)

    def _known(self, name: str) -> Experiment | None:
        """An experiment that the server has told of before."""
        for identity, content in self._outbox.folder.experiments():
            if content.get("experiment_name") == name:
                return experiment_of(identity, content)
        return None

    def _remembered(self, answer: Mapping[str, Any]) -> Experiment:
        found = Experiment.from_proto(parse(answer, GetExperiment.Response()).experiment)
        self._remember(found.experiment_id, {"experiment_name": found.name})
        return found

    def _remember(self, identity: str, definition: Mapping[str, Any]) -> None:
        try:
            self._outbox.folder.remember_experiment(identity, definition)
        except OSError:
            # A full disk: the server can tell it again, but not what was made without it.
            if identity.startswith(LOCAL_EXPERIMENT):
                raise

    def _experiment_definition(self, experiment_id: str) -> dict[str, Any]:
        known = self._outbox.folder.experiment(experiment_id)
        if known is None:
            try:
                self.get_experiment(experiment_id)
            except MlflowException:
                # 0 is the one that every server has.
                return {"experiment_name": "Default"} if experiment_id == "0" else {}
            known = self._outbox.folder.experiment(experiment_id)
        return known or {}

    # Reading

    def get_metric_history(
        self, run_id: str, metric_key: str, max_results: int | None = None, page_token: str | None = None
    ) -> PagedList[Metric]:
        """The server's points, and those that it doesn't have yet on the last page."""
        folder = self._outbox.folder.run(run_id)
        offsets = folder.delivered(self._outbox.uri).offsets
        points: PagedList[Metric] = PagedList([], None)
        if not self._waits(run_id):
            try:
                points = super().get_metric_history(run_id, metric_key, max_results, page_token)
            except MlflowException as error:
                if not (is_away(error) and folder.made_here()):
                    raise
                offsets = {}
        if points.token or not folder.path.exists():
            return points
        have = {identity_of(point) for point in points}
        for _, record in folder.records(offsets):
            if record.kind == "metrics":
                more = [metric_entity(entry, run_id) for entry in record.content if entry[0] == metric_key]
                points += [point for point in more if identity_of(point) not in have]
                have |= {identity_of(point) for point in more}
        return points

    def _search_runs(self, *arguments: Any, **named: Any) -> tuple[list[Run], str | None]:
        self._outbox.wait_until_delivered()
        runs, token = super()._search_runs(*arguments, **named)
        return [self._merged(run.info.run_id, run) for run in runs], token

    def _call_endpoint(self, api: Any, json_body: Any = None, *arguments: Any, **named: Any) -> Any:
        """Every call that goes to the server names runs and experiments as the server does."""
        return ask_directly(self._outbox, super()._call_endpoint, api, json_body, *arguments, **named)

    def log_spans(self, location: str, spans: Any, tracking_uri: str | None = None) -> Any:
        check_server(self._outbox)
        return super().log_spans(location, spans, tracking_uri)

    def _away(self, what: str, why: object) -> MlflowException:
        return away(self._outbox, what, why)

    def _merged(self, run_id: str, found: Run, news: RunView | None = None) -> Run:
        return merged(run_id, found, news or RunView(), self._outbox.artifact_uri(run_id))

    def _local_run(self, run_id: str, view: RunView) -> Run:
        """The run as far as this machine knows it."""
        return self._merged(run_id, defined_run(run_id, self._outbox.folder.run(run_id).definition()), view)


def _logging_caller() -> str:
    """The function of MLflow's that asks for a run only to log into it; '' where a reader asks.

    It wants to know where artifacts go or, for a metric with a run_id, which models the run has: neither may wait for the server.
    """
    frame: FrameType | None = sys._getframe(1)
    for _ in range(_LEVELS):
        frame = frame.f_back if frame else None
        if frame and (frame.f_globals.get("__name__"), frame.f_code.co_name) in _LOGGING:
            return frame.f_code.co_name
    return ""

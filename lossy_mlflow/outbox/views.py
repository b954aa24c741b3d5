"""MLflow's entities made of what the server answers and of what this machine knows. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from mlflow.entities import (
    DatasetInput,
    Experiment,
    LoggedModelInput,
    LoggedModelOutput,
    Metric,
    Param,
    Run,
    RunData,
    RunInfo,
    RunInputs,
    RunOutputs,
    RunTag,
)
from mlflow.protos.service_pb2 import LogInputs, LogOutputs
from mlflow.utils.proto_json_utils import parse_dict

from lossy_mlflow.outbox.records import RunView

# An experiment that was made here has an id with this beginning.
LOCAL_EXPERIMENT = "outbox-"


def merged(run_id: str, found: Run, news: RunView, artifact_uri: str) -> Run:
    """The server's run under the program's id, with the program's newest values, and artifacts by way of the outbox."""
    data = found.data
    tags = {key: value for key, value in data.tags.items() if key not in news.deleted_tags} | news.tags
    metrics = {metric.key: metric for metric in data._metric_objs}
    for key, (step, timestamp, value) in news.metrics.items():
        old = metrics.get(key)
        if old is None or (step, timestamp) >= (old.step, old.timestamp):
            metrics[key] = Metric(key, value, timestamp, step)
    info = found.info
    return Run(
        RunInfo(
            run_id=run_id,
            experiment_id=info.experiment_id,
            user_id=info.user_id,
            status=news.status or info.status,
            start_time=info.start_time,
            end_time=news.end_time if news.status else info.end_time,
            lifecycle_stage=info.lifecycle_stage,
            artifact_uri=artifact_uri,
            run_name=news.run_name or info.run_name,
        ),
        RunData(
            list(metrics.values()),
            [Param(key, value) for key, value in (news.params | data.params).items()],
            [RunTag(key, value) for key, value in tags.items()],
        ),
        _inputs(found, news),
        _outputs(found, news),
    )


def defined_run(run_id: str, definition: Mapping[str, Any]) -> Run:
    """What a run was created with."""
    tags = {tag["key"]: tag["value"] for tag in definition.get("tags", [])}
    tags["mlflow.runName"] = definition.get("run_name", "")
    info = RunInfo(
        run_id=run_id,
        experiment_id=definition.get("experiment_id", ""),
        user_id=definition.get("user_id", ""),
        status="RUNNING",
        start_time=int(definition.get("start_time", 0)),
        end_time=None,
        lifecycle_stage="active",
        run_name=definition.get("run_name", ""),
    )
    return Run(info, RunData([], [], [RunTag(key, value) for key, value in tags.items()]))


def _inputs(found: Run, news: RunView) -> RunInputs:
    known = found.inputs or RunInputs([])
    more = [parse(content, LogInputs()) for content in news.inputs]
    return RunInputs(
        known.dataset_inputs
        + [DatasetInput.from_proto(item) for message in more for item in message.datasets],
        known.model_inputs
        + [LoggedModelInput.from_proto(item) for message in more for item in message.models],
    )


def _outputs(found: Run, news: RunView) -> RunOutputs:
    known = found.outputs.model_outputs if found.outputs else []
    more = [parse(content, LogOutputs()) for content in news.outputs]
    return RunOutputs(
        known + [LoggedModelOutput.from_proto(item) for message in more for item in message.models]
    )


def parse(answer: Mapping[str, Any], message: Any) -> Any:
    """`message` filled with what the server's JSON says."""
    parse_dict(answer, message)
    return message


def metric_entity(entry: Sequence[Any], run_id: str) -> Metric:
    """A point of a metric as the journal has it."""
    key, value, timestamp, step, *model = entry
    names = ("model_id", "dataset_name", "dataset_digest")
    return Metric(key, value, timestamp, step, run_id=run_id, **dict(zip(names, model, strict=False)))


def identity_of(point: Metric) -> tuple[int, int, str]:
    return point.step, point.timestamp, repr(point.value)


def local_experiment_id(name: str) -> str:
    return LOCAL_EXPERIMENT + hashlib.sha256(name.encode()).hexdigest()[:24]


def experiment_of(identity: str, content: Mapping[str, Any]) -> Experiment:
    return Experiment(identity, content["experiment_name"], content.get("artifact_location") or "", "active")

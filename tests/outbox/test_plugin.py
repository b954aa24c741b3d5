"""What of MLflow's own API, and of what others build on it, works through the outbox; and what a user sees of the rest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import end_senders
from tests.outbox.conftest import OutboxPlace

CAMPAIGN = pytest.mark.campaign
ENVIRONMENT = {
    # MLflow finds out a model's requirements in a process that takes half a minute; it has a list for where it can't.
    "MLFLOW_REQUIREMENTS_INFERENCE_TIMEOUT": "1",
    "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL": "0.2",
    "MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING": "1",
    # As users have it: then MLflow prints the address of a run's page at its end.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "false",
}

API = """
import sys, mlflow, numpy, pandas
from matplotlib.figure import Figure
from mlflow.entities import Metric, Param, RunTag
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
name, other = sys.argv[1:]
mlflow.set_experiment("api")
picture = numpy.zeros((8, 8, 3), dtype=numpy.uint8)
client = mlflow.MlflowClient()
with mlflow.start_run(run_name=name, log_system_metrics=True) as run:
    run_id = run.info.run_id
    mlflow.log_params({f"p{i}": i for i in range(250)})
    mlflow.log_metrics({f"m{i}": i for i in range(1200)}, step=3)
    mlflow.log_metric("asynchronous", 1.0, synchronous=False)
    batch = [Metric("batch", 1.0, 1, 1)], [Param("batch", "1")], [RunTag("batch", "1")]
    client.log_batch(run_id, *batch, synchronous=False).wait()
    mlflow.config.enable_async_logging(True)
    mlflow.log_metric("enabled", 1.0)
    mlflow.config.enable_async_logging(False)
    mlflow.flush_async_logging()
    mlflow.log_image(picture, "image.png")
    mlflow.log_image(picture, key="steps/a", step=5)
    figure = Figure()
    figure.add_subplot().plot([1, 2])
    mlflow.log_figure(figure, "figures/f.png")
    for row in range(3):
        mlflow.log_table({"a": [row]}, "tables/t.json")
    mlflow.log_dict({"a": 1}, "d.json")
    mlflow.log_input(mlflow.data.from_pandas(pandas.DataFrame({"x": [1.0]}), name="tiny"), context="training")
    assert [item.dataset.name for item in client.get_run(run_id).inputs.dataset_inputs] == ["tiny"]
    with mlflow.start_run(nested=True, run_name=f"{name}-child") as child:
        mlflow.log_metric("inner", 1)
    assert mlflow.get_parent_run(child.info.run_id).info.run_id == run_id
    assert mlflow.artifacts.load_dict(f"runs:/{run_id}/d.json") == {"a": 1}
    assert list(mlflow.load_table("tables/t.json", run_ids=[run_id])["a"]) == [0, 1, 2]
    rows = mlflow.search_runs(experiment_names=["api"], filter_string=f"attributes.run_name LIKE '{name}%'")
    assert len(rows) == 2 and rows["metrics.m7"].max() == 7, rows

    assert client.get_run(other).data.params == {"by": "another"}
    for uri in (f"runs:/{other}/o/o.txt", client.get_run(other).info.artifact_uri + "/o/o.txt"):
        assert open(mlflow.artifacts.download_artifacts(uri)).read() == "hello"

    mlflow.log_text("a file of a model", "model/MLmodel")
    client.create_registered_model(name)
    version = client.create_model_version(name, f"{run.info.artifact_uri}/model", run_id=run_id)
    assert version.source.startswith("mlflow-artifacts:"), version.source
    try:
        get_artifact_repository(run.info.artifact_uri).delete_artifacts("d.json")
    except mlflow.MlflowException as error:
        assert "The outbox deletes no artifacts (d.json of" in str(error), error
    else:
        raise AssertionError("it was taken for deleted")
"""


def test_the_api_of_mlflow_works_through_the_outbox(place: OutboxPlace, name: str) -> None:
    other = _another_program(place)
    done = place.run(API, name, other, **ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    place.wait_until_delivered()
    (run,) = place.on_server(name)
    assert run.info.status == "FINISHED"
    assert {f"p{i}": str(i) for i in range(250)}.items() <= run.data.params.items()
    assert {f"m{i}" for i in range(1200)} | {"asynchronous", "batch", "enabled"} <= run.data.metrics.keys()
    assert "system/cpu_utilization_percentage" in run.data.metrics
    assert [item.dataset.name for item in run.inputs.dataset_inputs] == ["tiny"]
    paths = {file.path for file in place.client.list_artifacts(run.info.run_id)}
    assert paths == {"image.png", "images", "figures", "tables", "d.json", "model"}
    assert len(place.client.list_artifacts(run.info.run_id, "images")) == 2
    (child,) = place.on_server(f"{name}-child")
    assert child.data.tags["mlflow.parentRunId"] == run.info.run_id


def _another_program(place: OutboxPlace) -> str:
    run = place.client.create_run("0")
    place.client.log_param(run.info.run_id, "by", "another")
    place.client.log_text(run.info.run_id, "hello", "o/o.txt")
    place.client.set_terminated(run.info.run_id)
    return str(run.info.run_id)


AWAY = """
import sys, time, mlflow, numpy
from sklearn.linear_model import LogisticRegression
name, other = sys.argv[1:]
mlflow.autolog(silent=True)
x = numpy.random.RandomState(0).rand(40, 3)
with mlflow.start_run(run_name=name) as run:
    LogisticRegression().fit(x, x[:, 0] > 0.5)
    for row in range(2):
        mlflow.log_table({"a": [row]}, "tables/t.json")
assert len(mlflow.sklearn.load_model(f"runs:/{run.info.run_id}/model").predict(x)) == 40

client = mlflow.MlflowClient()
client.set_tag(other, "by", "way of the outbox")
for read in (
    lambda: mlflow.search_runs(search_all_experiments=True),
    lambda: client.get_metric_history(other, "loss"),
    lambda: client.list_artifacts(other),
    lambda: mlflow.artifacts.download_artifacts(f"runs:/{other}/o/o.txt"),
    lambda: client.create_registered_model(name),
    lambda: mlflow.register_model(f"runs:/{run.info.run_id}/model", name),
    lambda: mlflow.artifacts.download_artifacts("mlflow-artifacts:/0/models/m-0/artifacts"),
):
    began = time.monotonic()
    try:
        read()
    except mlflow.MlflowException as error:
        print(error)
    assert time.monotonic() - began < 10
"""


def test_autologging_loses_nothing_while_the_server_is_away_and_readers_are_told(
    place: OutboxPlace, name: str
) -> None:
    other = _another_program(place)
    place.proxy.mode = "refuse"
    done = place.run(AWAY, name, other, **ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert "The model is kept as the run's artifact 'model'." in done.stderr
    told = [line for line in done.stdout.splitlines() if "can't be asked" in line]
    assert len(told) == 7, done.stdout
    place.proxy.mode = "pass"
    place.wait_until_delivered()
    (run,) = place.on_server(name)
    assert run.info.status == "FINISHED"
    assert "training_accuracy_score" in run.data.metrics
    assert run.data.params["solver"] == "lbfgs"
    table = place.client.download_artifacts(run.info.run_id, "tables/t.json")
    assert json.loads(Path(table).read_text())["data"] == [[0], [1]]
    paths = {file.path for file in place.client.list_artifacts(run.info.run_id)}
    assert {"training_confusion_matrix.png", "model"} <= paths
    assert "MLmodel" in {
        Path(file.path).name for file in place.client.list_artifacts(run.info.run_id, "model")
    }
    assert [entry.refused for entry in place.runs()] == [0] * len(place.runs())


STALLED = """
import sys, time, threading, mlflow
run = mlflow.start_run(run_name=sys.argv[1])
run_id = run.info.run_id
print("running", flush=True)
sys.stdin.readline()

def log():
    # A run is active in its own thread only: elsewhere its id is named.
    mlflow.log_metric("loss", 1.0, step=1, run_id=run_id)
    mlflow.log_metrics({"loss": 2.0}, step=2, run_id=run_id)
    mlflow.log_text("hello", "hello.txt", run_id=run_id)

began = time.monotonic()
thread = threading.Thread(target=log)
thread.start()
thread.join()
mlflow.log_text("hello", "hello2.txt")
mlflow.end_run()
print(time.monotonic() - began)
"""


@CAMPAIGN
def test_no_logging_call_waits_for_a_server_that_answers_nothing(place: OutboxPlace, name: str) -> None:
    process = place.start(STALLED, name, **ENVIRONMENT)
    assert process.stdout
    assert process.stdout.readline() == "running\n"
    place.proxy.mode = "stall"
    out, err = process.communicate("\n", timeout=90)
    assert process.returncode == 0, err
    # A question would take the 5 s that the outbox waits for an answer.
    assert float(out.splitlines()[-1]) < 2.5
    assert f"/runs/{place.runs()[0].server_run_id}" in out
    place.proxy.mode = "pass"
    end_senders(place.root)  # which would wait a minute for the answer
    assert place.lossy("outbox", "send", str(place.root), "--to", place.proxy.uri).returncode == 0
    (run,) = place.on_server(name)
    assert place.points(run.info.run_id, "loss") == [(1, 1.0), (2, 2.0)]
    assert len(place.client.list_artifacts(run.info.run_id)) == 2


LIGHTNING = """
import sys, torch
import pytorch_lightning
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import MLFlowLogger

class Line(pytorch_lightning.LightningModule):
    def __init__(self, width=3):
        super().__init__()
        self.save_hyperparameters()
        self.line = torch.nn.Linear(width, 1)

    def training_step(self, batch, _):
        loss = self.line(batch).square().mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

    def on_train_epoch_end(self):
        if self.current_epoch == 0:
            print("first", flush=True)
            sys.stdin.readline()

logger = MLFlowLogger("lightning", sys.argv[1], tracking_uri=sys.argv[2], log_model="all")
trainer = pytorch_lightning.Trainer(
    max_epochs=2, logger=logger, log_every_n_steps=1, accelerator="cpu", enable_progress_bar=False,
    callbacks=[ModelCheckpoint("checkpoints", save_top_k=-1)],
)
trainer.fit(Line(), torch.utils.data.DataLoader(torch.rand(40, 3), batch_size=4))
"""


@CAMPAIGN
def test_lightnings_logger_trains_on_while_its_server_goes_away(place: OutboxPlace, name: str) -> None:
    """It makes the run, its batches and its end with a client of its own, and uploads each checkpoint."""
    process = place.start(LIGHTNING, name, place.environment["MLFLOW_TRACKING_URI"], **ENVIRONMENT)
    assert process.stdout
    assert "first\n" in iter(process.stdout.readline, "")
    place.proxy.mode = "refuse"
    _, err = process.communicate("\n", timeout=120)
    assert process.returncode == 0, err
    place.proxy.mode = "pass"
    place.wait_until_delivered()
    (run,) = place.on_server(name)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"width": "3"}
    assert [step for step, _ in place.points(run.info.run_id, "loss")] == list(range(20))
    epochs = [file.path for file in place.client.list_artifacts(run.info.run_id)]
    assert epochs == ["epoch=0-step=10", "epoch=1-step=20"]
    files = [file.path for file in place.client.list_artifacts(run.info.run_id, epochs[1])]
    assert f"{epochs[1]}/{epochs[1]}.ckpt" in files


FILES = r"""
import json, os, re, shutil, sys, threading, time, mlflow
from pathlib import Path

def peak():
    # Not getrusage's, which begins with what the process was before it became this program: the tests' own, torch and all.
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1e3

small = Path("small")
for number in range(1000):
    folder = small / str(number % 10)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{number}.txt").write_text(str(number) * 100)
with open("large.bin", "wb") as file:
    file.truncate(int(sys.argv[2]))

times, done = [], threading.Event()

def train(run_id):
    step = 0
    while not done.is_set():
        began = time.perf_counter()
        mlflow.log_metric("loss", step, step=step, run_id=run_id)
        times.append(time.perf_counter() - began)
        step += 1
        time.sleep(0.005)

with mlflow.start_run(run_name=sys.argv[1]) as run:
    mlflow.log_text("warm", "warm.txt")
    before = peak()
    thread = threading.Thread(target=train, args=(run.info.run_id,))
    thread.start()
    began = time.perf_counter()
    shutil.copytree(small, "copy")
    copied = time.perf_counter()
    mlflow.log_artifacts(small, "small")
    logged = time.perf_counter()
    mlflow.log_artifact("large.bin")
    end = time.perf_counter()
    done.set()
    thread.join()
print(json.dumps({
    "copy": copied - began, "small": logged - copied, "large": end - logged, "peak": peak(), "grown": peak() - before,
    "metric": sorted(times)[len(times) // 2], "steps": len(times),
}))
"""


@pytest.mark.parametrize("size", [64_000_000, pytest.param(2_000_000_000, marks=CAMPAIGN)])
def test_many_files_and_a_large_one_cost_little_memory_and_no_steps(
    place: OutboxPlace, name: str, size: int
) -> None:
    process = place.start(FILES, name, str(size), MLFLOW_TRACKING_URI=f"outbox+{place.server}")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    facts = json.loads(out.splitlines()[-1])
    print(facts)
    # MB. A program that has imported MLflow and logged one file takes 175 of them already.
    assert facts["peak"] < 200
    assert facts["grown"] < 20
    assert facts["metric"] < 0.05
    # What a copy of them costs, or somewhat more: a disk that others use has a bad second at times.
    assert facts["small"] < 5 * facts["copy"] + 2
    senders = [sender.memory_info().rss / 1e6 for sender in place.senders()]
    place.wait_until_delivered(240)
    senders += [sender.memory_info().rss / 1e6 for sender in place.senders()]
    assert max(senders) < 60
    (run,) = place.on_server(name)
    assert len(place.points(run.info.run_id, "loss")) == facts["steps"]
    sizes = {file.path: file.file_size for file in place.client.list_artifacts(run.info.run_id)}
    assert sizes["large.bin"] == size
    folder = Path(place.client.download_artifacts(run.info.run_id, "small/7"))
    assert {file.name: file.read_text() for file in folder.iterdir()} == {
        f"{number}.txt": str(number) * 100 for number in range(7, 1000, 10)
    }


ONE_OF_TWENTY = """
import sys, mlflow
with mlflow.start_run(run_name=sys.argv[1]):
    mlflow.log_params({f"p{i}": i for i in range(10)})
    for step in range(200):
        mlflow.log_metric("loss", step / 2, step=step)
    for i in range(3):
        mlflow.log_text("hello", f"{i}.txt")
"""


@CAMPAIGN
def test_twenty_programs_log_at_once_to_one_sqlite_server(place: OutboxPlace, name: str) -> None:
    processes = [place.start(ONE_OF_TWENTY, f"{name}-{number}") for number in range(20)]
    for process in processes:
        _, err = process.communicate(timeout=500)
        assert process.returncode == 0, err
    place.wait_until_delivered(240)
    assert [run.refused for run in place.runs()] == [0] * 20
    for number in range(20):
        (run,) = place.on_server(f"{name}-{number}")
        assert run.info.status == "FINISHED"
        assert run.data.params == {f"p{i}": str(i) for i in range(10)}
        assert place.points(run.info.run_id, "loss") == [(step, step / 2) for step in range(200)]
        assert len(place.client.list_artifacts(run.info.run_id)) == 3

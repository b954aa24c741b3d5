"""What members do goes on behind the fences: on PostgreSQL and S3, with a password and nothing else."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import ConsoleMessage, Page, Response, expect

from tests.conftest import Workplace, end_senders, end_with_children, free_port, senders, wait_for
from tests.e2e.test_ui import REMEMBERED
from tests.service.conftest import Team
from tests.service.people import own_stores, settings_of
from tests.services.browser import needs_browser, start_chromium

TRAIN = ("train", "vae2_digits", *(f"--set={name}" for name in (
    "n_iwae_samples=3", "checkpointing_freq=1", "start_checkpointing=1", "model_train.epochs=2",
)))  # fmt: skip

# A program of Alice's own, with MLflow's own client.
PLAIN = """
import mlflow, numpy, pathlib
mlflow.set_experiment("alices own")
with mlflow.start_run() as run:
    mlflow.log_params({"a": 1})
    for step in range(3):
        mlflow.log_metric("loss", step, step=step)
    mlflow.log_text("hello", "folder/note.txt")
    mlflow.set_tag("t", "v")
client = mlflow.MlflowClient()
assert [f.path for f in client.list_artifacts(run.info.run_id, "folder")] == ["folder/note.txt"]
assert pathlib.Path(client.download_artifacts(run.info.run_id, "folder/note.txt")).read_text() == "hello"
assert len(client.get_metric_history(run.info.run_id, "loss")) == 3
assert mlflow.pyfunc.load_model("models:/vae2_digits@champion").predict(numpy.zeros((3, 2), "float32")).shape == (3, 64)
client.copy_model_version("models:/vae2_digits@champion", "alices copy")
print("well", run.info.experiment_id, run.info.run_id)
"""
LOAD = """
import mlflow, numpy
print(mlflow.pyfunc.load_model("models:/vae2_digits@champion").predict(numpy.zeros((1, 2), "float32")).shape)
"""
EVALUATE = """
from lossy_mlflow import Hparam, register_hparams
from lossy_mlflow.hparams.catalogue.parts import default_rd

@register_hparams
def bobs():
    rd = default_rd()
    rd.n_betas, rd.max_beta, rd.anneal_steps, rd.batch_size, rd.n_chains, rd.gap_beta_indexes = 2, 9.0, 20, 4, 4, []
    return Hparam(
        group_list=["bobs"], load_checkpoint_name="vae2_digits", chkt_step=-2, step_sizes_target=None, rd=rd
    )
"""
INPUTS = """
import mlflow
client = mlflow.MlflowClient()
(run,) = client.search_runs([client.get_experiment_by_name("bobs").experiment_id])
run = client.get_run(run.info.run_id)
print(run.info.status, [item.dataset.name for item in run.inputs.dataset_inputs], run.inputs.model_inputs)
"""


# Chromium's own notice that a page's second layout waits for the next frame, as on a busy machine. Nothing is missing then.
LATE_LAYOUT = "ResizeObserver loop completed with undelivered notifications"
ALICE, BOB = ("alice", "alice-password-9s1"), ("bob", "bob-password-2d7")
API = "/api/2.0/mlflow"
# A team's day in test_end_to_end.py shows most of it.
CAMPAIGN = pytest.mark.campaign


@pytest.fixture(scope="session")
def server(team_server: Team) -> Team:
    for name, password in (ALICE, BOB):
        made = team_server.ask("POST", f"{API}/users/create", json={"username": name, "password": password})
        assert made.status_code == 200, made.text
    return team_server


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workplace]:
    folder = tmp_path_factory.mktemp("work")
    workplace = Workplace(folder, folder / "home")
    yield workplace
    end_senders(folder / "home" / "state" / "lossy_mlflow" / "outbox")


@pytest.fixture(scope="session")
def trained(server: Team, workplace: Workplace) -> tuple[str, str]:
    """The experiment's and the run's id of what Alice has trained, promoted and used."""
    alice = server.member(*ALICE)
    for words in (
        TRAIN,
        ("promote", "vae2_digits@best", "--because=a trial"),
        ("download", "vae2_digits@champion", "-o", "d"),
    ):
        done = workplace.lossy(*words, env=alice)
        assert done.returncode == 0, done.stderr
    assert (workplace.folder / "d" / "MLmodel").exists()
    outbox = {**alice, "MLFLOW_TRACKING_URI": f"outbox+{server.uri}"}
    plain = workplace.run(sys.executable, "-c", PLAIN, env=alice)
    assert plain.returncode == 0, plain.stderr
    logged = workplace.run(sys.executable, "-c", PLAIN.partition("client =")[0], env=outbox)
    assert logged.returncode == 0, logged.stderr
    waiting = workplace.folder / "home" / "state" / "lossy_mlflow" / "outbox"
    wait_for(lambda: not senders(waiting), 60, "all is delivered")
    asked = {"experiment_ids": [plain.stdout.split()[-2]]}
    found = server.ask("POST", f"{API}/runs/search", ALICE, json=asked).json()["runs"]
    assert [run["data"]["metrics"][0]["value"] for run in found] == [2, 2]
    version = server.ask("GET", f"{API}/model-versions/get?name=vae2_digits&version=1", ALICE).json()
    run_id = version["model_version"]["run_id"]
    run = server.ask("GET", f"{API}/runs/get?run_id={run_id}", ALICE).json()["run"]
    return run["info"]["experiment_id"], run_id


@CAMPAIGN
def test_a_member_trains_promotes_and_loads_and_another_needs_a_right(
    server: Team, trained: tuple[str, str], workplace: Workplace
) -> None:
    bob = server.member(*BOB)
    refused = workplace.lossy("download", "vae2_digits@champion", "-o", "bobs", env=bob)
    assert refused.returncode != 0
    assert "Traceback" not in refused.stderr
    # MLflow's proxy of artifacts goes by the experiment in which the model was logged.
    for what in (("--model", "vae2_digits"), ("--experiment", "vaes/digits")):
        granted = workplace.lossy("users", "grant", "bob", *what, "READ", env=server.member())
        assert granted.returncode == 0, granted.stderr
    loaded = workplace.run(sys.executable, "-c", LOAD, env=bob)
    assert loaded.stdout.strip() == "(1, 64)", loaded.stderr
    # And evaluates it; to name it as an input MLflow wants the right to edit it, and nothing may wait for that.
    (workplace.folder / "bobs.py").write_text(EVALUATE)
    done = workplace.lossy("evaluate", "bobs", "--user-code", "bobs.py", env=bob)
    assert "evaluated: vae2_digits/" in done.stdout, done.stderr
    assert "waits" not in done.stdout
    assert (
        workplace.run(sys.executable, "-c", INPUTS, env=bob).stdout.strip() == "FINISHED ['digits-test'] []"
    )


@CAMPAIGN
def test_files_come_through_the_server_alone(server: Team, trained: tuple[str, str]) -> None:
    """A client is never sent to the bucket: it may not reach it, and MLflow's own gives up where it can't."""
    info = server.ask("GET", "/api/3.0/mlflow/server-info", None).json()
    assert info["multipart_uploads_enabled"] is info["multipart_downloads_enabled"] is False
    said = server.served.log.read_text()
    assert "/presigned/" not in said
    assert "/mpu/" not in said


@CAMPAIGN
@needs_browser
def test_the_pages_of_runs_and_models_show_no_error(server: Team, trained: tuple[str, str]) -> None:
    experiment, run = trained
    pages = {
        "/": "Experiments",
        f"/#/experiments/{experiment}/runs": "vae2_digits",
        f"/#/experiments/{experiment}/runs/{run}": "val_loss",
        f"/#/experiments/{experiment}/runs/{run}/artifacts": "hparams.json",
        "/#/models": "vae2_digits",
        "/#/models/vae2_digits": "champion",
        "/#/models/vae2_digits/versions/1": "vae2_digits",
    }
    wrong: list[str] = []

    def heard(message: ConsoleMessage) -> None:
        if message.type == "error" and LATE_LAYOUT not in message.text:
            wrong.append(f"{message.text} at {message.location}")

    def answered(response: Response) -> None:
        if response.status >= 400:
            wrong.append(f"{response.status} {response.url}")

    with start_chromium() as chromium:
        alice: Any = {"username": ALICE[0], "password": ALICE[1]}
        context = chromium.new_context(base_url=server.uri, http_credentials=alice, ignore_https_errors=True)
        context.add_init_script(REMEMBERED)
        for address, shown in pages.items():
            page: Page = context.new_page()
            page.on("console", heard)
            page.on("response", answered)
            page.goto(address, timeout=60_000)
            expect(page.get_by_text(shown).first).to_be_visible(timeout=60_000)
            # What the page asks for last.
            page.wait_for_timeout(1000)
            page.close()
    assert wrong == []


@pytest.mark.campaign
def test_a_server_that_can_t_make_its_admin_says_so_once_and_ends(
    tmp_path: Path, migrated_database: Path
) -> None:
    environment, arguments = settings_of(
        tmp_path, own_stores(tmp_path, migrated_database), free_port(), workers=3
    )
    environment.pop("MLFLOW_AUTH_ADMIN_PASSWORD")
    log = tmp_path / "server.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *arguments],
            cwd=tmp_path,
            env=environment,
            stdout=output,
            stderr=output,
        )
    try:
        process.wait(120)
    finally:
        if process.poll() is None:
            end_with_children(process)
    said = log.read_text()
    assert len(re.findall("The server can't start: .*MLFLOW_AUTH_ADMIN_PASSWORD", said)) == 1, said
    assert "Traceback" not in said

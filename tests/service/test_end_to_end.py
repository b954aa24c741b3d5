"""A team's day on its server, over TLS and without storage keys: one trains and promotes, another downloads, a third may not."""

from __future__ import annotations

import base64
import hashlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.conftest import ROOT, Workplace, end_senders, mlflow_run
from tests.service.conftest import Team
from tests.services.browser import needs_browser, start_chromium
from tests.services.postgres import Postgres
from tests.services.seaweedfs import BUCKET, SeaweedFS

LABEL = "vae10_digits_of_ada"
EXPERIMENT = "vaes/of ada"
OVERRIDES = "model_train.epochs=3 start_checkpointing=1 checkpointing_freq=1 n_iwae_samples=3"

LOADED = """
import sys, mlflow, numpy as np
model = mlflow.pyfunc.load_model(f"models:/{sys.argv[1]}@champion")
print(model.predict(np.zeros((4, 10), np.float32)).shape)
"""
# What MLflow's own API does with an artifact of any size.
THERE_AND_BACK = """
import sys, time, mlflow
run_id, file = sys.argv[1:]
client, start = mlflow.MlflowClient(), time.monotonic()
client.log_artifact(run_id, file, "large")
up = time.monotonic()
print(client.download_artifacts(run_id, "large", "."))
print(f"up {up - start:.2f} s, down {time.monotonic() - up:.2f} s", file=sys.stderr)
"""


@dataclass(frozen=True)
class Trained:
    """What ada has trained by `mlflow run`; `run` as a plain MLflow client of hers knows it."""

    ada: Workplace
    run: Any
    versions: list[Any]


def member(team: Team, name: str, folder: Path) -> Workplace:
    """The workplace of a new member: a home of its own, nothing but the server's address, a name and a password."""
    folder.mkdir()
    place = Workplace(folder, folder / "home")
    password = f"password-of-{name}-in-the-tests"
    added = place.run(*place.command("users", "add", name), env=team.member(), typed=f"{password}\n")
    assert added.returncode == 0, added.stderr
    place.environment = {
        key: value for key, value in place.environment.items() if not key.startswith("AWS_")
    } | team.member(name, password)
    return place


@pytest.fixture(scope="session")
def trained(team_server: Team, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    folder = tmp_path_factory.mktemp("day")
    ada = member(team_server, "ada", folder / "ada")
    # A member may not log into MLflow's own experiment Default, and has every right in one that she makes.
    ada.environment["MLFLOW_EXPERIMENT_NAME"] = EXPERIMENT
    done = mlflow_run(ada, ROOT, hparam_set="vae10_digits", e_name="of_ada", overrides=OVERRIDES)
    assert done.returncode == 0, done.stderr
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ada.environment.items():
            if name.startswith("MLFLOW_TRACKING_"):
                patch.setenv(name, value)
        from mlflow import MlflowClient

        client = MlflowClient()
        experiment = client.get_experiment_by_name(EXPERIMENT)
        (run,) = client.search_runs([experiment.experiment_id])
        versions = list(client.search_model_versions(f"name = '{LABEL}'"))
    yield Trained(ada, run, versions)
    end_senders(folder / "ada" / "home" / "state" / "lossy_mlflow" / "outbox")


def test_what_is_trained_with_a_password_alone_lies_in_the_database_and_the_bucket(
    trained: Trained, team_server: Team, seaweedfs: SeaweedFS
) -> None:
    assert trained.run.info.status == "FINISHED"
    assert trained.run.data.metrics.keys() >= {"train_loss", "val_loss"}
    assert trained.run.info.artifact_uri.startswith("mlflow-artifacts:/")
    prefix = team_server.artifacts.removeprefix(f"s3://{BUCKET}/")
    listed = seaweedfs.client().list_objects_v2(Bucket=BUCKET, Prefix=f"{prefix}/")
    sizes = {found["Key"]: found["Size"] for found in listed["Contents"]}
    of_run = [key for key in sizes if f"/{trained.run.info.run_id}/artifacts/" in key]
    assert any(key.endswith("/samples.png") for key in of_run)
    assert trained.versions
    for version in trained.versions:
        model_id = version.source.removeprefix("models:/")
        (weights,) = [key for key in sizes if f"/{model_id}/" in key and key.endswith(".safetensors")]
        assert sizes[weights] > 100_000


def test_the_database_and_the_bucket_agree(
    trained: Trained, team_server: Team, seaweedfs: SeaweedFS, tmp_path: Path
) -> None:
    place = Workplace(tmp_path, tmp_path / "home")
    stores = {
        "MLFLOW_BACKEND_STORE_URI": team_server.database,
        "MLFLOW_ARTIFACTS_DESTINATION": team_server.artifacts,
    }
    found = place.json("check", "--deep", env=seaweedfs.environment | stores)
    assert found["n_known"] > 20
    assert [one for one in found["findings"] if LABEL in str(one)] == []


def test_no_secret_in_what_is_logged_or_stored(
    trained: Trained, team_server: Team, postgres: Postgres
) -> None:
    told = [" ".join(member.cmdline()) for member in team_server.served.family()]
    told.append(team_server.served.log.read_text())
    name = team_server.database.rsplit("/", 1)[1]
    tables = (
        "tags",
        "params",
        "experiment_tags",
        "model_version_tags",
        "logged_model_tags",
        "logged_model_params",
        "users",
    )
    told += [postgres.sql(f"select * from {table}", name) for table in tables]  # noqa: S608
    for secret in (*team_server.secrets, trained.ada.environment["MLFLOW_TRACKING_PASSWORD"]):
        for form in (secret, base64.b64encode(secret.encode()).decode().rstrip("=")):
            assert not [text for text in told if form in text]


@needs_browser
def test_its_pictures_are_seen_in_the_ui_by_her_who_signs_in(
    trained: Trained, team_server: Team, tmp_path: Path
) -> None:
    info, who = trained.run.info, trained.ada.environment
    with start_chromium() as chromium:
        context = chromium.new_context(
            base_url=team_server.uri,
            viewport={"width": 1400, "height": 900},
            # The certificate is signed by nobody.
            ignore_https_errors=True,
            http_credentials={
                "username": who["MLFLOW_TRACKING_USERNAME"],
                "password": who["MLFLOW_TRACKING_PASSWORD"],
            },
        )
        context.set_default_timeout(60_000)
        page = context.new_page()
        refused: list[str] = []
        page.on(
            "response",
            lambda reply: refused.append(f"{reply.status} {reply.url}") if reply.status >= 400 else None,
        )
        page.goto(f"/#/experiments/{info.experiment_id}/runs/{info.run_id}/model-metrics")
        try:
            _sees_samples(page)
        finally:
            page.screenshot(path=tmp_path / "pictures.png")
    # The first request has no password: the browser sends it once it is asked.
    assert [reply for reply in refused if not reply.startswith("401 ")] == []


def _sees_samples(page: Page) -> None:
    page.get_by_placeholder("Search metric charts").fill("samples")
    card = page.get_by_test_id("experiment-view-compare-runs-card").filter(
        has=page.get_by_text("samples", exact=True)
    )
    card.get_by_role("button").first.click()  # to the full screen
    picture = page.get_by_role("dialog", name="samples").locator("img[src*='samples%2Bstep%2B']").first
    expect(picture).not_to_have_js_property("naturalWidth", 0, timeout=30_000)
    picture.scroll_into_view_if_needed()
    expect(picture).to_be_in_viewport()


def test_what_she_promotes_another_member_downloads_and_a_third_does_not(
    trained: Trained, team_server: Team, tmp_path: Path
) -> None:
    ada, reference = trained.ada, f"{LABEL}@champion"
    promoted = ada.json("promote", f"{LABEL}@best", "--because", "its bound", "--require-evidence")
    ben, cleo = member(team_server, "ben", tmp_path / "ben"), member(team_server, "cleo", tmp_path / "cleo")
    grant = ("users", "grant", "ben", "READ")
    assert ada.lossy(*grant, "--model", LABEL, env=team_server.member()).returncode == 0
    refused = ben.lossy("download", reference, "--output", "decoder")
    assert refused.returncode == 1
    assert "ask for the right on the experiment" in refused.stderr
    assert ada.lossy(*grant, "--experiment", EXPERIMENT, env=team_server.member()).returncode == 0

    ben.json("download", reference, "--output", "decoder")
    verified = ben.lossy("verify", reference)
    assert verified.returncode == 0, verified.stderr
    assert (ben.folder / "decoder" / "MLmodel").is_file()
    loaded = ben.run(sys.executable, "-c", LOADED, LABEL)
    assert loaded.returncode == 0, loaded.stderr
    assert loaded.stdout.startswith("(4, ")

    for words in (["download", reference], ["promote", f"{LABEL}@best"]):
        refused = cleo.lossy(*words)
        assert refused.returncode != 0
        assert refused.stdout == ""
        assert f"shows you no registered model '{LABEL}'" in refused.stderr
        assert "Traceback" not in refused.stderr
    assert [path.name for path in cleo.folder.iterdir() if path.name != "home"] == []
    # She who may read may not write.
    refused = ben.lossy("promote", f"{LABEL}@last", "--alias", "candidate")
    assert refused.returncode == 1
    assert "Permission denied" in refused.stderr
    assert ada.json("resolve", reference)["version"] == promoted["promotion"]["version"]
    assert "candidate" not in ada.lossy("checkpoints", LABEL).stdout


@pytest.mark.campaign
def test_a_hundred_megabytes_go_through_nginx_and_come_back(trained: Trained, tmp_path: Path) -> None:
    file = tmp_path / "large.bin"
    content = os.urandom(1_000_000) * 100
    file.write_bytes(content)
    done = trained.ada.run(sys.executable, "-c", THERE_AND_BACK, trained.run.info.run_id, str(file))
    assert done.returncode == 0, done.stderr
    back = trained.ada.folder / "large" / "large.bin"
    assert hashlib.sha256(back.read_bytes()).digest() == hashlib.sha256(content).digest()
    back.unlink()

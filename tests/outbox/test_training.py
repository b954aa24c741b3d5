"""Our own training by way of the outbox: what an outage, a death or another machine does to it, and what the server has then."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import psutil
import pytest
from mlflow import MlflowClient

from lossy_mlflow.checkpoints.publish import publish_deferred
from lossy_mlflow.hparams import flatten, get_hparams
from tests.conftest import Workplace, wait_for
from tests.outbox.conftest import OutboxPlace

SHORT = ("--set", "model_train.epochs=4", "--set", "checkpointing_freq=2", "--set", "start_checkpointing=0")
LONG = ("--set", "model_train.epochs=100000", "--set", "checkpointing_freq=40")


def _options(place: OutboxPlace) -> dict[str, str]:
    return {"MLFLOW_TRACKING_URI": place.proxy.uri}


@contextmanager
def _training(place: OutboxPlace, *words: str, **variables: str) -> Iterator[subprocess.Popen[str]]:
    environment = place.environment | _options(place) | variables
    process = place.workplace.start("train", "vae2_digits", *words, env=environment)
    try:
        yield process
    finally:
        process.kill()
        process.wait(10)


def _run(client: MlflowClient, label: str) -> Any:
    """The label's own run on the server, if it is there."""
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    found = client.search_runs(ids, f"tags.label = '{label}'")
    return next((run for run in found if "same_as" not in run.data.tags), None)


def _versions(client: MlflowClient, label: str) -> dict[str, str]:
    """The epochs of the label's versions, and what its aliases mean."""
    found = {item.version: item.tags["epoch"] for item in client.search_model_versions(f"name = '{label}'")}
    aliases = client.get_registered_model(label).aliases if found else {}
    return {"epochs": ",".join(sorted(found.values()))} | {
        alias: found[version] for alias, version in aliases.items()
    }


def _has_logged(place: OutboxPlace, pid: int, key: str) -> bool:
    """Whether the process has something of the metric in the outbox."""
    journals = place.root.glob(f"*/runs/*/*.{pid}.*.log")
    return any(f'"{key}"' in journal.read_text() for journal in journals)


def test_a_training_without_its_server_arrives_whole_once_it_is_back(place: OutboxPlace) -> None:
    place.proxy.mode = "refuse"
    label = "vae2_digits_away"
    done = place.lossy("train", "vae2_digits", "--e-name", "away", *SHORT, "--json", **_options(place))
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["delivered"] is False
    assert result["best_version"] is None
    assert "lossy outbox status" in done.stderr
    again = place.lossy("train", "vae2_digits", "--e-name", "away", *SHORT, **_options(place))
    assert again.returncode == 0, again.stderr
    assert "finished already" in again.stdout
    assert "wait on this machine" in again.stdout
    place.proxy.mode = "pass"
    place.wait_until_delivered(120)
    run = _run(place.client, label)
    assert run.info.status == "FINISHED"
    assert [step for step, _ in place.points(run.info.run_id, "val_loss")] == [1, 2, 3, 4]
    best = str(result["best_epoch"])
    expected = {"epochs": ",".join(sorted({"2", "4", best})), "best": best, "last": "4"}
    assert _versions(place.client, label) == expected
    assert run.data.tags["started_offline"] == "true"
    loaded = place.workplace.run(
        *(sys.executable, "-c", f"import lossy_mlflow; lossy_mlflow.load_decoder('{label}@best')"),
        env={"MLFLOW_TRACKING_URI": place.server},
    )
    assert loaded.returncode == 0, loaded.stderr


@pytest.mark.parametrize(
    "n_requests",
    [
        pytest.param(number, marks=[] if number in (5, 12) else pytest.mark.campaign)
        for number in range(1, 25)
    ],
)
def test_a_server_that_goes_away_at_any_question_of_the_beginning(
    place: OutboxPlace, n_requests: int
) -> None:
    label = f"vae2_digits_gone{n_requests}"
    place.proxy.later_from = n_requests
    words = ("train", "vae2_digits", "--e-name", f"gone{n_requests}", *SHORT, "--json")
    done = place.lossy(*words, **_options(place))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["delivered"] is False
    place.proxy.later_from, place.proxy.mode = math.inf, "pass"
    place.wait_until_delivered(120)
    run = _run(place.client, label)
    assert run.info.status == "FINISHED"
    assert _versions(place.client, label)["last"] == "4"


# A wrong password; a right that is missing.
@pytest.mark.parametrize("n_requests", [2, 4])
def test_a_server_that_refuses_is_not_away(place: OutboxPlace, n_requests: int) -> None:
    """What is forbidden is said before anything is trained, and nothing waits for a right."""
    place.proxy.later, place.proxy.later_from = "forbid", n_requests
    done = place.lossy("train", "vae2_digits", "--e-name", "forbidden", *SHORT, **_options(place))
    assert done.returncode == 1, done.stderr
    assert "Permission denied" in done.stderr
    assert "goes on without it" not in done.stderr
    assert _run(place.client, "vae2_digits_forbidden") is None
    assert not any(run.waiting for run in place.runs())


@pytest.mark.campaign
def test_a_server_that_comes_back_tells_of_the_versions_and_may_go_again_at_the_end(
    place: OutboxPlace,
) -> None:
    place.proxy.mode = "refuse"
    words = ("--set", "model_train.epochs=400", "--set", "checkpointing_freq=100", "--json")
    with _training(place, "--e-name", "back", *words) as process:
        wait_for(lambda: _has_logged(place, process.pid, "val_loss"), 90, "an epoch")
        place.proxy.mode = "pass"
        out, error = process.communicate(timeout=240)
    assert process.returncode == 0, error
    result = json.loads(out)
    assert result["delivered"] is True
    assert result["best_version"] is not None
    with _training(place, "--e-name", "end", *words) as process:
        wait_for(
            lambda: (run := _run(place.client, "vae2_digits_end")) and run.info.status == "FINISHED",
            120,
            "its end",
        )
        place.proxy.mode = "refuse"
        out, error = process.communicate(timeout=240)
    assert process.returncode == 0, error
    # Whether the server was there still or not: it says what it has trained.
    assert json.loads(out)["epoch"] == 400


@pytest.mark.campaign
def test_killed_and_resumed_while_the_server_is_away_no_step_stands_twice(place: OutboxPlace) -> None:
    label = "vae2_digits_killed"
    with _training(place, "--e-name", "killed", *LONG):
        wait_for(lambda: _versions(place.client, label)["epochs"], 90, "a version")
        place.proxy.mode = "stall"
        time.sleep(3)
    run = _run(place.client, label)
    before = len(place.points(run.info.run_id, "val_loss"))
    with _training(place, "--e-name", "killed", *LONG) as resumed:
        wait_for(lambda: _has_logged(place, resumed.pid, "val_loss"), 120, "a step after the resumption")
        resumed.send_signal(signal.SIGTERM)
        _, error = resumed.communicate(timeout=60)
        assert resumed.returncode == 143, error
    place.proxy.mode = "pass"
    assert place.lossy("outbox", "status").returncode == 0
    place.wait_until_delivered(120)
    ended = place.client.get_run(run.info.run_id)
    assert (ended.info.status, _run(place.client, label).info.run_id) == ("KILLED", run.info.run_id)
    steps = [step for step, _ in place.points(run.info.run_id, "val_loss")]
    assert len(steps) > before
    assert steps == list(range(1, len(steps) + 1))


@pytest.mark.campaign
def test_what_another_machine_has_taken_up_meanwhile_is_not_mixed_with_it(
    place: OutboxPlace, tmp_path: Path
) -> None:
    label = "vae2_digits_taken"
    elsewhere = {
        "MLFLOW_TRACKING_URI": place.server,
        "LOSSY_OUTBOX_DIR": str(tmp_path / "elsewhere" / "outbox"),
        "XDG_STATE_HOME": str(tmp_path / "elsewhere"),
    }
    words = ("--e-name", "taken", *LONG)
    with _training(place, *words) as process:
        # Its aliases come last: one that is cut off before them is completed by whoever has the run then.
        wait_for(lambda: _versions(place.client, label).get("last"), 90, "a version")
        place.proxy.mode = "refuse"
        run = _run(place.client, label)
        attempt = run.data.tags["attempt"]
        # As if the outage had lasted for a while already.
        place.client.set_tag(run.info.run_id, "heartbeat", f"{time.time() - 1000:.0f}")
        with _training(place, *words, **elsewhere) as other:
            wait_for(
                lambda: (
                    other.poll() is not None
                    or place.client.get_run(run.info.run_id).data.tags["attempt"] != attempt
                ),
                90,
                "a taker",
            )
            assert other.poll() is None, other.communicate()
            time.sleep(5)
            other.send_signal(signal.SIGTERM)
            _, error = other.communicate(timeout=60)
            assert other.returncode == 143, error
        place.proxy.mode = "pass"
        # Its next heartbeat tells it that it is not the one any more.
        _, error = process.communicate(timeout=90)
        assert process.returncode == 4, error
        assert "was taken up on" in error
    place.wait_until_delivered(120)
    wait_for(lambda: not place.senders(), 60, "the sender's end")
    assert place.client.get_run(run.info.run_id).info.status == "KILLED"
    steps = [step for step, _ in place.points(run.info.run_id, "val_loss")]
    assert steps == list(range(1, len(steps) + 1))
    (apart,) = [item for item in place.on_server(label) if item.data.tags.get("same_as") == run.info.run_id]
    assert apart.info.status == "FAILED"
    assert "was taken up on" in apart.data.tags["state_reason"]
    assert place.points(apart.info.run_id, "val_loss")
    aliases = place.client.get_registered_model(label).aliases
    assert {place.client.get_model_version(label, version).run_id for version in aliases.values()} == {
        run.info.run_id
    }


# It ends at once, so that its sender is alone with what it has left.
DEFER = """
import json, os, sys
from lossy_mlflow.outbox.program import outbox_for
outbox = outbox_for(os.environ["MLFLOW_TRACKING_URI"])
outbox.journal(sys.argv[1]).defer("publish_checkpoint", json.loads(sys.argv[2]), open(sys.argv[3], "rb"))
os._exit(0)
"""


@pytest.fixture
def published(here: Workplace, tmp_path: Path) -> tuple[MlflowClient, str, dict[str, Any], Path]:
    """What a deferred publication is called with: a run, the arguments, the weights."""
    from safetensors.torch import save_file

    from lossy_mlflow.models import build_model, decoder_of

    client, tree = mlflow.MlflowClient(), get_hparams("vae2_digits")
    run = client.create_run(client.create_experiment("published"), tags={"label": "mine", "kind": "train"})
    weights = tmp_path / "weights"
    save_file(decoder_of(build_model(tree)).state_dict(), weights)
    tags = {"hparam_set": "vae2_digits"}
    arguments = {"name": "mine", "description": "", "tree": flatten(tree), "tags": tags}
    return client, run.info.run_id, arguments | {"epoch": 3, "val_loss": 1.5}, weights


def test_a_publication_that_was_cut_off_is_completed_and_never_doubled(published: Any) -> None:
    client, run_id, arguments, weights = published
    publish_deferred(run_id, arguments, weights)
    publish_deferred(run_id, arguments, weights)
    (version,) = client.search_model_versions("name = 'mine'")
    # As if it had ended after the upload, before the version.
    client.delete_registered_model_alias("mine", "best")
    client.delete_model_version("mine", version.version)
    publish_deferred(run_id, arguments, weights)
    (again,) = client.search_model_versions("name = 'mine'")
    assert again.source == version.source
    assert again.tags == version.tags
    experiment = client.get_run(run_id).info.experiment_id
    assert len(client.search_logged_models([experiment])) == 1
    assert client.get_registered_model("mine").aliases == {"best": again.version, "last": again.version}
    # And after the model was made, before its files were there.
    client.delete_model_version("mine", again.version)
    client.delete_logged_model(again.source.removeprefix("models:/"))
    pending = client.create_logged_model(
        experiment, name="decoder-epoch-3", source_run_id=run_id, tags={"epoch": "3"}
    )
    publish_deferred(run_id, arguments, weights)
    (third,) = client.search_model_versions("name = 'mine'")
    assert third.source == f"models:/{pending.model_id}"
    assert third.tags["weights_sha256"] == version.tags["weights_sha256"]


def test_a_sender_that_is_killed_in_the_middle_of_a_publication(
    place: OutboxPlace, published: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it had started goes on; the next sender waits for that, and the decoder is published once."""
    _, _, arguments, weights = published
    name = f"mine-{place.proxy.port}"
    client = place.client
    run_id = client.create_run("0", tags={"label": name, "kind": "train"}).info.run_id
    place.run(DEFER, run_id, json.dumps(arguments | {"name": name}), str(weights))

    def helpers() -> list[psutil.Process]:
        words = ("lossy_mlflow.outbox.calls", str(place.root))
        running = [process for process in psutil.process_iter(["cmdline"]) if process.info["cmdline"]]
        return [found for found in running if all(word in " ".join(found.info["cmdline"]) for word in words)]

    (first,) = wait_for(helpers, 60, "the process that publishes")
    wait_for(lambda: list(place.root.glob("*/runs/*/calls-*")), 60, "its turn")
    first.suspend()
    (sender,) = place.senders()
    sender.kill()
    wait_for(lambda: not place.senders(), 10, "the sender's end")
    assert place.lossy("outbox", "status").returncode == 0
    wait_for(place.senders, 60, "another sender")
    time.sleep(3)
    assert helpers() == [first]
    first.resume()
    place.wait_until_delivered(180)
    (version,) = client.search_model_versions(f"name = '{name}'")
    assert client.get_registered_model(name).aliases == {"best": version.version, "last": version.version}
    (model,) = client.search_logged_models(["0"], f"source_run_id = '{run_id}'")
    assert version.source == f"models:/{model.model_id}"


def test_a_run_that_was_started_offline_leaves_another_ones_label_alone(published: Any) -> None:
    client, run_id, arguments, weights = published
    publish_deferred(run_id, arguments, weights)
    experiment = client.get_run(run_id).info.experiment_id
    tags = {"label": "mine", "kind": "train"}
    offline = client.create_run(experiment, tags=tags | {"started_offline": "true"}).info.run_id
    publish_deferred(offline, arguments, weights)
    assert client.get_run(offline).data.tags["clashes_with"] == run_id
    assert client.get_run(run_id).info.lifecycle_stage == "active"
    assert client.get_registered_model("mine").aliases == {"best": 1, "last": 1}
    assert len(client.search_model_versions("name = 'mine'")) == 2

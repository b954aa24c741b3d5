"""What a person gets wrong, and what a machine does: one clear error with the way on, no traceback, nothing half made."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from lossy_mlflow.cli import main
from tests.conftest import Workplace
from tests.services.disk import resize


class Done(NamedTuple):
    """What a command has ended with."""

    code: int
    stdout: str
    stderr: str


@pytest.fixture
def lossy_here(here: Workplace, capfd: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """The command line in the test's own process, which needs no seconds to start; a traceback fails the test."""

    def run(*words: str) -> Done:
        capfd.readouterr()
        try:
            main(words)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        else:
            code = 0
        return Done(code, *capfd.readouterr())

    return run


def _nothing_was_made(client: Any) -> bool:
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    return not client.search_runs(ids) and not client.search_registered_models()


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["vae10_digit"], 3, "vae10_digits"),
        (["vae10_digits", "--set", "model_train.epoch=5"], 2, "model_train.epochs"),
        (["vae10_digits", "--set", "model_train.epochs=many"], 2, "int"),
        (["vae10_digits", "--set", "model_train.epochs=0"], 2, "at least 1"),
        (["vae10_digits", "--set", "learning_rate=-1.0"], 2, "above 0"),
        (["vae10_digits", "--set", "n_val_batch=ten"], 2, "n_val_batch"),
        (["vae10_digits", "--set", "group_list=[1, 2]"], 2, "group_list"),
        (["vae10_digits", "--set", "dataset.input_dims=[1, 4, 16]"], 2, "[1, 8, 8]"),
        (["vae10_digits", "--set", "model_train.epochs"], 2, "KEY=VALUE"),
        (["vae10_digits", "--set", "cuda=false"], 2, "--device"),
        (["vae10_digits", "--set", "dataset.name=digit"], 3, "digits"),
        (["vae10_digits", "--set", "dataset.input_vector_length=784"], 2, "64"),
        (["vae10_digits", "--set", "model_name=deep_va"], 3, "deep_vae"),
        (["vae10_digits", "--set", "model_train.x_var=1e-40"], 2, "negative_log_likelihood is inf"),
        (["vae10_digits", "--set", "load_checkpoint_name=nothing"], 3, "No registered model 'nothing'"),
        (["vae10_digits", "--e-name", "a/b"], 2, "/"),
        (["vae10_digits", "--e-name", "a@b"], 2, "@"),
        (["vae10_digits", "--user-code", "nowhere.py"], 3, "nowhere.py"),
        (["vae10_digits", "--device", "tpu"], 2, "'auto', 'cpu', 'cuda'"),
        ([], 2, "HPARAM_SET"),
    ],
    ids=lambda value: " ".join(value[1:]) if isinstance(value, list) else "",
)
def test_a_mistake_is_named_and_nothing_is_made(
    lossy_here: Callable[..., Done], client: Any, words: list[str], code: int, says: str
) -> None:
    done = lossy_here("train", *words)
    assert done.code == code, done.stderr
    assert says in done.stderr
    assert done.stdout == ""
    assert _nothing_was_made(client)


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["resolve", "nothing"], 3, "lossy checkpoints"),
        (["resolve", "a/b/c"], 2, "NAME@ALIAS"),
        (["checkpoints", "nothing"], 3, "nothing"),
        (["hparams", "show", "vae10_digit"], 3, "vae10_digits"),
        (["data", "fetch", "minst"], 3, "mnist"),
        (["tarin"], 2, "tarin"),
    ],
)
def test_other_commands_name_the_mistake_too(
    lossy_here: Callable[..., Done], words: list[str], code: int, says: str
) -> None:
    done = lossy_here(*words)
    assert done.code == code, done.stderr
    assert says in done.stderr


def test_a_reference_that_is_nearly_right_says_what_there_is(lossy_here: Callable[..., Done]) -> None:
    assert lossy_here("train", "vae2_digits", "--set", "model_train.epochs=2").code == 0
    for reference, says in [
        ("vae2_digit@best", "did you mean vae2_digits?"),
        ("vae2_digits@bset", "it has"),
        ("vae2_digits/77", "no version 77"),
    ]:
        done = lossy_here("resolve", reference)
        assert done.code == 3
        assert says in done.stderr
        assert "vae2_digits" in done.stderr
    done = lossy_here("resolve", "vae2_digits", "--chkt-step", "77")
    assert "no version of epoch 77" in done.stderr


def test_a_fault_of_ones_own_model_is_named_and_nothing_is_made(workplace: Workplace, client: Any) -> None:
    """Here in a module beside the file, which is imported when the model is built."""
    (workplace.folder / "parts.py").write_text(
        "import torch\n\nclass Half(torch.nn.Linear):\n    x_logvar = 0.0\n"
        "    def decode(self, z):\n        return self(z)\n"
        "    def loss(self, batch, generator):\n        return self(batch[:, :7]).square().mean(), {}\n"
    )
    (workplace.folder / "mine.py").write_text(
        "from lossy_mlflow import register_hparams, register_model\n"
        "from lossy_mlflow.hparams.catalogue.digits import vae2_digits\n\n"
        "@register_model('half')\ndef half(hparams):\n    from parts import Half\n    return Half(7, 64)\n\n"
        "@register_hparams\ndef half_digits():\n"
        "    tree = vae2_digits()\n    tree.model_name, tree.n_iwae_samples = 'half', 0\n    return tree\n"
    )
    done = workplace.lossy("train", "half_digits", "--user-code", "mine.py")
    assert done.returncode == 1, done.stderr
    assert "The model 'half': decode(z), with z of shape (8, 2)" in done.stderr
    assert f"{workplace.folder}/parts.py:6: RuntimeError: mat1 and mat2 shapes" in done.stderr
    assert "Traceback" not in done.stderr
    assert _nothing_was_made(client)


def test_a_param_of_7000_characters_is_kept_whole(
    here: Workplace, lossy_here: Callable[..., Done], client: Any
) -> None:
    code = here.folder / "mine.py"
    code.write_text(
        "from lossy_mlflow import Hparam, register_hparams\n"
        "from lossy_mlflow.hparams.catalogue.digits import vae2_digits\n\n"
        "@register_hparams\ndef wordy() -> Hparam:\n"
        "    tree = vae2_digits()\n    tree.remark = 'x' * 7000\n    tree.model_train.epochs = 1\n    return tree\n"
    )
    assert lossy_here("train", "wordy", "--user-code", str(code)).code == 0
    (run,) = client.search_runs([client.get_experiment_by_name("vaes/digits").experiment_id])
    assert run.data.params["remark"].startswith("sha256:")
    from lossy_mlflow.tracking.runs import hparams_of_run

    assert hparams_of_run(client, run).remark == "x" * 7000
    assert "finished already" in lossy_here("train", "wordy", "--user-code", str(code)).stdout


def test_a_database_of_another_mlflow_version(workplace: Workplace) -> None:
    with sqlite3.connect(workplace.folder / "mlflow.db") as database:
        database.execute("update alembic_version set version_num = '451aebb31d03'")
    done = workplace.lossy("train", "vae2_digits")
    assert done.returncode == 4, done.stderr
    assert f"mlflow db upgrade sqlite:///{workplace.folder}/mlflow.db" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_that_is_no_database(workplace: Workplace) -> None:
    (workplace.folder / "mlflow.db").write_text(
        "this is a letter to a friend, and longer than a header of SQLite is\n" * 9
    )
    done = workplace.lossy("train", "vae2_digits")
    assert done.returncode == 4, done.stderr
    assert "is not an SQLite database" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_server_that_does_not_answer(workplace: Workplace) -> None:
    away = {"MLFLOW_TRACKING_URI": "http://user:hunter2@127.0.0.1:9"}
    for code, words in (
        (5, ["checkpoints", "vae2_digits"]),
        (0, ["train", "vae2_digits", "--set", "model_train.epochs=1"]),
        (5, ["train", "vae2_digits", "--e-name", "two", "--set", "load_checkpoint_name=vae10_digits"]),
    ):
        done = workplace.lossy(*words, env=away)
        assert done.returncode == code, done.stderr
        assert "127.0.0.1:9 doesn't answer" in done.stderr
        assert "hunter2" not in done.stderr + done.stdout
        assert "Traceback" not in done.stderr


def test_a_full_disk_is_said_and_the_training_goes_on_when_there_is_room(
    workplace: Workplace, tmpfs: Callable[[str], Path], client: Any
) -> None:
    # The database is elsewhere; the artifacts fill the disk.
    words = (
        "train",
        "vae10_digits",
        "--set",
        "model_train.epochs=6",
        "--set",
        "checkpointing_freq=2",
        "--set",
        "start_checkpointing=2",
    )
    disk = tmpfs("size=3m")
    client.create_experiment("vaes/digits", artifact_location=str(disk / "artifacts"))
    full = workplace.lossy(*words)
    assert full.returncode == 1, full.stdout
    assert "The disk is full" in full.stderr
    assert "Traceback" not in full.stderr
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    (run,) = client.search_runs(ids)
    assert run.info.status == "FAILED"
    resize(disk, "200m")
    again = workplace.json(*words)
    assert again["started"] == "resumed"
    assert client.get_run(run.info.run_id).info.status == "FINISHED"


def test_a_read_only_folder(workplace: Workplace, tmpfs: Callable[[str], Path]) -> None:
    folder = tmpfs("size=3m,ro")
    done = workplace.run(*workplace.command("train", "vae2_digits"), cwd=folder)
    assert done.returncode == 1
    assert "can't be" in done.stderr
    assert str(folder) in done.stderr
    assert "Traceback" not in done.stderr

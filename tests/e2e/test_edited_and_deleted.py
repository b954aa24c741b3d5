"""What somebody has edited or deleted on the server after a training: the next command says it, and what it says to do works."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lossy_mlflow.errors import ConflictError, LossyError
from tests.conftest import Workplace

CODE = """
from lossy_mlflow import register_hparams
from lossy_mlflow.hparams.catalogue.digits import vae2_digits

@register_hparams
def mine():
    tree = vae2_digits()
    tree.checkpointing_freq = tree.start_checkpointing = 1
    return tree
"""
LABEL = "mine_it's two"


def _printed(output: str, begins: str) -> str:
    """The command on the line of the output that begins so."""
    (line,) = [line for line in output.splitlines() if line.startswith(begins)]
    return line.removeprefix(begins).strip()


def _artifact(client: Any, run_id: str, path: str) -> Path:
    """Where the embedded default keeps it."""
    return Path(client.get_run(run_id).info.artifact_uri.removeprefix("file://"), path)


def test_edited_tags_stop_no_command_and_each_command_that_is_printed_works(
    here: Workplace, lossy: Callable[..., str], client: Any
) -> None:
    (here.folder / "my sets.py").write_text(CODE)
    words = ["mine", "--e-name", "it's two", "--set=model_train.epochs=2", "--user-code", "my sets.py"]
    output = lossy("train", *words)
    assert f"2 (best and last) of the registered model {LABEL}" in output
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    loaded = here.run("sh", "-c", _printed(output, "Load it in Python"), env={"PATH": path})
    assert loaded.returncode == 0, loaded.stderr

    first = json.loads(lossy("train", *words, "--json"))
    client.set_model_version_tag(LABEL, "1", "val_loss", "x")
    client.delete_model_version_tag(LABEL, "2", "val_loss")
    client.set_tag(first["run_id"], "heartbeat", "x")
    assert json.loads(lossy("train", *words, "--json")) == first
    assert [row["val_loss"] for row in json.loads(lossy("checkpoints", LABEL, "--json"))] == [None, None]
    assert LABEL in lossy("runs", "list")
    client.set_model_version_tag(LABEL, "2", "epoch", "abc")
    assert json.loads(lossy("train", *words, "--json")) == first | {
        "best_version": None,
        "last_version": None,
    }

    client.rename_registered_model(LABEL, "renamed")
    output = lossy("train", *words)
    assert "none is found of the registered model" in output
    assert "Load it in Python" not in output
    anew = shlex.split(_printed(output, "Make versions anew"))
    assert anew[-3:] == ["--overwrite", "--user-code", "my sets.py"]

    digest = client.get_run(first["run_id"]).data.tags["hparams_sha256"]
    client.set_tag(first["run_id"], "hparams_sha256", "0" * 64)
    with pytest.raises(ConflictError, match="the same hparams, whose tag hparams_sha256 isn't theirs"):
        lossy("train", *words)
    stored = _artifact(client, first["run_id"], "hparams.json")
    text = stored.read_text()
    for damaged in (text[:50], '["a list"]'):
        stored.write_text(damaged)
        with pytest.raises(ConflictError, match=r"its hparams\.json is damaged"):
            lossy("train", *words)
    stored.unlink()
    with pytest.raises(ConflictError, match=r"its hparams\.json is gone"):
        lossy("train", *words)
    client.set_tag(first["run_id"], "hparams_sha256", digest)

    # Neither is a state that can't be read in the way of it.
    client.set_tag(first["run_id"], "training_state", "hello")
    client.update_run(first["run_id"], status="FAILED")
    with pytest.raises(LossyError, match=first["run_id"]) as caught:
        lossy("train", *words)
    assert "--overwrite" in caught.value.hint
    assert f'load_decoder("{LABEL}/2")' in _printed(lossy(*anew[1:]), "Load it in Python").replace(
        "'\"'\"'", "'"
    )
    assert len(client.search_model_versions("name = 'renamed'")) == 2

    # A run that says it is finished and has nothing to show.
    experiment = client.get_run(first["run_id"]).info.experiment_id
    tags = client.search_runs([experiment])[0].data.tags
    empty = client.create_run(experiment, tags=tags).info.run_id
    client.set_terminated(empty)
    with pytest.raises(LossyError, match=f"{empty} of {LABEL} says FINISHED, and has no val_loss"):
        lossy("train", *words)

"""A decoder's life in the registry, by the command line: promoted, copied, overwritten, pruned; and what `mlflow gc` takes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow.cli
import pytest

import lossy_mlflow
from lossy_mlflow.errors import ConflictError, UsageError
from lossy_mlflow.service.check import check
from lossy_mlflow.service.repair import repair
from lossy_mlflow.service.stores import stores_of
from tests.conftest import Workplace

TRAIN = ("train", "vae2_digits", "--set=n_iwae_samples=3", "--set=checkpointing_freq=1")


def _gc(here: Workplace) -> None:
    mlflow.cli.cli.main(
        ["gc", "--backend-store-uri", f"sqlite:///{here.folder}/mlflow.db"], standalone_mode=False
    )


def _loads(here: Workplace, reference: str) -> bool:
    """From the server, not from the cache."""
    shutil.rmtree(Path(here.environment["XDG_CACHE_HOME"], "lossy_mlflow"), ignore_errors=True)
    return lossy_mlflow.load_decoder(reference) is not None


def _stored(here: Workplace) -> int:
    """How many decoders have their files."""
    return len(list(here.folder.glob("mlruns/*/models/*/artifacts/MLmodel")))


def test_what_lives_in_the_registry_survives_overwriting_pruning_and_gc(
    here: Workplace, lossy: Callable[..., str], client: Any
) -> None:
    first = json.loads(lossy(*TRAIN, "--set=model_train.epochs=3", "--set=start_checkpointing=1", "--json"))[
        "run_id"
    ]
    words = ["--because", "its bound", "--require-evidence"]
    promotion = json.loads(lossy("promote", "vae2_digits@last", *words, "--json"))["promotion"]
    evidence = promotion["evidence"]
    assert evidence["val_loss"] == float(client.get_model_version("vae2_digits", "3").tags["val_loss"])
    assert evidence["dataset_digest"] == client.get_run(first).data.tags["dataset_digest"]
    # In nats: the bound on log p(x) is higher than the negative ELBO's negative.
    assert evidence["iwae_bound"] > -evidence["val_loss"]
    assert evidence["iwae_bound_se"] > 0
    lossy("promote", "vae2_digits/2", "--alias", "candidate")
    for _ in range(2):
        lossy("promote", "vae2_digits/2", "--to", "production vae2", "--because", "for the paper")
    assert len(json.loads(lossy("checkpoints", "production vae2", "--json"))) == 1
    with pytest.raises(ConflictError, match="vae2_digits is the label of a training"):
        lossy("promote", "production vae2/1", "--to", "vae2_digits")
    assert "its bound" in lossy("history", "vae2_digits", "--alias", "champion")
    assert "IWAE bound" in lossy("history", "vae2_digits", "--alias", "champion")
    assert json.loads(lossy("history", "vae2_digits", "--json"))["entries"][0]["alias"] == "candidate"

    # The first run stays for its champion, the second has nothing of the kind.
    second = json.loads(lossy(*TRAIN, "--set=model_train.epochs=1", "--overwrite", "--json"))["run_id"]
    third = json.loads(lossy(*TRAIN, "--set=model_train.epochs=1", "--overwrite", "--json"))["run_id"]
    stages = {run_id: client.get_run(run_id).info.lifecycle_stage for run_id in (first, second, third)}
    assert stages == {first: "active", second: "deleted", third: "active"}
    assert client.get_run(first).data.tags["superseded_by"] == third
    # Where its versions have lost their aliases here, that of a copy keeps it still.
    for alias in ("champion", "candidate"):
        client.delete_registered_model_alias("vae2_digits", alias)
    lossy(*TRAIN, "--set=model_train.epochs=1", "--overwrite")
    assert client.get_run(first).info.lifecycle_stage == "active"
    client.set_registered_model_alias("vae2_digits", "champion", "3")
    assert client.get_run(third).info.lifecycle_stage == "deleted"
    _gc(here)
    assert "gone" in lossy("lineage", "vae2_digits/4")
    for reference in ("vae2_digits/1", "vae2_digits@champion", "vae2_digits/4", "production vae2@champion"):
        assert _loads(here, reference)

    with pytest.raises(UsageError, match="no terminal to ask at") as caught:
        lossy("prune", "vae2_digits", "--keep=1", "--older-than=0s")
    assert "--yes" in caught.value.hint
    plan = json.loads(lossy("prune", "vae2_digits", "--keep=1", "--older-than=0s", "--dry-run", "--json"))
    assert [item["version"] for item in plan["goes"]] == [5, 4, 2, 1]
    assert "goes" in lossy("prune", "vae2_digits", "--keep=1", "--older-than=0s", "--dry-run")
    assert "4 versions of vae2_digits are deleted, 2 stay" in lossy(
        "prune", "vae2_digits", "--keep=1", "--older-than=0s", "--yes"
    )
    assert "Nothing of vae2_digits goes" in lossy(
        "prune", "vae2_digits", "--keep=1", "--older-than=0s", "--yes"
    )
    _gc(here)
    assert _stored(here) == 6
    assert "vae2_digits/2 (gone)" in lossy("lineage", "production vae2/1")
    # The keeper of the server frees what no version of any model names.
    repair(stores_of(), check(stores_of(), older_than_s=0), older_than_s=0)
    assert _stored(here) == 3
    for reference in ("vae2_digits@champion", "vae2_digits@best", "production vae2@champion"):
        assert _loads(here, reference)

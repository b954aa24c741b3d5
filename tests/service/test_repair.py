"""`lossy check --repair`: what it frees and sets right, what it never touches, and what becomes of it when it is cut off."""

from __future__ import annotations

import io
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from mlflow import MlflowClient

from lossy_mlflow.cli.app import app
from lossy_mlflow.errors import ConflictError, UsageError
from lossy_mlflow.service.alone import alone
from lossy_mlflow.service.check import check as look
from lossy_mlflow.service.files import file_place
from lossy_mlflow.service.repair import repair
from lossy_mlflow.service.stores import Stores
from tests.conftest import Workplace, wait_for
from tests.service.conftest import Check
from tests.service.kept import N_FILES, Kept, ask, change, content_of, lossy, served
from tests.service.test_check import found_in, leave_an_upload

_RUN = "0123456789abcdef" * 2


def _damage(kept: Kept, stores: Stores) -> None:
    """One of each kind that can be mended."""
    place = file_place(stores.artifacts)
    for path in (f"1/{_RUN}/artifacts/a/b.txt", f"7/models/m-{_RUN}/artifacts/MLmodel", "backups/data.db"):
        place.write(path, io.BytesIO(b"12345"))
    leave_an_upload(kept, stores)
    change(stores, "insert into registered_model_aliases (workspace, name, alias, version)"
        " values ('default', 'vae2_digits', 'nowhere', 77)")  # fmt: skip
    # The copy's files are those of the version that it is a copy of, which is deleted as MLflow deletes one.
    change(stores, "delete from registered_model_aliases where name = 'vae2_digits' and version = 2")
    change(stores, "update model_versions set current_stage = 'Deleted_Internal', source = 'REDACTED', run_id = 'REDACTED'"
        " where name = 'vae2_digits' and version = 2")  # fmt: skip
    change(stores, "update logged_models set lifecycle_stage = 'deleted' where artifact_location in"
        " (select storage_location from model_versions where name = 'production')")  # fmt: skip


def test_what_is_safe_is_mended_and_every_version_loads(
    kept: Kept, stores: Stores, check: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _damage(kept, stores)
    before = content_of(stores)
    # Young files may be of something that is on its way.
    with pytest.raises(UsageError, match="younger than an hour"):
        check(stores, "--repair", "--yes", "--older-than=59m")
    with pytest.raises(UsageError, match="no terminal to ask at"):
        app.main(["check", "--repair"], prog_name="lossy", standalone_mode=False)
    code, done = check(stores, "--repair", "--yes")
    assert {one["kind"] for one in done["mended"]} == {"alias to nowhere", "files in the bin"}
    assert code == 0
    assert content_of(stores) == before
    time.sleep(1.1)
    mended = repair(stores, look(stores, older_than_s=1), older_than_s=1)
    assert all(one.done for one in mended)
    kinds = [one.kind for one in mended]
    assert kinds == ["decoder without a version", *["files of nothing"] * 2, "upload without an end"]
    left = check(stores, "--deep", "--older-than=0s")[1]
    assert found_in(left).pop("files of nothing") == ["backups"]
    assert not [one for one in left["findings"] if one["repairable"] or one["loses"]]
    gone = before.keys() - content_of(stores).keys()
    assert len(gone) == N_FILES + 2
    assert sum(one.n_bytes for one in mended if one.kind != "upload without an end") == sum(
        len(before[path]) for path in gone
    )
    with served(tmp_path, stores, kept) as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        lossy("verify", "--all")
        client = MlflowClient(uri)
        assert "nowhere" not in client.get_registered_model("vae2_digits").aliases
        assert client.get_model_version_by_alias("production", "champion")


def test_a_dead_run_is_ended(kept_in_files: Kept, tmp_path: Path, check: Check) -> None:
    stores = kept_in_files.copy(tmp_path, kept_in_files.dead)
    (run_id,) = ask(stores, "select run_uuid from runs where status = 'RUNNING'")
    code, done = check(stores, "--repair", "--yes")
    assert code == 0
    assert [one["done"] for one in done["mended"] if one["kind"] == "dead run"] == [True]
    run = MlflowClient(stores.database).get_run(run_id)
    assert run.info.status == "FAILED"
    assert "has died" in run.data.tags["state_reason"]
    assert "dead run" not in found_in(check(stores)[1])


def test_not_while_a_backup_is_at_work(stores: Stores, check: Check) -> None:
    file_place(stores.artifacts).write(f"1/{_RUN}/artifacts/a", io.BytesIO(b"1"))
    before = content_of(stores)
    time.sleep(1.1)
    with alone(stores, "backup"), pytest.raises(ConflictError, match=r"lossy backup on .* is at work"):
        repair(stores, look(stores, older_than_s=0), older_than_s=0)
    assert content_of(stores) == before


def test_what_is_named_meanwhile_stays(
    kept_in_files: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores = kept_in_files.copy(tmp_path)
    store = file_place(stores.artifacts)
    store.write(f"1/{_RUN}/artifacts/a", io.BytesIO(b"1"))
    store.write(f"1/{_RUN[::-1]}/artifacts/a", io.BytesIO(b"1"))
    change(stores, "insert into registered_model_aliases (workspace, name, alias, version)"
        " values ('default', 'vae2_digits', 'nowhere', 77)")  # fmt: skip
    before = content_of(stores)
    time.sleep(0.1)
    report = look(stores, older_than_s=0)
    (model_id,) = (one.what for one in report.findings if one.kind == "decoder without a version")
    # Somebody registers it, restores the run, writes beside, and sets the alias.
    client = MlflowClient(stores.database, stores.database)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", stores.database)
    client.create_registered_model("late")
    client.create_model_version("late", f"models:/{model_id}", model_id=model_id, await_creation_for=0)
    change(stores, "insert into runs (run_uuid, name, status, start_time, lifecycle_stage, artifact_uri, experiment_id)"
        " values (:id, 'late', 'FINISHED', 1, 'active', '', 1)", id=_RUN)  # fmt: skip
    beside = Path(stores.artifacts, f"1/{_RUN[::-1]}/artifacts/b")
    beside.touch()
    os.utime(beside, (time.time() + 60,) * 2)
    client.set_registered_model_alias("vae2_digits", "nowhere", "2")
    done = repair(stores, report, older_than_s=0)
    assert {one.what: one.done for one in done} == {
        model_id: False,
        f"1/{_RUN}/artifacts": False,
        f"1/{_RUN[::-1]}/artifacts": False,
        "vae2_digits@nowhere": False,
    }
    assert content_of(stores).items() > before.items()
    assert client.get_logged_model(model_id).status == "READY"


def test_a_store_of_another_server_is_not_emptied(
    kept_in_files: Kept, tmp_path: Path, migrated_database: Path, check: Check
) -> None:
    stores = kept_in_files.copy(tmp_path)
    shutil.copy(migrated_database, tmp_path / "another.db")
    uri = f"sqlite:///{tmp_path}/another.db"
    before = content_of(stores)
    time.sleep(0.1)
    another = Stores(uri, uri, stores.artifacts)
    with pytest.raises(ConflictError, match="are these the stores of one server"):
        repair(another, look(another, older_than_s=0), older_than_s=0)
    assert content_of(stores) == before


def test_what_others_do_meanwhile_is_no_fault(kept_in_files: Kept, tmp_path: Path, check: Check) -> None:
    """Another program holds the database for too long; then somebody purges the run that would be ended."""
    stores = kept_in_files.copy(tmp_path, kept_in_files.dead)
    change(stores, "insert into registered_model_aliases (workspace, name, alias, version)"
        " values ('default', 'vae2_digits', 'nowhere', 77)")  # fmt: skip
    report = look(stores)
    with closing(sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None)) as other:
        other.execute("begin immediate")
        with pytest.raises(ConflictError, match="is busy: database is locked"):
            repair(stores, report)
    change(stores, "update runs set run_uuid = :id where status = 'RUNNING'", id=_RUN)
    done = {one.kind: (one.done, one.note) for one in repair(stores, report)}
    assert done["dead run"] == (False, "it is gone")
    assert done["alias to nowhere"] == (True, "done")


_REPAIR = """
from lossy_mlflow.service.check import check
from lossy_mlflow.service.repair import repair
from lossy_mlflow.service.stores import stores_of
repair(stores_of(), check(stores_of(), older_than_s=0), older_than_s=0)
"""


def test_killed_in_the_middle_and_started_again(kept_in_files: Kept, tmp_path: Path, check: Check) -> None:
    stores = kept_in_files.copy(tmp_path)
    folder = Path(stores.artifacts)
    paths = [folder / "1" / f"{i:032x}" / "artifacts" / f"{k}" for i in range(20) for k in range(200)]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    kept = content_of(stores).keys() - {str(path.relative_to(folder)) for path in paths}
    # More than half of the store would go, which nobody is asked about here.
    for i in range(len(paths)):
        (folder / "1" / "notes").mkdir(exist_ok=True)
        (folder / "1" / "notes" / str(i)).touch()
    time.sleep(0.1)
    place = Workplace(tmp_path, kept_in_files.home)
    variables = {
        "MLFLOW_BACKEND_STORE_URI": stores.database,
        "MLFLOW_ARTIFACTS_DESTINATION": stores.artifacts,
    }
    # The command leaves alone what is of this hour.
    words = (sys.executable, "-c", _REPAIR)

    def n_left() -> int:
        return sum(path.exists() for path in paths)

    process = subprocess.Popen(words, cwd=place.folder, env=place.environment | variables)
    wait_for(lambda: n_left() < len(paths), 120, "the first file to go")
    process.kill()
    process.communicate()
    assert 0 < n_left() < len(paths)
    assert place.run(*words, env=variables).returncode == 0
    assert n_left() == 0
    assert check(stores, "--deep", "--older-than=0s")[1]["findings"] == []
    assert len(kept - content_of(stores).keys()) == N_FILES

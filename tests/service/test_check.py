"""`lossy check`: nothing on a healthy server, each damage where it is, and nothing changed by looking."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy

from lossy_mlflow.errors import ConflictError
from lossy_mlflow.service.check import check as look
from lossy_mlflow.service.files import file_place
from lossy_mlflow.service.stores import Stores
from tests.service.conftest import Check
from tests.service.kept import N_FILES, Kept, ask, change, content_of
from tests.services.many_runs import files_of, fill
from tests.services.postgres import Postgres

_RUN = "0123456789abcdef" * 2


def found_in(report: Any) -> dict[str, list[str]]:
    """What was found, by kind."""
    found: dict[str, list[str]] = {}
    for one in report["findings"]:
        found.setdefault(one["kind"], []).append(one["what"])
    return {kind: sorted(names) for kind, names in found.items()}


def _champion(stores: Stores) -> tuple[str, str]:
    """The champion of vae2_digits: NAME/VERSION, and its LoggedModel's id."""
    rows = ask(
        stores,
        "select v.version || ' ' || v.source from model_versions v join registered_model_aliases a on a.name = v.name"
        " and a.version = v.version where a.alias = 'champion' and a.name = 'vae2_digits'",
    )
    version, source = rows[0].split()
    return f"vae2_digits/{version}", source.removeprefix("models:/")


def _path_of(stores: Stores, model_id: str, file: str) -> str:
    (path,) = (path for path in content_of(stores) if model_id in path and path.endswith(file))
    return path


def test_a_healthy_server_is_clean_and_looking_changes_nothing(
    kept: Kept, stores: Stores, check: Check, tmp_path: Path
) -> None:
    before, files = _rows(kept, stores, tmp_path), content_of(stores)
    code, report = check(stores, "--deep")
    assert (code, report["findings"], report["n_elsewhere"]) == (0, [], 0)
    assert report["n_files"] == report["n_known"] == len(files) > 20
    assert report["n_bytes"] == sum(map(len, files.values()))
    # What was pruned waits for its time.
    code, report = check(stores, "--older-than=0s")
    assert code == 0
    assert [(one["kind"], one["n_files"]) for one in report["findings"]] == [
        ("decoder without a version", N_FILES)
    ]
    assert _rows(kept, stores, tmp_path) == before
    assert content_of(stores) == files


def test_a_model_that_somebody_else_calls_a_decoder_is_none_of_ours(stores: Stores, check: Check) -> None:
    assert change(stores, "update logged_models set name = 'vae'") > 0
    assert check(stores, "--older-than=0s")[1]["findings"] == []


def _rows(kept: Kept, stores: Stores, folder: Path) -> Any:
    if kept.postgres is None:
        return (folder / "mlflow.db").read_bytes(), sorted(path.name for path in folder.iterdir())
    # Without the key that it draws each time.
    dump = [str(kept.postgres.programs / "pg_dump"), stores.database]
    lines = subprocess.run(dump, check=True, capture_output=True, text=True).stdout.splitlines()
    return [line for line in lines if "restrict" not in line]


@pytest.mark.campaign
def test_who_may_only_read_can_check(kept_in_services: Kept, tmp_path: Path, check: Check) -> None:
    stores, postgres = kept_in_services.copy(tmp_path), kept_in_services.postgres
    assert postgres
    role, database = f"reader{uuid.uuid4().hex[:8]}", stores.database.rpartition("/")[2]
    postgres.sql(f"create role {role} login password '{role}'")
    postgres.sql(f"grant pg_read_all_data to {role}")
    reader = f"postgresql://{role}:{role}@127.0.0.1:{postgres.port}/{database}"
    assert check(Stores(reader, reader, stores.artifacts), "--deep")[0] == 0


def test_a_file_that_is_gone_and_a_byte_that_is_another(stores: Stores, check: Check) -> None:
    place, (version, model_id) = file_place(stores.artifacts), _champion(stores)
    weights = _path_of(stores, model_id, "weights.safetensors")
    with place.open(weights) as stream:
        content = bytearray(stream.read())
    content[-1] ^= 1
    place.write(weights, io.BytesIO(content))
    assert check(stores)[0] == 0
    code, report = check(stores, "--deep")
    assert code == 1
    assert found_in(report) == {"files damaged": sorted([model_id, version, "production/1"])}
    assert all("data/decoder/weights.safetensors" in one["where"] for one in report["findings"])
    place.delete(weights)
    code, report = check(stores)
    assert code == 1
    assert found_in(report) == {"files missing": sorted([model_id, version, "production/1"])}
    # What is too much is refused when it is loaded, and so is no decoder.
    place.write(weights, io.BytesIO(bytes(content[:-1]) + bytes([content[-1] ^ 1])))
    assert check(stores, "--deep")[0] == 0
    place.write(f"{weights}.more", io.BytesIO(b"x"))
    assert found_in(check(stores, "--deep")[1]) == {
        "files damaged": sorted([model_id, version, "production/1"])
    }


def test_what_a_run_needs_to_be_read_and_to_go_on(stores: Stores, check: Check) -> None:
    place = file_place(stores.artifacts)
    run_id, *_ = ask(
        stores, "select r.run_uuid from runs r join tags t on t.run_uuid = r.run_uuid and t.key = 'training_state'"
        " where r.status = 'FINISHED' and r.lifecycle_stage = 'active'"
    )  # fmt: skip
    (tag,) = ask(stores, f"select value from tags where key = 'training_state' and run_uuid = '{run_id}'")  # noqa: S608
    (hparams,) = (
        path for path in content_of(stores) if run_id in path and path.endswith("artifacts/hparams.json")
    )
    state = hparams.replace("hparams.json", f"training_state/{json.loads(tag)['file']}")
    place.write(state, io.BytesIO(b"torn"))
    place.write(hparams, io.BytesIO(b'{"model_name": "another"}'))
    assert check(stores)[0] == 0
    code, report = check(stores, "--deep")
    (one,) = report["findings"]
    assert (code, one["kind"], one["what"]) == (1, "files damaged", f"run {run_id}")
    assert "hparams.json" in one["where"]
    assert "training_state/" in one["where"]
    place.delete(state)
    assert found_in(check(stores)[1]) == {"files missing": [f"run {run_id}"]}
    # While it runs, they may be in somebody's outbox.
    change(stores, "update runs set status = 'RUNNING' where run_uuid = :id", id=run_id)
    assert "files missing" not in found_in(check(stores)[1])


def test_names_that_lead_nowhere_and_rows_that_contradict_each_other(stores: Stores, check: Check) -> None:
    version, model_id = _champion(stores)
    number = int(version.partition("/")[2])
    change(stores, "update runs set lifecycle_stage = 'deleted' where status = 'FAILED'")
    assert check(stores)[0] == 0
    change(stores, "update logged_models set lifecycle_stage = 'deleted' where model_id = :id", id=model_id)
    code, report = check(stores)
    assert code == 1
    assert version in found_in(report)["files in the bin"]
    change(stores, "update logged_models set lifecycle_stage = 'active'")
    change(stores, "update model_versions set status = 'PENDING_REGISTRATION', run_id = :run where name = 'vae2_digits' and"
        " version = :number", run=_RUN, number=number)  # fmt: skip
    found = found_in(check(stores)[1])
    assert found == {"version half made": [version], "version without its run": [version]}
    # Its rows are gone: somebody has restored half of a database, say.
    change(
        stores,
        "delete from model_version_tags where name = 'vae2_digits' and version = :number",
        number=number,
    )
    change(
        stores, "delete from model_versions where name = 'vae2_digits' and version = :number", number=number
    )
    code, report = check(stores)
    assert code == 1
    nowhere = found_in(report)["alias to nowhere"]
    assert "vae2_digits@champion" in nowhere
    assert {one["where"] for one in report["findings"]} == {f"version {number}"}
    change(stores, "delete from registered_model_aliases where alias = 'champion' and name = 'vae2_digits'")
    change(
        stores,
        "insert into registered_models (workspace, name, creation_time) values ('default', 'begun', 1)",
    )
    found = found_in(check(stores)[1])
    assert found["model without a version"] == ["begun"]
    assert "vae2_digits@champion" not in found.get("alias to nowhere", [])


def test_a_promotion_that_was_cut_off(stores: Stores, check: Check) -> None:
    (tag,) = ask(stores, "select value from registered_model_tags where name = 'production'")
    old = json.dumps(json.loads(tag) | {"moved": False})
    change(stores, "delete from registered_model_aliases where name = 'production' and alias = 'champion'")
    change(stores, "update registered_model_tags set key = 'promotion.20260101T000000.000000Z-0123ab', value = :old"
        " where name = 'production'", old=old)  # fmt: skip
    code, report = check(stores)
    assert code == 0
    assert found_in(report) == {"promotion not carried out": ["production@champion"]}


def test_what_nothing_refers_to(kept: Kept, stores: Stores, check: Check) -> None:
    place = file_place(stores.artifacts)
    of_mlflow = [
        f"1/{_RUN}/artifacts/a/b.txt",
        f"1/models/m-{_RUN}/artifacts/MLmodel",
        f"99/traces/tr-{_RUN}/artifacts/x",
    ]
    for path in [*of_mlflow, "1/notes.txt", "backups/1/data.db"]:
        place.write(path, io.BytesIO(b"12345"))
    leave_an_upload(kept, stores)
    time.sleep(1.1)  # what is of this second may be of a row that came after the first look
    code, report = check(stores)
    assert code == 0
    paths = sorted(path.partition("/artifacts")[0] + "/artifacts" for path in of_mlflow)
    # What somebody has put into an experiment's folder is the experiment's.
    assert found_in(report) == {"files of nothing": sorted([*paths, "backups"])}
    assert all(one["n_bytes"] == 5 and 0 <= one["age_s"] < 60 for one in report["findings"])
    assert not any(one["repairable"] for one in report["findings"])
    report = check(stores, "--older-than=1s")[1]
    can_go = {
        one["what"] for one in report["findings"] if one["repairable"] and one["kind"] == "files of nothing"
    }
    assert can_go == set(paths)
    assert len(found_in(report)["upload without an end"]) == 1


def leave_an_upload(kept: Kept, stores: Stores) -> None:
    if kept.seaweedfs:
        prefix = stores.artifacts.rpartition("/")[2]
        client = kept.seaweedfs.client()
        upload = client.create_multipart_upload(Bucket="mlflow", Key=f"{prefix}/1/big")["UploadId"]
        client.upload_part(
            Bucket="mlflow", Key=f"{prefix}/1/big", UploadId=upload, PartNumber=1, Body=b"x" * 5_300_000
        )
    else:
        Path(stores.artifacts, "1", ".lossy-part-0123").write_bytes(b"x")


def test_a_run_that_was_killed_and_one_that_says_nothing(
    kept_in_files: Kept, tmp_path: Path, check: Check
) -> None:
    stores = kept_in_files.copy(tmp_path, kept_in_files.dead)
    # In the meantime it was resumed, and its state written anew.
    (run_id,) = ask(stores, "select run_uuid from runs where status = 'RUNNING'")
    code, report = check(stores)
    assert code == 0
    (dead,) = [one for one in report["findings"] if one["kind"] == "dead run"]
    assert dead["what"] == f"vae2_digits_long {run_id}"
    assert "has died" in dead["where"]
    assert found_in(report).keys() <= {"dead run", "files of nothing"}
    # Of plain MLflow's runs only the age tells.
    change(stores, "update runs set start_time = 1000 where run_uuid = :id", id=run_id)
    change(stores, "delete from tags where run_uuid = :id", id=run_id)
    assert "silent run" not in found_in(check(stores)[1])  # it has logged a metric since
    change(stores, "update latest_metrics set timestamp = 2000 where run_uuid = :id", id=run_id)
    assert found_in(check(stores)[1])["silent run"] == [f"vae2_digits_long {run_id}"]


def test_a_database_that_is_not_mlflows(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").touch()
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    with pytest.raises(ConflictError, match="has not the tables of this MLflow"):
        look(Stores(uri, uri, str(tmp_path)))


@contextmanager
def _questions() -> Iterator[Counter[str]]:
    """What databases are asked, and how many rows they give."""
    found: Counter[str] = Counter()

    def count(*arguments: Any) -> None:
        found[arguments[2].split(" where ")[0]] += 1

    sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", count)
    try:
        yield found
    finally:
        sqlalchemy.event.remove(sqlalchemy.Engine, "before_cursor_execute", count)


def test_more_runs_are_no_more_questions(postgres: Postgres, migrated_postgres: str, tmp_path: Path) -> None:
    asked = []
    for n_runs in (20, 200):
        uri = postgres.create(f"filled{uuid.uuid4().hex[:8]}", template=migrated_postgres)
        fill(uri, n_runs, n_metrics=3)
        store = file_place(str(tmp_path / str(n_runs)))
        for path in files_of(uri):
            store.write(path, io.BytesIO(b"{}"))
        with _questions() as questions:
            report = look(Stores(uri, uri, store.uri))
        assert (report.findings, report.n_runs, report.n_files) == ([], n_runs, 2 * n_runs)
        asked.append(questions)
        place = next(iter(files_of(uri)))
        store.delete(place)
        assert [one.kind for one in look(Stores(uri, uri, store.uri)).findings] == ["files missing"]
    assert asked[0] == asked[1]
    assert sum(asked[0].values()) < 30


def test_looking_does_without_mlflow() -> None:
    """To load it takes longer than to look at 10,000 runs."""
    code = "import sys, lossy_mlflow.cli.check, lossy_mlflow.service.check; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0

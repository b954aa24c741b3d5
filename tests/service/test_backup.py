"""A backup: what it holds, what it doesn't copy twice, and what becomes of one that is cut short."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from lossy_mlflow.errors import ConflictError
from lossy_mlflow.service.backup import back_up
from lossy_mlflow.service.files import file_place
from lossy_mlflow.service.manifest import Source
from lossy_mlflow.service.restore import list_backups
from lossy_mlflow.service.stores import stores_of
from tests.conftest import Workplace, wait_for
from tests.service.filled import Done, Filled, Places
from tests.services.disk import resize


def _read_bytes() -> int:
    """What this process has read so far."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["rchar"])


def test_only_what_is_new_is_written_and_only_what_changed_is_read(
    sqlite_places: Places, command: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    places = sqlite_places
    places.full.use(monkeypatch)
    for number in range(20):
        places.full.write(f"1/big/{number}.bin", os.urandom(1_000_000))
    first = command("backup", places.target, "--dry-run", "--json")
    assert (first.code, first.json["name"], first.json["new_files"]) == (0, "", 26)
    assert not Path(places.target).exists()
    first = command("backup", places.target, "--json")
    assert first.json["new_bytes"] > 20_000_000
    before = sum(file.size for file in file_place(places.target).files("objects"))
    places.full.write("1/big/3.bin", os.urandom(500_000))
    Path(places.full.artifacts, "1/big/4.bin").unlink()
    read = _read_bytes()
    second = command("backup", places.target, "--json")
    assert _read_bytes() - read < 8_000_000  # the database, its copy, the new file
    assert (second.json["files"], second.json["new_files"], second.json["new_bytes"]) == (25, 1, 500_000)
    assert sum(file.size for file in file_place(places.target).files("objects")) == before + 500_000
    listed = command("restore", places.target, "--list", "--json")
    assert [(item["name"], item["state"]) for item in listed.json] == [
        (second.json["name"], "whole"),
        (first.json["name"], "whole"),
    ]
    places.empty.use(monkeypatch)
    assert command("restore", places.target, "--at", first.json["name"]).code == 0
    assert len(places.empty.files()["1/big/3.bin"]) == 1_000_000
    assert "1/big/4.bin" in places.empty.files()


def test_objects_that_are_gone_are_copied_again(
    places: Places, command: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    places.full.use(monkeypatch)
    assert command("backup", places.target).code == 0
    again = command("backup", places.target, "--json")
    assert (again.json["new_files"], again.json["new_bytes"]) == (0, 0)
    place = file_place(places.target)
    gone = next(place.files("objects"))
    place.delete(gone.path)
    again = command("backup", places.target, "--json")
    assert (again.json["new_files"], again.json["new_bytes"]) == (1, gone.size)


def test_one_that_was_killed_is_taken_up_by_the_next(
    sqlite_places: Places, workplace: Workplace, command: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    places = sqlite_places
    places.full.use(monkeypatch)
    folder = Path(places.full.artifacts, "1", "many")
    folder.mkdir(parents=True)
    for number in range(6000):
        (folder / f"{number}.txt").write_text(f"the file {number}")
    environment = {
        name: os.environ[name] for name in ("MLFLOW_BACKEND_STORE_URI", "MLFLOW_ARTIFACTS_DESTINATION")
    }
    process = workplace.start("backup", places.target, env=environment)
    parts = f"backups/*/{'files-'}*"
    wait_for(lambda: list(Path(places.target).glob(parts)), 60, "the first part")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    (cut,) = command("restore", places.target, "--list", "--json").json
    assert cut["state"] == "cut short"
    places.empty.use(monkeypatch)
    refused = command("restore", places.target)
    assert refused.code == 3
    assert "No whole backup" in refused.err
    places.full.use(monkeypatch)
    done = command("backup", places.target, "--json")
    assert done.code == 0, done.err
    assert done.json["finished"] == [cut["name"]]
    assert done.json["files"] == 6006
    assert done.json["new_files"] <= 6006 - 2000
    assert [item["state"] for item in command("restore", places.target, "--list", "--json").json] == ["whole"]
    assert not list(Path(places.target).rglob(".lossy-part-*"))
    places.empty.use(monkeypatch)
    assert command("restore", places.target).code == 0
    assert places.empty.files() == places.full.files()


def test_a_deleted_version_and_a_prompt_lie_nowhere_else(
    sqlite_places: Places, command: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    sqlite_places.full.use(monkeypatch)
    client = sqlite_places.full.client()
    client.delete_model_version("vae", "1")
    client.create_prompt("greeting")
    client.create_prompt_version("greeting", "Hello {{name}}")
    done = command("backup", sqlite_places.target, "--json")
    assert (done.code, done.json["elsewhere"]) == (0, []), done.err


def test_folders_outside_the_destination_and_addresses_elsewhere(
    sqlite_places: Places, command: Callable[..., Done], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    places = sqlite_places
    places.full.use(monkeypatch)
    client = places.full.client()
    beside = tmp_path / "mlruns" / "2"
    experiment = client.create_experiment("beside", artifact_location=str(beside))
    run_id = client.create_run(experiment).info.run_id
    client.log_text(run_id, "beside", "note.txt")
    # A user could name any folder: what no run of MLflow's own has put there stays out.
    client.create_model_version("vae", "/etc", run_id)
    client.create_run(client.create_experiment("far", artifact_location="s3://other/x"))
    done = command("backup", places.target, "--json")
    assert done.code == 1
    assert [address.split("/")[:3] for address in done.json["elsewhere"]] == [
        ["", "etc"],
        ["s3:", "", "other"],
    ]
    assert done.json["files"] == 7
    file = beside / run_id / "artifacts" / "note.txt"
    file.unlink()
    places.empty.use(monkeypatch)
    done = command("restore", places.target, "--json")
    assert (done.code, done.json["files"], done.json["kept"]) == (1, 7, [])
    assert file.read_text() == "beside"
    # Never over anything that is there.
    file.write_text("another")
    (Path(places.empty.database.removeprefix("sqlite:///"))).unlink()
    for path in [file.path for file in file_place(places.empty.artifacts).files()]:
        file_place(places.empty.artifacts).delete(path)
    done = command("restore", places.target, "--json")
    assert done.json["kept"] == [str(file)]
    assert file.read_text() == "another"


def test_what_is_wrong_is_said_before_anything_is_written(
    sqlite_places: Places, command: Callable[..., Done], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    places = sqlite_places
    places.full.use(monkeypatch)
    monkeypatch.setenv("MLFLOW_ARTIFACTS_DESTINATION", str(tmp_path / "mistyped"))
    done = command("backup", places.target)
    assert done.code == 3
    assert "There is no folder" in done.err
    places.full.use(monkeypatch)
    done = command("backup", f"{places.full.artifacts}/backups")
    assert done.code == 4
    assert "not apart" in done.err
    others = tmp_path / "others"
    others.mkdir()
    (others / "letter.txt").write_text("x")
    done = command("backup", str(others))
    assert done.code == 4
    assert "letter.txt" in done.err
    done = command("restore", str(others))
    assert done.code == 3


def test_a_file_that_can_not_be_read_is_named(
    sqlite_places: Places, workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to become another user")
    places = sqlite_places
    secret = Path(places.full.artifacts, "1", "secret.txt")
    places.full.write("1/secret.txt", b"x")
    secret.chmod(0)
    # Root reads everything, unless it gives that up.
    words = [
        "setpriv",
        "--bounding-set=-dac_override,-dac_read_search",
        "--inh-caps=-all",
        *workplace.command("backup", places.target),
    ]
    done = workplace.run(
        *words,
        env={
            "MLFLOW_BACKEND_STORE_URI": places.full.database,
            "MLFLOW_ARTIFACTS_DESTINATION": places.full.artifacts,
        },
    )
    assert done.returncode == 1, done.stderr
    assert f"{secret} (Permission denied) could not be read" in done.stderr


def test_no_password_is_in_a_process_list_nor_in_the_backup(
    postgres: object, request: pytest.FixtureRequest, workplace: Workplace, tmp_path: Path
) -> None:
    from tests.services.postgres import PASSWORD

    uri = request.getfixturevalue("postgres_uri")
    (tmp_path / "artifacts").mkdir()
    environment = {
        "MLFLOW_BACKEND_STORE_URI": uri,
        "MLFLOW_ARTIFACTS_DESTINATION": str(tmp_path / "artifacts"),
    }
    process = workplace.start("backup", str(tmp_path / "backups"), env=environment)
    seen = set()
    while process.poll() is None:
        listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
        seen |= {line for line in listed.splitlines() if "pg_dump" in line}
        assert PASSWORD not in listed
    assert process.returncode == 0
    assert seen
    for file in (tmp_path / "backups").rglob("*"):
        if file.is_file():
            assert PASSWORD.encode() not in file.read_bytes()


def test_a_full_disk_ends_it_and_the_next_one_finishes(
    sqlite_places: Places,
    command: Callable[..., Done],
    monkeypatch: pytest.MonkeyPatch,
    tmpfs: Callable[[str], Path],
) -> None:
    places = sqlite_places
    places.full.use(monkeypatch)
    places.full.write("1/big.bin", os.urandom(3_000_000))
    disk = tmpfs("size=3m")
    done = command("backup", str(disk / "backups"))
    assert done.code == 1
    assert "No space left" in done.err
    resize(disk, "30m")
    done = command("backup", str(disk / "backups"), "--json")
    assert done.code == 0, done.err
    assert len(done.json["finished"]) == 1
    assert not list(disk.rglob(".lossy-part-*"))
    assert isinstance(places.full, Filled)


def test_a_place_is_one_servers(
    sqlite_places: Places, command: Callable[..., Done], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    places = sqlite_places
    places.full.use(monkeypatch)
    assert command("backup", places.target).code == 0
    shutil.copytree(Path(places.full.artifacts).parent, tmp_path / "another")
    another = Filled(f"sqlite:///{tmp_path}/another/mlflow.db", f"{tmp_path}/another/mlartifacts")
    another.use(monkeypatch)
    for words in ([], ["--dry-run"]):
        refused = command("backup", places.target, *words)
        assert refused.code == 4
        assert places.full.database in refused.err
        assert another.database in refused.err
    assert len(command("restore", places.target, "--list", "--json").json) == 1
    # Who connects, by which driver, and how, makes no other server.
    names = [
        "postgresql://a@db:5432/mlflow",
        "postgresql+psycopg2://b@db:5432/mlflow?sslmode=require",
        "postgresql://a@db:5432/other",
    ]
    first, same, other = (Source(name, name, "s3://b", {}).identity for name in names)
    assert first == same != other


def test_what_others_write_into_a_backup_keeps_it_from_being_whole(
    sqlite_places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = sqlite_places
    places.full.use(monkeypatch)

    def meddle(done: int, _: int) -> None:
        for dump in Path(places.target, "backups").glob("*/tracking.dump"):
            dump.write_bytes(b"another's")

    with pytest.raises(ConflictError, match=r"tracking\.dump has 9 bytes"):
        back_up(stores_of(), places.target, progress=meddle)
    assert [item.state for item in list_backups(places.target)] == ["cut short"]


def test_links_are_named_and_an_empty_place_is_refused(
    sqlite_places: Places, command: Callable[..., Done], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    places = sqlite_places
    places.full.use(monkeypatch)
    away = tmp_path / "big disk"
    Path(places.full.artifacts, "1").rename(away)
    Path(places.full.artifacts, "1").symlink_to(away)
    done = command("backup", places.target, "--json")
    assert done.code == 1
    assert done.json["unreadable"] == [f"{places.full.artifacts}/1 (it is a link, which isn't followed)"]
    # As where the disk isn't mounted.
    Path(places.full.artifacts, "1").unlink()
    refused = command("backup", places.target)
    assert refused.code == 3
    assert f"No file is in {places.full.artifacts}, and" in refused.err


def test_nobody_else_may_read_what_is_written(
    sqlite_places: Places, command: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    places = sqlite_places
    places.full.use(monkeypatch)
    before = os.umask(0o022)
    try:
        assert command("backup", places.target).code == 0
        places.empty.use(monkeypatch)
        assert command("restore", places.target).code == 0
    finally:
        os.umask(before)
    for top in (Path(places.target), Path(places.empty.artifacts).parent):
        made = [top, *top.rglob("*")]
        assert {oct(path.stat().st_mode & 0o777) for path in made if path.is_dir()} == {"0o700"}
        files = {path.name: oct(path.stat().st_mode & 0o777) for path in made if path.is_file()}
        assert {
            name: mode for name, mode in files.items() if mode != "0o600" and "lossy-lock" not in name
        } == {}

"""`lossy download`: whole or not there, whatever the server, the disk and other processes do."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lossy_mlflow.checkpoints.download import download
from lossy_mlflow.checkpoints.export import export
from lossy_mlflow.checkpoints.flavor import FILES, files_sha256, load_model
from lossy_mlflow.checkpoints.publish import Publication, Snapshot, publish
from lossy_mlflow.checkpoints.verify import verify, versions_to_verify
from lossy_mlflow.errors import ConflictError, LossyError, NotFoundError, UnreachableError, UsageError
from lossy_mlflow.hparams import get_hparams
from lossy_mlflow.models import build_model, decoder_of
from lossy_mlflow.tracking.connection import connect
from tests.checkpoints.registry_server import RegistryServer
from tests.conftest import Workplace

WEIGHTS = "data/decoder/weights.safetensors"
# Torch and what loads it can't be imported.
WITHOUT_TORCH = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "boto3"):
            raise ImportError(f"{name} is not there")
sys.meta_path.insert(0, Absent())
from lossy_mlflow.cli import main
main(sys.argv[1:])
"""


def names_in(folder: Path) -> set[str]:
    """The files below it by their paths, hidden ones too."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def environment(here: Workplace, server: RegistryServer) -> dict[str, str]:
    return here.environment | {"MLFLOW_TRACKING_URI": server.uri}


def test_it_needs_neither_torch_nor_keys_and_a_pipe_hears_nothing_of_its_progress(
    here: Workplace, registry: RegistryServer
) -> None:
    command = [sys.executable, "-c", WITHOUT_TORCH, "download", "mine@best", "--json"]
    first, again = (
        subprocess.run(
            command, cwd=here.folder, env=environment(here, registry), capture_output=True, text=True
        )
        for _ in range(2)
    )
    assert (first.returncode, first.stderr) == (0, "")
    said = json.loads(first.stdout)
    assert said == {
        "name": "mine",
        "version": 1,
        "uri": "models:/mine/1",
        "files_sha256": registry.tags["files_sha256"],
        "folder": str(here.folder / "mine-1"),
        "fetched": True,
    }
    assert names_in(here.folder / "mine-1") == FILES
    load_model(here.folder / "mine-1")
    assert json.loads(again.stdout) == said | {"fetched": False}
    assert set(registry.requests.values()) == {1}
    assert sorted(path.name for path in here.folder.iterdir()) == ["mine-1", "mlflow.db"]


def test_a_real_server_hands_out_what_was_published_to_it(
    here: Workplace, mlflow_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    connection, tree = connect(), get_hparams("vae2_digits")
    experiment = connection.client.create_experiment(f"download {here.folder}")
    run_id = connection.client.create_run(experiment, tags={"label": "handed_out"}).info.run_id
    weights = decoder_of(build_model(tree)).state_dict()
    publish(connection, run_id, Publication("handed_out", "", tree, {}), Snapshot(1, 1.0, weights))
    done = download("handed_out@best")
    loaded, _ = load_model(Path(done.folder))
    assert all(torch.equal(tensor, weights[name]) for name, tensor in loaded.state_dict().items())
    assert [found.state for found in verify(versions_to_verify("handed_out"))] == ["ok"]


def test_a_server_that_goes_in_the_middle_is_said_and_what_is_whole_is_not_fetched_again(
    here: Workplace, registry: RegistryServer
) -> None:
    registry.cut.add(WEIGHTS)
    target = here.folder / "new" / "decoder"
    with pytest.raises(UnreachableError) as caught:
        download("mine", target)
    assert "it goes on where it stopped" in caught.value.hint
    assert not target.exists()
    registry.cut.clear()
    assert download("mine", target).fetched
    assert files_sha256(target) == registry.tags["files_sha256"]
    assert registry.requests.pop(WEIGHTS) == 2
    assert set(registry.requests.values()) == {1}
    assert [path.name for path in target.parent.iterdir()] == ["decoder"]


def test_what_an_earlier_attempt_has_left_is_verified_too(here: Workplace, registry: RegistryServer) -> None:
    registry.cut.add(WEIGHTS)
    with pytest.raises(UnreachableError):
        download("mine@best")
    (left,) = here.folder.glob(".lossy-*")
    (left / "files" / "MLmodel").write_text("")
    registry.cut.clear()
    download("mine@best")
    assert files_sha256(here.folder / "mine-1") == registry.tags["files_sha256"]
    assert registry.requests["MLmodel"] == 2


def test_after_kill_9_it_goes_on_and_two_at_once_are_both_right(
    here: Workplace, registry: RegistryServer
) -> None:
    registry.held.add(WEIGHTS)
    killed = here.start("download", "mine", env={"MLFLOW_TRACKING_URI": registry.uri})
    assert registry.reached_hold.wait(60)
    killed.kill()
    killed.communicate()
    assert not (here.folder / "mine-1").exists()
    registry.reached_hold.clear()
    both = [
        here.start("download", "mine", "--json", env={"MLFLOW_TRACKING_URI": registry.uri}) for _ in range(2)
    ]
    assert registry.reached_hold.wait(60)
    registry.held.clear()
    ends = [process.communicate(timeout=60) for process in both]
    assert sorted(json.loads(out)["fetched"] for out, _ in ends) == [False, True]
    assert registry.requests.pop(WEIGHTS) == 2
    assert set(registry.requests.values()) == {1}
    assert names_in(here.folder) == {f"mine-1/{name}" for name in FILES} | {"mlflow.db"}


def test_a_folder_that_holds_something_else_stays_as_it_is(here: Workplace, registry: RegistryServer) -> None:
    full, file, empty = here.folder / "full", here.folder / "file", here.folder / "empty"
    full.mkdir()
    (full / "mine.txt").write_text("mine")
    file.write_text("mine")
    empty.mkdir()
    for target, says in [(full, "holds other files than models:/mine/1"), (file, "is a file")]:
        with pytest.raises(ConflictError, match=says):
            download("mine", target)
    for target, says in [
        (file / "below", "File exists"),
        (here.folder / ("long" * 99), "name too long"),
        (
            Path("/proc/none"),
            "can't be put into place",
        ),  # a folder in which no file can be made, not even by root
    ]:
        with pytest.raises(LossyError, match=says):
            download("mine", target)
    with pytest.raises(UsageError, match="is the working folder"):
        download("mine", Path())
    assert names_in(full) == {"mine.txt"}
    assert not registry.requests
    assert download("mine", empty).fetched
    assert not download("mine", empty).fetched
    (empty / "notes.txt").write_text("mine")
    with pytest.raises(ConflictError):
        download("mine", empty)
    assert (empty / "notes.txt").exists()


OUTSIDE = ["../x", "/etc/x", "a/../../x", "..", "%2e%2e/x", "a\\..\\x", "data"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_name_leads_out_of_the_folder(here: Workplace, registry: RegistryServer, name: str) -> None:
    entry = {"path": name, "is_dir": False, "file_size": 1}
    registry.listed = [entry, {"path": "data", "is_dir": True}]
    before = names_in(here.folder.parent)
    with pytest.raises(LossyError, match="is not one of a decoder"):
        download("mine")
    registry.listed = [entry | {"is_dir": True}]
    if name != "data":
        with pytest.raises(LossyError, match="is not one of a decoder"):
            download("mine")
    assert names_in(here.folder.parent) == before
    assert not registry.requests


def test_a_list_without_end_ends(
    here: Workplace, registry: RegistryServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lossy_mlflow.checkpoints.listing._MOST_ENTRIES", 20)
    monkeypatch.setattr(registry, "_list", lambda _: [{"path": "again", "is_dir": True}])
    with pytest.raises(LossyError, match="is not one of a decoder"):
        download("mine")


def test_files_that_are_altered_or_gone_leave_nothing_and_verify_says_which(
    here: Workplace, registry: RegistryServer
) -> None:
    weights = registry.folder / WEIGHTS
    content = bytearray(weights.read_bytes())

    def state() -> str:
        (found,) = verify(versions_to_verify(None))
        return found.state

    assert state() == "ok"
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(LossyError, match="not what was published"):
        download("mine")
    assert state() == "damaged"
    weights.unlink()
    with pytest.raises(NotFoundError, match=f"gone, {WEIGHTS}"):
        download("mine")
    assert state() == "gone"
    shutil.rmtree(registry.folder)
    with pytest.raises(NotFoundError, match="gone, all of them"):
        download("mine")
    assert state() == "gone"
    del registry.tags["files_sha256"]
    with pytest.raises(LossyError, match="not published by lossy_mlflow") as caught:
        download("mine")
    assert "mlflow artifacts download --artifact-uri models:/mine/1 --dst-path ." in caught.value.hint
    assert state() == "not ours"
    assert names_in(here.folder) == {"mlflow.db"}


@pytest.mark.parametrize("kilobytes", [8, 16])
def test_a_full_disk_is_said_and_nothing_stays(
    registry: RegistryServer, tmpfs: Callable[[str], Path], kilobytes: int
) -> None:
    disk = tmpfs(f"size={kilobytes}k")
    with pytest.raises(LossyError, match="disk is full"):
        download("mine", disk / "decoder")
    for kind in ("safetensors", "torch"):
        with pytest.raises(LossyError, match="disk is full"):
            export("mine", kind, disk / "decoder")
    assert list(disk.iterdir()) == []


def test_a_terminal_sees_a_bar(here: Workplace, registry: RegistryServer) -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    process = subprocess.Popen(
        here.command("download", "mine"),
        cwd=here.folder,
        env=environment(here, registry),
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
    )
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 4096):
            shown += chunk
    except OSError:  # so Linux says that the other end is closed
        pass
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert b"B/s" in shown
    assert out == f"models:/mine/1 is in {here.folder / 'mine-1'}, verified.\n"

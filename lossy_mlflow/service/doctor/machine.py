"""What this machine has: what is installed, the outbox, the folders, and variables in the environment that surprise."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lossy_mlflow.errors import LossyError, NotFoundError
from lossy_mlflow.service.doctor.report import Seen, State
from lossy_mlflow.service.folder import nearest_there

if TYPE_CHECKING:
    from lossy_mlflow.outbox.books import OutboxRun

_ROOM = 1e9
# What a program logs is with its server within seconds, if nothing is wrong.
_SOON_S = 60.0


def versions() -> Seen:
    installed = {name: importlib.metadata.version(name) for name in ("lossy-mlflow", "mlflow")}
    return Seen(
        State.OK,
        f"lossy-mlflow {installed['lossy-mlflow']}, MLflow {installed['mlflow']},"
        f" Python {platform.python_version()}, {platform.system()} {platform.machine()}",
    )


def outbox(uri: str) -> Seen:
    """What waits on this machine, for whichever server; `uri` is the one that MLFLOW_TRACKING_URI names."""
    from lossy_mlflow.outbox.address import outbox_root
    from lossy_mlflow.outbox.books import list_outbox
    from lossy_mlflow.outbox.claim import holder_lives, sender_file
    from lossy_mlflow.outbox.folder import server_folders

    root = outbox_root()
    _refuse_unwritable(root, "LOSSY_OUTBOX_DIR")
    runs = list_outbox()
    waiting = [run for run in runs if run.waiting]
    if not waiting:
        found = Seen(State.OK, f"nothing waits in {root}")
    else:
        servers = sorted({run.server for run in waiting})
        sending = all(
            holder_lives(sender_file(folder.path))
            for folder in server_folders(root)
            if folder.uri() in servers
        )
        oldest_s = max(run.oldest_s or 0.0 for run in waiting)
        said = f"{_what_waits(waiting, oldest_s)}; {'a' if sending else 'no'} sender is at work"
        if sending and oldest_s < _SOON_S:
            found = Seen(State.OK, said)
        else:
            found = Seen(State.WARN, said, _how_to_send(root, uri, servers, sending))
    if refused := sum(run.refused for run in runs):
        return Seen(
            State.WARN,
            f"{found.seen}; servers have refused {refused} values for good",
            f"{found.remedy}    What was refused, and why: lossy outbox status",
        )
    return found


def _what_waits(runs: Sequence[OutboxRun], oldest_s: float) -> str:
    since = time.strftime("%Y-%m-%d %H:%M", time.localtime(time.time() - oldest_s))
    why = next((f" ({run.error})" for run in runs if run.error), "")
    return (
        f"{sum(run.waiting for run in runs)} records of {len(runs)} runs wait for"
        f" {', '.join(sorted({run.server for run in runs}))}{why}, the oldest since {since}"
    )


def _how_to_send(root: Path, uri: str, servers: list[str], sending: bool) -> str:
    from lossy_mlflow.outbox.address import server_uri
    from lossy_mlflow.tracking.connection import is_server

    named = server_uri(uri) if is_server(uri) else ""
    if others := [server for server in servers if server != named]:
        return f"It goes when MLFLOW_TRACKING_URI={others[0]} is set, or: lossy outbox send {root} --to {others[0]}"
    if sending:
        return "It goes by itself when the server takes it; why it waits: lossy outbox status"
    return f"lossy outbox send {root}"


def data() -> Seen:
    from lossy_mlflow.data import data_folder
    from lossy_mlflow.data.catalogue import DATASETS

    folder = data_folder()
    fetched = {
        name: [_size(folder / dataset.home / file.name) == file.size for file in dataset.files]
        for name, dataset in DATASETS.items()
        if dataset.files
    }
    whole = [name for name, files in fetched.items() if all(files)]
    parts = [name for name, files in fetched.items() if any(files) and not all(files)]
    missing = [name for name, files in fetched.items() if not any(files)]
    said = f"{folder} has {', '.join(whole) or 'nothing yet'}"
    if parts:
        return Seen(State.WARN, f"{said}; of {', '.join(parts)} a part", f"lossy data fetch {parts[0]}")
    if not missing:
        return Seen(State.OK, said)
    # What is there is used from a folder that is only to be read as well.
    _refuse_unwritable(folder, "LOSSY_DATA_DIR")
    return _with_room(folder, f"{said} ({', '.join(missing)}: fetched when first needed)")


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else -1


def cache() -> Seen:
    from lossy_mlflow.checkpoints.load import cache_folder

    folder = cache_folder().absolute()
    _refuse_unwritable(folder, "LOSSY_CACHE_DIR")
    decoders = [path for path in (folder / "decoders").glob("*") if path.is_dir()]
    size = sum(file.stat().st_size for path in decoders for file in path.rglob("*") if file.is_file())
    return _with_room(folder, f"{folder} has {len(decoders)} decoders, {size / 1e6:.1f} MB")


def _with_room(folder: Path, said: str) -> Seen:
    room = room_of(folder)
    return Seen(room.state, f"{said}; {room.seen}", room.remedy)


def room_of(folder: Path) -> Seen:
    """That the folder can be written, and how much its disk has left."""
    free = shutil.disk_usage(nearest_there(folder)).free
    said = f"writable, {free / 1e9:.1f} GB free"
    return (
        Seen(State.OK, said) if free > _ROOM else Seen(State.WARN, said, f"Free some space: df -h {folder}")
    )


def _refuse_unwritable(folder: Path, variable: str) -> None:
    there = nearest_there(folder)
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        reason = "can't be written" if there.is_dir() else "is no folder"
        raise LossyError(f"{folder}: {there} {reason}", f"export {variable}=A_FOLDER_YOU_CAN_WRITE")


def environment() -> Seen:
    """Variables that name what isn't there, or that change more than whoever has set them may remember."""
    set_ = {name: value for name, value in os.environ.items() if value}
    for name in _FILES:
        if name in set_ and not Path(set_[name]).exists():
            raise NotFoundError(f"{name} names {set_[name]}, which isn't there", f"unset {name}")
    surprises = dict(_surprises(set_))
    if not surprises:
        return Seen(State.OK, "no variable that surprises")
    said = "; ".join(f"{name} is set: {why}" for name, why in surprises.items())
    return Seen(State.WARN, said, f"If that isn't meant: unset {' '.join(surprises)}")


_FILES = (
    "MLFLOW_TRACKING_SERVER_CERT_PATH",
    "MLFLOW_TRACKING_CLIENT_CERT_PATH",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
)
_LEFT_OVER = {
    "MLFLOW_RUN_ID": "what is logged goes into that run",
    "MLFLOW_EXPERIMENT_ID": "runs go into that experiment",
    "MLFLOW_EXPERIMENT_NAME": "runs go into that experiment",
    "MLFLOW_ALLOW_FILE_STORE": "MLflow keeps runs in folders, which lossy can't read",
}


def _surprises(set_: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    user, password = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"
    yield from ((name, why) for name, why in _LEFT_OVER.items() if name in set_)
    if set_.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1"):
        yield "MLFLOW_TRACKING_INSECURE_TLS", "nobody looks at the server's certificate"
    registry = set_.get("MLFLOW_REGISTRY_URI", "")
    if registry and registry != set_.get("MLFLOW_TRACKING_URI"):
        yield "MLFLOW_REGISTRY_URI", f"models go to {registry}, apart from their runs"
    if user in set_ and password in set_ and "MLFLOW_TRACKING_TOKEN" in set_:
        yield "MLFLOW_TRACKING_TOKEN", "a user and a password are set as well, and are sent instead"
    if (user in set_) != (password in set_):
        there, missing = (user, password) if user in set_ else (password, user)
        yield there, f"without {missing} nothing is sent, if ~/.mlflow/credentials doesn't have it"

"""What torch.save writes: the zip of torch 1.6 and later, and the stream of pickles before it."""

from __future__ import annotations

import zipfile
from io import BytesIO
from typing import Any

from lossy_mlflow.checkpoints.foreign.contents import UnreadableError, explained_format
from lossy_mlflow.checkpoints.foreign.numpy_scalar import NUMPY_NAMES
from lossy_mlflow.checkpoints.foreign.pickle_scan import storages
from lossy_mlflow.checkpoints.foreign.zip_file import open_zip, read_member

# The older format: a number by which it is known, the protocol, the writer's system, the object, the keys of its storages.
_PICKLES = 5
# As the older format begins: a pickle of protocol 2 that holds torch's number.
STREAM_START = bytes.fromhex("80028a0a6cfc9c46f920")


def data_pickle(names: list[str]) -> str | None:
    """The name of the pickle in a zip of torch's, by its members' names; None where it is no such zip."""
    found = [name for name in names if name.endswith("/data.pkl") and name.count("/") == 1]
    return found[0] if len(found) == 1 else None


def load_zip(content: bytes, what: str) -> Any:
    """The object in a file of torch 1.6 or later. Raises UnreadableError."""
    with open_zip(BytesIO(content), what) as opened:
        members = {member.filename: read_member(opened, member, what) for member in opened.infolist()}
    pickle = data_pickle(list(members))
    assert pickle is not None
    folder = pickle.removesuffix("data.pkl")
    with explained_format(what):
        for storage in storages(BytesIO(members[pickle]), what):
            record = members.get(f"{folder}data/{storage.key}")
            if record is None or len(record) != storage.n_bytes:
                has = "nothing" if record is None else f"{len(record):,}"
                raise _promises(what, f"{storage.n_bytes:,} bytes in data/{storage.key} and has {has}")
    # Packed anew, for torch to read what was looked at, whatever another reader of zips would have found in `content`.
    packed = BytesIO()
    with zipfile.ZipFile(packed, "w") as copy:
        for name, member in members.items():
            copy.writestr(name, member)
    return _load(packed, what)


def load_stream(content: bytes, what: str) -> Any:
    """The object in a file of torch before 1.6. Raises UnreadableError."""
    stream = BytesIO(content)
    with explained_format(what):
        found = {storage for _ in range(_PICKLES) for storage in storages(stream, what)}
    promised, rest = sum(storage.n_bytes for storage in found), len(content) - stream.tell()
    if promised > rest:
        raise _promises(what, f"{promised:,} bytes of numbers and has {rest:,}")
    return _load(BytesIO(content), what)


def _load(file: BytesIO, what: str) -> Any:
    import torch

    file.seek(0)
    with explained_format(what), torch.serialization.safe_globals(NUMPY_NAMES):
        # Tensors that a GPU has written come to the CPU.
        return torch.load(file, weights_only=True, map_location="cpu")


def _promises(what: str, said: str) -> UnreadableError:
    return UnreadableError(f"{what} promises {said}.", "It is cut short or damaged: fetch it again.")

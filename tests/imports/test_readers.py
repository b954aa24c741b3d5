"""What a file is taken for: sound ones give their tensors, all others an error of ours, before anything is believed or run."""

from __future__ import annotations

import io
import os
import pickle
import struct
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save as save_safetensors

from lossy_mlflow.checkpoints.foreign.archive import open_archive
from lossy_mlflow.checkpoints.foreign.contents import UnreadableError
from lossy_mlflow.checkpoints.foreign.read import read_checkpoint
from lossy_mlflow.errors import LossyError

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(7)}


def torch_bytes(content: Any, new_zip: bool = True) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=new_zip)
    return file.getvalue()


def numpy_bytes(save: Callable[..., None] = np.savez, **arrays: Any) -> bytes:
    file = io.BytesIO()
    save(file, **arrays)
    return file.getvalue()


def zip_bytes(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w", method) as packed:
        warnings.simplefilter("ignore")
        for name, content in members.items():
            packed.writestr(name, content)
    return file.getvalue()


def repacked(content: bytes, change: Callable[[str, bytes], bytes | None]) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as packed:
        changed = {name: change(name, packed.read(name)) for name in packed.namelist()}
    return zip_bytes({name: member for name, member in changed.items() if member is not None})


SOUND = {
    "torch": torch_bytes(TENSORS),
    "torch before 1.6": torch_bytes(TENSORS, new_zip=False),
    "torch, with more": torch_bytes({"state_dict": TENSORS, "optimizer": None, "note": "x"}),
    "safetensors": save_safetensors(TENSORS),
    "numpy": numpy_bytes(**{name: tensor.numpy() for name, tensor in TENSORS.items()}),
    "numpy, packed": numpy_bytes(np.savez_compressed, **{n: tensor.numpy() for n, tensor in TENSORS.items()}),
    "numpy, of another byte order": numpy_bytes(
        **{"a.weight": TENSORS["a.weight"].numpy().astype(">f4"), "b": 7}
    ),
}


@pytest.mark.parametrize("content", SOUND.values(), ids=SOUND)
def test_a_sound_file_gives_its_tensors(content: bytes) -> None:
    found = read_checkpoint(content, "it").tensors
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert torch.equal(found[name].to(tensor.dtype), tensor)


@pytest.mark.parametrize("new_zip", [True, False])
def test_the_epoch_and_the_last_loss_are_read(new_zip: bool) -> None:
    wrapped = {"state_dict": TENSORS, "global_epoch": 12, "test_loss_list": [3.0, 2.5]}
    found = read_checkpoint(torch_bytes(wrapped, new_zip), "it")
    assert (found.epoch, found.val_loss) == (12, 2.5)
    for losses in ([], [float("nan")], None, "x"):
        odd = read_checkpoint(
            torch_bytes({**wrapped, "test_loss_list": losses, "global_epoch": -1}, new_zip), "it"
        )
        assert (odd.epoch, odd.val_loss) == (None, None)


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.int64])
def test_numbers_of_numpy_are_numbers(kind: type) -> None:
    """They are what the published code's losses are, pickled by one numpy or another."""
    content = torch_bytes({"state_dict": TENSORS, "test_loss_list": [kind(3), kind(2)]})
    old = repacked(
        content, lambda _, member: member.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    )
    assert content != old
    for file in (
        content,
        old,
        torch_bytes({"state_dict": TENSORS, "test_loss_list": [kind(2)]}, new_zip=False),
    ):
        assert read_checkpoint(file, "it").val_loss == 2.0


def test_what_numpy_makes_besides_numbers_is_refused() -> None:
    for value in (np.str_("x" * 1000), np.datetime64("2020-01-01"), np.void(b"x")):
        with pytest.raises(UnreadableError):
            read_checkpoint(torch_bytes({"state_dict": TENSORS, "note": value}), "it")


def test_tensors_of_a_gpu_come_to_the_cpu() -> None:
    """What torch writes there differs in the device's name alone."""

    def on_gpu(name: str, member: bytes) -> bytes:
        return (
            member.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
            if name.endswith("data.pkl")
            else member
        )

    content = repacked(SOUND["torch"], on_gpu)
    assert b"cuda:0" in content
    assert torch.equal(read_checkpoint(content, "it").tensors["a.weight"], TENSORS["a.weight"])


class _Touches:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("disguise", ["pickle", "torch", "torch before 1.6", "numpy", "protocol 0"])
def test_a_pickle_in_disguise_is_not_run(tmp_path: Path, disguise: str) -> None:
    evil, trap = tmp_path / "it-ran", None
    trap = _Touches(evil)
    content = {
        "pickle": lambda: pickle.dumps(trap),
        "torch": lambda: torch_bytes({"state_dict": {"a": trap}}),
        "torch before 1.6": lambda: torch_bytes({"a": trap}, new_zip=False),
        "numpy": lambda: numpy_bytes(a=np.array([trap], dtype=object)),
        "protocol 0": lambda: pickle.dumps(trap, 0),
    }[disguise]()
    with pytest.raises(UnreadableError):
        read_checkpoint(content, "it")
    assert not evil.exists()


class _Asks:
    def __reduce__(self) -> Any:
        return bytearray, (3 * 10**9,)


def test_a_pickle_that_asks_for_memory_gets_none() -> None:
    """torch.load(weights_only=True) would give it these 3 GB."""
    asks = pickle.dumps({"a": _Asks()}, 2)
    content = repacked(SOUND["torch"], lambda name, member: asks if name.endswith("data.pkl") else member)
    tracemalloc.start()
    try:
        with pytest.raises(UnreadableError, match=r"asks for __builtin__\.bytearray"):
            read_checkpoint(content, "it")
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()


def test_what_a_pickle_asks_for_is_named() -> None:
    with pytest.raises(
        UnreadableError, match=r"asks for torch.nn.modules.linear.Linear: it is not run"
    ) as refused:
        read_checkpoint(torch_bytes(torch.nn.Linear(2, 2)), "it")
    assert "state_dict" in refused.value.hint


def _longer_record(content: bytes) -> bytes:
    """Its pickle says that a's storage has 60 numbers instead of 6."""
    return repacked(
        content,
        lambda name, member: (
            member.replace(b"cpuq\x06K\x06tq", b"cpuq\x06K\x3ctq") if name.endswith("data.pkl") else member
        ),
    )


def _huge_npy(member: bytes) -> bytes:
    return member.replace(b"(2, 3), }" + b" " * 10, b"(50000, 50000), }" + b" " * 2)


def _bomb() -> bytes:
    """Its list of members says that 100 bytes of a member unpack to 10 GB."""
    content = zip_bytes({"a.npy": b"x" * 5000}, zipfile.ZIP_DEFLATED)
    place = content.index(b"PK\x01\x02") + 24
    return content[:place] + struct.pack("<I", 4_000_000_000) + content[place + 4 :]


DISHONEST = {
    "a storage that is shorter than said": (_longer_record(SOUND["torch"]), "promises 240 bytes"),
    "the same before torch 1.6": (
        SOUND["torch before 1.6"].replace(b"K\x06Ntq", b"J\xff\xff\xff\x7fNtq"),
        r"promises 8,589,934,\d+ bytes",
    ),
    "an array of 10 GB": (
        repacked(SOUND["numpy"], lambda _, member: _huge_npy(member)),
        "promises 10,000,000,000 bytes",
    ),
    "a bomb": (_bomb(), "promises 4,000,000,000 bytes"),
    "a safetensors header of 10 GB": (
        struct.pack("<Q", 70) + b'{"a":{"dtype":"F32","shape":[50000,50000],"data_offsets":[0,10000000000]}}',
        "can't be read",
    ),
    "a tensor that is spread": (
        torch_bytes({"a": torch.zeros(1).expand(10**6, 10**6)}),
        "promises 1,000,000,000,000",
    ),
}


@pytest.mark.parametrize(("content", "says"), DISHONEST.values(), ids=DISHONEST)
def test_what_promises_more_than_it_has_is_refused_before_room_is_made(content: bytes, says: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(UnreadableError, match=says):
            read_checkpoint(content, "it")
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()


ODD = {
    "nothing": (b"", "is empty"),
    "text": (b"hello", "no format that is known"),
    "a zip of something": (zip_bytes({"a.txt": b"x"}), "neither torch's nor numpy's"),
    "a number": (torch_bytes(3), "holds a int"),
    "no tensors": (torch_bytes({}), "no tensors"),
    "a list among them": (torch_bytes({"a": [1, 2]}), "under 'a' a list"),
    "complex numbers": (
        torch_bytes({"a": torch.zeros(2, dtype=torch.complex64)}),
        "ComplexFloatStorage|way that torch",
    ),
    "text in an array": (numpy_bytes(a=np.array(["x"])), "not numbers"),
    "a name twice": (zip_bytes({"a.npy": b"", "../b.npy": b""}), "outside"),
}


@pytest.mark.parametrize(("content", "says"), ODD.values(), ids=ODD)
def test_what_is_no_checkpoint_says_what_it_is(content: bytes, says: str) -> None:
    with pytest.raises(UnreadableError, match=says):
        read_checkpoint(content, "it")


@pytest.mark.parametrize("kind", SOUND)
def test_a_file_cut_short_is_refused_wherever_it_is_cut(kind: str) -> None:
    content = SOUND[kind]
    for length in {0, 3, 9, *range(20, len(content), 37), len(content) - 1}:
        with pytest.raises(UnreadableError):
            read_checkpoint(content[:length], "it")


@pytest.mark.parametrize(
    "name", ["../out.pth", "/out.pth", "a/../../out.pth", "C:/out.pth", "a\\..\\out.pth"]
)
def test_a_zip_that_leads_outside_is_refused_as_a_whole(tmp_path: Path, name: str) -> None:
    archive = tmp_path / "in" / "archive.zip"
    archive.parent.mkdir()
    archive.write_bytes(zip_bytes({"checkpoints/a/best.pth": SOUND["torch"], name: b"x"}))
    with pytest.raises(UnreadableError, match="would write outside its folder"), open_archive(archive):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_zip_with_a_link_or_a_name_twice_is_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("checkpoints/a/best.pth")
    link.external_attr = 0o120777 << 16
    linked, doubled = tmp_path / "linked.zip", tmp_path / "doubled.zip"
    with zipfile.ZipFile(linked, "w") as packed:
        packed.writestr(link, "/etc/passwd")
    with warnings.catch_warnings(), zipfile.ZipFile(doubled, "w") as packed:
        warnings.simplefilter("ignore")
        packed.writestr("a", "1")
        packed.writestr("a", "2")
    for path, says in ((linked, "symbolic link"), (doubled, "twice")):
        with pytest.raises(LossyError, match=says), open_archive(path):
            pass

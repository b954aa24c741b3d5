"""A look through a pickle of torch's without running it: what it asks for, and how many bytes it says its tensors have.

torch.load(weights_only=True) runs no code of a file's. But a file of a hundred bytes may call bytearray(10**10) by it, and in
the older format memory is made for whatever a file says it has. So a file may ask here for no more than a dict of tensors needs,
and what it says is compared with what there is, whatever the torch that is installed compares.
"""

from __future__ import annotations

import pickletools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

from lossy_mlflow.checkpoints.foreign.contents import UnreadableError

_ITEM_BYTES = {
    "torch DoubleStorage": 8,
    "torch FloatStorage": 4,
    "torch HalfStorage": 2,
    "torch BFloat16Storage": 2,
    "torch LongStorage": 8,
    "torch IntStorage": 4,
    "torch ShortStorage": 2,
    "torch CharStorage": 1,
    "torch ByteStorage": 1,
    "torch BoolStorage": 1,
}
_ALLOWED = _ITEM_BYTES.keys() | {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    # Numbers of numpy's, and the bytes in them: see numpy_scalar.
    "numpy dtype",
    "numpy.core.multiarray scalar",
    "numpy._core.multiarray scalar",
    "_codecs encode",
}
# Other ways to name what a pickle calls; a file of torch's has none of them.
_OTHER_CALLS = {"INST", "OBJ", "STACK_GLOBAL", "EXT1", "EXT2", "EXT4", "PERSID", "NEWOBJ_EX", "BYTEARRAY8"}
_STORES = {"PUT", "BINPUT", "LONG_BINPUT"}
_FETCHES = {"GET", "BINGET", "LONG_BINGET"}
_CONSTANTS = {"BINUNICODE", "UNICODE", "BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1"}
_UNKNOWN = object()


@dataclass(frozen=True, slots=True)
class Storage:
    """A block of numbers that the pickle refers to: the name under which the file holds it, and the bytes it says it has."""

    key: str
    n_bytes: int


@dataclass(frozen=True, slots=True)
class _Global:
    name: str


def storages(pickle: IO[bytes], what: str) -> list[Storage]:
    """The blocks that the pickle refers to, which begins where `pickle` stands; it stands behind it afterwards.

    Raises UnreadableError where the pickle asks for anything but tensors, dicts, lists and plain values, and where it refers to a
    block in a form that torch doesn't write; whatever pickletools raises where it isn't a pickle.
    """
    return list(_storages(pickle, what))


def _storages(pickle: IO[bytes], what: str) -> Iterator[Storage]:
    # What has been pushed since the last mark, as far as it is known: enough for the one form that matters.
    pushed: list[Any] = []
    memo: dict[object, Any] = {}
    for opcode, argument, _ in pickletools.genops(pickle):
        name = opcode.name
        if name == "GLOBAL":
            if argument not in _ALLOWED:
                raise UnreadableError(
                    f"{what} is a pickle that asks for {str(argument).replace(' ', '.')}: it is not run here.",
                    "Save a dict of tensors there: torch.save(model.state_dict(), FILE), or as safetensors.",
                )
            pushed.append(_Global(str(argument)))
        elif name in _OTHER_CALLS:
            raise UnreadableError(
                f"{what} is a pickle that torch hasn't written ({name}): it is not run here."
            )
        elif name == "MARK":
            pushed = []
        elif name in _CONSTANTS:
            pushed.append(argument)
        elif name == "NONE":
            pushed.append(None)
        elif name in _STORES:
            memo[argument] = pushed[-1] if pushed else _UNKNOWN
        elif name in _FETCHES:
            pushed.append(memo.get(argument, _UNKNOWN))
        elif name == "TUPLE":
            pushed = [tuple(pushed)]
        elif name == "BINPERSID":
            yield _storage(pushed[-1] if pushed else None, what)
            pushed[-1] = _UNKNOWN
        elif name not in ("PROTO", "STOP"):
            pushed.append(_UNKNOWN)


def _storage(reference: object, what: str) -> Storage:
    # ("storage", type, key, device, count), and None as sixth in the format before torch 1.6.
    if isinstance(reference, tuple) and len(reference) in (5, 6) and not any(reference[5:]):
        word, kind, key, device, count = reference[:5]
        plain = isinstance(key, str) and isinstance(device, str) and type(count) is int and count >= 0
        if word == "storage" and isinstance(kind, _Global) and kind.name in _ITEM_BYTES and plain:
            return Storage(key, count * _ITEM_BYTES[kind.name])
    raise UnreadableError(f"{what} refers to its numbers in a way that torch doesn't write.")

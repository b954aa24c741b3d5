"""The list of files, as it is written and read, whatever the files are called."""

from __future__ import annotations

import gzip

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lossy_mlflow.errors import ConflictError, LossyError
from lossy_mlflow.service.archive import Known
from lossy_mlflow.service.manifest import (
    Digest,
    Entry,
    Manifest,
    Source,
    decode_manifest,
    decode_part,
    encode_manifest,
    encode_part,
)

# Names of a disk too, which need not be text: Python has such bytes as lone surrogates.
NAMES = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.binary().map(lambda name: name.decode(errors="surrogateescape")),
)
ENTRIES = st.lists(
    st.builds(
        Entry,
        NAMES,
        NAMES,
        st.integers(0, 1 << 60),
        st.text("0123456789abcdef"),
        st.text(st.characters(exclude_categories=["Cs"])),
    )
)


@given(ENTRIES)
def test_a_part_is_read_as_it_was_written(entries: list[Entry]) -> None:
    assert decode_part(encode_part(entries), "part") == entries


@given(ENTRIES, st.data())
def test_a_damaged_part_is_told_or_the_same(entries: list[Entry], data: st.DataObject) -> None:
    whole = encode_part(entries)
    place = data.draw(st.integers(0, len(whole) - 1))
    damaged = bytearray(whole)
    damaged[place] ^= data.draw(st.integers(1, 255))
    for wrong in (bytes(damaged), whole[:place]):
        try:
            found = decode_part(wrong, "part")
        except LossyError:
            continue
        # Some bits of gzip's head mean nothing; the digest of the part is compared besides.
        assert found == entries or place < 10 or found == []


@given(ENTRIES)
def test_what_is_known_of_a_file_is_its_last_entry(entries: list[Entry]) -> None:
    known = Known()
    known.add_files(entries)
    last = {(entry.root, entry.path): entry for entry in entries}
    for (root, path), entry in last.items():
        assert known.file(root, path) == entry
    assert known.file("no root", "no path") is None
    known.close()


def test_a_manifest_is_read_as_it_was_written() -> None:
    source = Source("sqlite:////a.db", "sqlite:////a.db", "/artifacts", {"tracking": "sqlite"})
    digest = Digest("tracking.dump", 3, "ab")
    manifest = Manifest(
        "20260101T000000Z", 1.5, 2.5, source, {"tracking": digest}, {"alembic_version": None}, [digest],
        1, 2, 3, 4, 5, ["x"], ["y"], 6, {"mlflow": "3"},
    )  # fmt: skip
    data = encode_manifest(manifest)
    assert decode_manifest(data, "here") == manifest
    with pytest.raises(ConflictError, match="newer version"):
        decode_manifest(data.replace(b'"format": 1', b'"format": 2'), "here")
    for wrong in (b"", b"[]", b"{}", data[:-20], gzip.compress(data)):
        with pytest.raises(LossyError, match="here is damaged"):
            decode_manifest(wrong, "here")

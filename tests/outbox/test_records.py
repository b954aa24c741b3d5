"""A journal's lines: every value comes back, what is torn or damaged costs nothing else, and many writers add up to one run."""

from __future__ import annotations

import datetime
import random
import zlib
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lossy_mlflow.outbox.records import Record, RunView, decode, encode, fold

KINDS = ["params", "metrics", "tags", "delete_tag", "state", "inputs", "outputs", "artifact", "closed"]

# A high surrogate before a low one is one character to JSON: the two come back as that character, which is the same text.
text = st.text(st.characters(exclude_categories=())).filter(
    lambda value: value == value.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
)
plain = st.none() | st.booleans() | st.integers() | st.floats() | text
content = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4), max_leaves=12
)
records = st.builds(
    Record, st.integers(min_value=0, max_value=2**63), st.sampled_from(KINDS), content=content
)


def test_the_strategy_has_lone_surrogates() -> None:
    """Else the round trip would say less than it seems to."""
    values = [Record(1, "tags", [["\ud800", "\udfff x"]]), Record(2, "delete_tag", "\x00\u2028")]
    assert [record for _, record in decode(b"".join(map(encode, values))).records] == values


# As text: NaN is equal to NaN, -0.0 isn't 0.0, and True isn't 1.
def _same(found: list[Record], written: list[Record]) -> bool:
    return repr(found) == repr(written)


@given(st.lists(records, max_size=6), st.integers(min_value=0, max_value=2**40))
def test_every_record_comes_back(written: list[Record], offset: int) -> None:
    lines = [encode(record) for record in written]
    data = b"".join(lines)
    assert data.count(b"\n") == len(lines)
    read = decode(data, offset)
    assert _same([record for _, record in read.records], written)
    ends = [offset + len(b"".join(lines[: place + 1])) for place in range(len(lines))]
    assert [end for end, _ in read.records] == ends
    assert (read.end, read.damaged) == (offset + len(data), 0)


@given(st.lists(records, min_size=1, max_size=5), st.data())
def test_reading_may_stop_and_go_on_at_any_byte(written: list[Record], data: st.DataObject) -> None:
    """A truncation leaves the whole records before it; `end` is where the next reading finds the rest, none twice."""
    lines = [encode(record) for record in written]
    journal = b"".join(lines)
    cut = data.draw(st.integers(0, len(journal)))
    whole = journal[:cut].count(b"\n")
    first = decode(journal[:cut], 1000)
    assert _same([record for _, record in first.records], written[:whole])
    assert (first.end, first.damaged) == (1000 + len(b"".join(lines[:whole])), 0)
    rest = decode(journal[first.end - 1000 :], first.end)
    assert _same([record for _, record in rest.records], written[whole:])
    assert rest.end == 1000 + len(journal)


@given(st.lists(records, min_size=1, max_size=5), st.data())
def test_a_flipped_byte_costs_its_line_only(written: list[Record], data: st.DataObject) -> None:
    lines = [encode(record) for record in written]
    hit = data.draw(st.integers(0, len(lines) - 1))
    place = data.draw(st.integers(0, len(lines[hit]) - 2))
    byte = data.draw(st.integers(0, 255).filter(lambda value: value not in (lines[hit][place], ord("\n"))))
    lines[hit] = lines[hit][:place] + bytes([byte]) + lines[hit][place + 1 :]
    read = decode(b"".join(lines))
    assert _same([record for _, record in read.records], written[:hit] + written[hit + 1 :])
    assert (read.end, read.damaged) == (len(b"".join(lines)), 1)


@pytest.mark.parametrize("newline", ["lost", "made"])
def test_a_damaged_newline_costs_the_lines_that_it_touches(newline: str) -> None:
    lines = [encode(Record(time, "tags", [["a", str(time)]])) for time in range(4)]
    if newline == "lost":  # the second line and the third have become one
        lines[1] = lines[1][:-1] + b"x"
    else:  # the second line has become two
        lines[1] = lines[1][:12] + b"\n" + lines[1][13:]
    read = decode(b"".join(lines))
    assert [record.time for _, record in read.records] == ([0, 3] if newline == "lost" else [0, 2, 3])
    assert read.damaged == (1 if newline == "lost" else 2)
    assert read.end == len(b"".join(lines))


@given(st.binary(max_size=200), st.integers(min_value=0, max_value=1000))
def test_garbage_is_counted_and_never_raises(data: bytes, offset: int) -> None:
    read = decode(data, offset)
    assert read.end == offset + data.rfind(b"\n") + 1
    assert read.damaged + len(read.records) == data.count(b"\n")


class _Odd:
    def __str__(self) -> str:
        return "odd"


class _Silent:
    def __repr__(self) -> str:
        raise RuntimeError("says nothing")


def _circle() -> list[Any]:
    made: list[Any] = [1]
    made.append(made)
    return made


def _deep(levels: int) -> list[Any]:
    made: list[Any] = []
    for _ in range(levels):
        made = [made]
    return made


@pytest.mark.parametrize(
    ("value", "becomes"),
    [
        (_Odd(), "odd"),
        (Decimal("1.5"), "1.5"),
        (datetime.date(2024, 5, 6), "2024-05-06"),
        (b"\xff", "b'\\xff'"),
        ({1}, "{1}"),
        ((1, "two"), [1, "two"]),
        ({3: "three"}, {"3": "three"}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_json_has_no_form_for_becomes_text(value: Any, becomes: Any) -> None:
    ((_, record),) = decode(encode(Record(7, "metrics", [["loss", value, 1, 2]]))).records
    assert record == Record(7, "metrics", [["loss", becomes, 1, 2]])


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(10**5000, id="an int with more digits than Python writes"),
        pytest.param({(1, 2): "x"}, id="a key that is no text"),
        pytest.param({_Odd(): 1}, id="a key that is an object"),
        pytest.param(_circle(), id="a list that holds itself"),
        pytest.param(_deep(100_000), id="deeper than Python goes"),
        pytest.param(_Silent(), id="an object that can't say what it is"),
    ],
)
def test_nothing_that_is_logged_makes_it_raise(value: Any) -> None:
    before, after = Record(1, "tags", [["a", "b"]]), Record(3, "tags", [["c", "d"]])
    journal = encode(before) + encode(Record(2, "metrics", [["loss", value, 1, 2]])) + encode(after)
    read = decode(journal)
    assert read.damaged == 0
    (_, first), (_, odd), (_, last) = read.records
    assert (first, last) == (before, after)
    assert (odd.time, odd.kind) == (2, "metrics")
    # The batch is still a batch, and its other values are what they were: only the odd one is text.
    ((key, as_text, *rest),) = odd.content
    assert (key, rest) == ("loss", [1, 2])
    assert as_text


@pytest.mark.parametrize("body", [b"5", b"null", b"[1]", b"{}", b"[" * 100_000, b"not json", b"\xff"])
def test_a_whole_line_that_is_no_record_is_counted(body: bytes) -> None:
    """Its checksum is right: another program, or another version, has written it."""
    read = decode(b"%08x %b\n" % (zlib.crc32(body), body) + encode(Record(1, "closed", None)))
    assert [record for _, record in read.records] == [Record(1, "closed", None)]
    assert read.damaged == 1


# fold: what many writers say adds up

OWNERS = ("boot.1.10.100", "boot.1.20.200", "other.1.10.100")
keys = st.sampled_from("abc")


def _contents() -> st.SearchStrategy[tuple[str, Any]]:
    pairs = st.lists(st.tuples(keys, st.integers(0, 9).map(str)).map(list), min_size=1, max_size=3)
    point = st.tuples(keys, st.floats(allow_nan=False), st.integers(0, 5), st.integers(0, 5)).map(list)
    state = st.fixed_dictionaries(
        {"status": st.sampled_from(["RUNNING", "FINISHED", "FAILED", None])},
        optional={"end_time": st.integers(1, 9), "run_name": st.sampled_from(["one", "two", None])},
    )
    return st.one_of(
        st.tuples(st.just("params"), pairs),
        st.tuples(st.just("tags"), pairs),
        st.tuples(st.just("delete_tag"), keys),
        st.tuples(st.just("metrics"), st.lists(point, min_size=1, max_size=3)),
        st.tuples(st.just("artifact"), st.fixed_dictionaries({"path": keys, "file": st.text("xyz")})),
        st.tuples(st.just("state"), state),
        st.tuples(st.just("closed"), st.none()),
        st.tuples(st.just("inputs"), st.just({"datasets": []})),
    )


histories = st.lists(st.tuples(st.sampled_from(OWNERS), _contents()), max_size=25).map(
    lambda entries: [
        (owner, Record(10 * time, kind, content)) for time, (owner, (kind, content)) in enumerate(entries)
    ]
)


def _contents_of(history: list[tuple[str, Record]], kind: str) -> Iterator[tuple[str, Any]]:
    return ((owner, record.content) for owner, record in history if record.kind == kind)


@given(histories, st.randoms(use_true_random=False))
def test_the_order_in_which_segments_are_read_does_not_matter(
    history: list[tuple[str, Record]], shuffled: random.Random
) -> None:
    expected = fold(history)
    mixed = list(history)
    shuffled.shuffle(mixed)
    assert fold(mixed) == expected


@given(histories)
def test_a_view_is_what_was_said(history: list[tuple[str, Record]]) -> None:
    """Told again the long way round, word by word."""
    view = fold(history)
    params: dict[str, str] = {}
    for _, pairs in _contents_of(history, "params"):
        for key, value in pairs:
            if key not in params:
                params[key] = value
    assert view.params == params

    points = [point for _, batch in _contents_of(history, "metrics") for point in batch]
    for key in {key for key, *_ in points}:
        # Python's max takes the first of equals: the last one of them holds.
        best = max(reversed([p for p in points if p[0] == key]), key=lambda point: (point[3], point[2]))
        assert view.metrics[key] == (best[3], best[2], best[1])
    assert set(view.metrics) == {key for key, *_ in points}

    for key in "abc":
        words = [
            value
            for _, record in history
            for value in (
                [value for name, value in record.content if name == key]
                if record.kind == "tags"
                else [None] * (record.kind == "delete_tag" and record.content == key)
            )
        ]
        assert view.tags.get(key) == (words[-1] if words else None)
        assert (key in view.deleted_tags) == (bool(words) and words[-1] is None)

    assert view.artifacts == {content["path"]: content for _, content in _contents_of(history, "artifact")}
    assert view.closed == {owner for owner, _ in _contents_of(history, "closed")}
    states = list(_contents_of(history, "state"))
    said = [state for _, state in states if state["status"]]
    assert view.status == (said[-1]["status"] if said else "")
    assert view.end_time == (said[-1].get("end_time") if said else None)
    running = [owner for owner, state in states if state["status"] == "RUNNING"]
    assert view.state_owner == (running[-1] if running else "")
    named = [state["run_name"] for _, state in states if state.get("run_name")]
    assert view.run_name == (named[-1] if named else "")


def test_words_about_one_thing() -> None:
    """A resumed run: the second process says RUNNING after the first one was taken for dead and closed."""
    first, second = OWNERS[:2]
    view = fold(
        [
            (first, Record(1, "state", {"status": "RUNNING"})),
            (first, Record(2, "params", [["lr", "1e-3"]])),
            (first, Record(3, "metrics", [["loss", 0.5, 3, 10], ["loss", 0.1, 3, 2]])),
            (second, Record(4, "state", {"status": "FAILED", "end_time": 4})),
            (second, Record(5, "tags", [["colour", "red"], ["gone", "soon"]])),
            (second, Record(6, "delete_tag", "gone")),
            (second, Record(7, "state", {"status": "RUNNING"})),
            (second, Record(8, "params", [["lr", "1e-4"], ["z", "10"]])),
            (first, Record(9, "tags", [["colour", "green"]])),
            (first, Record(10, "closed", None)),
        ]
    )
    assert view == RunView(
        params={"lr": "1e-3", "z": "10"},
        tags={"colour": "green"},
        deleted_tags={"gone"},
        metrics={"loss": (10, 3, 0.5)},
        artifacts={},
        status="RUNNING",
        end_time=None,
        state_owner=second,
        closed=frozenset({first}),
    )


def test_nothing_said_is_nothing_known() -> None:
    assert fold([]) == RunView({}, {}, set(), {}, {})


def test_a_metric_that_is_nan_holds_like_any_other() -> None:
    view = fold(
        [
            (OWNERS[0], Record(1, "metrics", [["loss", 0.5, 1, 1]])),
            (OWNERS[0], Record(2, "metrics", [["loss", float("nan"), 2, 2]])),
        ]
    )
    step, timestamp, value = view.metrics["loss"]
    assert (step, timestamp) == (2, 2)
    assert value != value

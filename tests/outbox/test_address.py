"""Which server an URI means, under which name its outbox lies, and where; no password comes into any of the three."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lossy_mlflow.errors import UsageError
from lossy_mlflow.outbox.address import credentials_in, outbox_root, server_uri, short_name


@pytest.mark.parametrize(
    ("uri", "server"),
    [
        ("outbox+http://host:5000", "http://host:5000"),
        ("http://host:5000", "http://host:5000"),
        ("outbox+https://host/", "https://host"),
        ("outbox+https://host/mlflow/", "https://host/mlflow"),
        ("outbox+http://user:secret@host:5000/a", "http://host:5000/a"),
        ("http://user@host", "http://host"),
        ("http://us%40er:p%40ss@host", "http://host"),
        ("http://user:p@ss@host", "http://host"),
        ("http://:secret@host", "http://host"),
        ("outbox+http://user:secret@[::1]:5000", "http://[::1]:5000"),
        ("", ""),
    ],
)
def test_the_plain_address(uri: str, server: str) -> None:
    assert server_uri(uri) == server
    assert server_uri(server) == server


@pytest.mark.parametrize(
    ("uri", "username", "password"),
    [
        ("outbox+http://user:secret@host", "user", "secret"),
        ("http://us%40er:p%3A%2Fss@host:1/path", "us@er", "p:/ss"),
        ("http://user:p@ss@host", "user", "p@ss"),
        ("http://user@host", "user", None),
        ("http://:secret@host", None, "secret"),
        ("http://user:@host", "user", None),
        ("http://host", None, None),
    ],
)
def test_the_credentials_go_to_the_variables_that_mlflow_reads(
    uri: str, username: str | None, password: str | None
) -> None:
    expected = {"MLFLOW_TRACKING_USERNAME": username, "MLFLOW_TRACKING_PASSWORD": password}
    # What isn't named is left out: an empty variable would hide the user's own.
    assert credentials_in(uri) == {name: value for name, value in expected.items() if value is not None}


words = st.text(min_size=1, max_size=12)


@given(words, words)
def test_any_user_and_password_are_kept_and_kept_out(username: str, password: str) -> None:
    uri = f"outbox+http://{quote(username, safe='')}:{quote(password, safe='')}@host:5000/path"
    assert credentials_in(uri) == {
        "MLFLOW_TRACKING_USERNAME": username,
        "MLFLOW_TRACKING_PASSWORD": password,
    }
    assert server_uri(uri) == "http://host:5000/path"
    assert short_name(uri) == short_name("http://host:5000/path")


DISTINCT = [
    "http://host",
    "https://host",
    "http://host:5000",
    "http://host:5001",
    "http://host/5000",
    "http://host_5000",
    "http://host.domain",
    "http://host/a",
    "http://host/b",
    "http://[::1]:5000",
    "http://[::2]:5000",
    "http://" + 80 * "a",
    "http://" + 81 * "a",
]


def test_every_server_has_a_folder_of_its_own() -> None:
    assert len({short_name(uri) for uri in DISTINCT}) == len(DISTINCT)


@pytest.mark.parametrize("uri", DISTINCT)
def test_a_folder_name_is_one_and_can_be_read(uri: str) -> None:
    name = short_name(uri)
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,80}", name)
    assert name not in (".", "..")
    same = [f"outbox+{uri}", f"{uri}/", uri.replace("://", "://user:secret@")]
    assert {short_name(other) for other in same} == {name}


def test_the_host_can_be_seen_in_it() -> None:
    assert short_name("outbox+https://u:p@mlflow.example.org:5000/x").startswith("mlflow.example.org_5000-")


@given(words)
def test_no_address_leads_out_of_the_outbox(path: str) -> None:
    name = short_name(f"http://host/{quote(path)}")
    assert "/" not in name
    assert Path(name).name == name


@pytest.mark.parametrize(
    ("named", "expected"),
    [("/somewhere/else", "/somewhere/else"), ("here", "{folder}/here"), ("~/mine", "{folder}/home/mine")],
)
def test_the_variable_says_where(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, named: str, expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LOSSY_OUTBOX_DIR", named)
    assert outbox_root() == Path(expected.format(folder=tmp_path))


@pytest.mark.parametrize("named", [None, ""])
def test_without_the_variable_it_is_the_state_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, named: str | None
) -> None:
    if named is None:
        monkeypatch.delenv("LOSSY_OUTBOX_DIR", raising=False)
    else:
        monkeypatch.setenv("LOSSY_OUTBOX_DIR", named)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    root = outbox_root()
    assert root.is_absolute()
    assert root.name == "outbox"
    assert root.is_relative_to(tmp_path)
    # A restart empties a temporary folder, and what waits in it would be gone.
    assert not root.is_relative_to(tmp_path / "temporary")


@pytest.mark.parametrize(
    "uri",
    [
        "http://user:pa/ss@host",
        "http://user:pa?ss@host",
        "outbox+http://user:pa#ss@host",
        "http://user:12/x@host",
    ],
)
def test_an_address_that_would_give_away_a_part_of_its_password_is_refused(uri: str) -> None:
    with pytest.raises(UsageError, match="can't be told") as raised:
        server_uri(uri)
    assert "pa" not in str(raised.value).replace("password", "")
    assert "MLFLOW_TRACKING_PASSWORD" in raised.value.hint

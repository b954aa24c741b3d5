from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lossy_mlflow.errors import ConflictError, UsageError
from lossy_mlflow.service.alone import alone
from lossy_mlflow.service.locations import folder_of, path_in_store
from lossy_mlflow.service.stores import Stores, apart_from_password, stores_of


def test_what_mlflow_server_takes_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_BACKEND_STORE_URI", "MLFLOW_ARTIFACTS_DESTINATION", "MLFLOW_AUTH_CONFIG_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    found = stores_of()
    assert found == Stores(
        f"sqlite:///{tmp_path}/mlflow.db", f"sqlite:///{tmp_path}/mlflow.db", f"{tmp_path}/mlartifacts"
    )
    assert found.databases == {"tracking": found.database}
    monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", "postgresql://u:secret@h/d")
    monkeypatch.setenv("MLFLOW_ARTIFACTS_DESTINATION", "s3://bucket/path/")
    found = stores_of()
    assert (found.database, found.artifacts) == ("postgresql://u:secret@h/d", "s3://bucket/path")
    assert "secret" not in str(found)
    config = tmp_path / "auth.ini"
    config.write_text("[mlflow]\ndatabase_uri = sqlite:///users.db\n")
    monkeypatch.setenv("MLFLOW_AUTH_CONFIG_PATH", str(config))
    assert stores_of().databases == {
        "tracking": "postgresql://u:secret@h/d",
        "users": f"sqlite:///{tmp_path}/users.db",
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["postgresql://u:secret@h/d"], "can be read by every user of this machine"),
        (["postgresql://u@h/d?password=secret"], r"behind the \?"),
        (["postgresql://u:a/secret#?@h/d"], "can be read by every user of this machine"),
        (["postgresql+asyncpg://h/d"], "is no database that lossy can keep"),
        (["mysql://h/d"], "is no database that lossy can keep"),
        (["nonsense"], "is no database that lossy can keep"),
        ([None, "gs://bucket/x"], "is no place of artifacts that lossy can keep"),
        ([None, "s3:///x"], "names no bucket"),
    ],
)
def test_what_can_not_be_kept_is_refused(options: list[str | None], message: str) -> None:
    with pytest.raises(UsageError, match=message) as refused:
        stores_of(*options)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("postgresql://u:a@secret@h/d", "has an @ or a blank in its password"),
        ("postgresql://u:a secret@h/d", "has an @ or a blank in its password"),
        ("postgresql://u:secret@h:port/d", "can't be read"),
        ("postgresql://u@h/d?sslpassword=secret", r"behind the \?"),
        ("postgres://u:a/secret@h/d", "is no database that lossy can keep"),
    ],
)
def test_an_address_that_can_not_be_read_is_refused_and_not_shown(
    uri: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", uri)
    with pytest.raises(UsageError, match=message) as refused:
        stores_of()
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("uri", "address", "password"),
    [
        ("postgresql://u:a/b#c?d&password=x@h:5432/d?sslmode=require", "postgresql://u@h:5432/d?sslmode=require",
         "a/b#c?d&password=x"),
        ("postgresql+psycopg2://u%40x:p%40%2F:%25@[::1]/d%20d", "postgresql+psycopg2://u%40x@[::1]/d%20d", "p@/:%"),
        ("postgresql://u@h:5432/d", "postgresql://u@h:5432/d", ""),
        ("postgresql:///d?host=/run", "postgresql:///d?host=/run", ""),
        ("sqlite:////a:b@c.db", "sqlite:////a:b@c.db", ""),
    ],
)  # fmt: skip
def test_an_address_apart_from_its_password(uri: str, address: str, password: str) -> None:
    assert apart_from_password(uri) == (address, password)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[mlflow]\n", "has no database_uri"),
        ("database_uri = x:secret@y\n", "MissingSectionHeaderError"),
        ("[mlflow]\ndatabase_uri = postgresql://u:secret%2F@h/d\n", "InterpolationSyntaxError"),
    ],
)
def test_a_configuration_of_users_that_can_not_be_read(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "auth.ini").write_text(text)
    monkeypatch.setenv("MLFLOW_AUTH_CONFIG_PATH", str(tmp_path / "auth.ini"))
    with pytest.raises(UsageError, match=message) as refused:
        stores_of()
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("address", "destination", "path"),
    [
        ("mlflow-artifacts:/1/abc/artifacts", "/srv/artifacts", "1/abc/artifacts"),
        ("mlflow-artifacts://host:5000/1/a%20b", "s3://bucket/x", "1/a b"),
        ("mlflow-artifacts:/", "/srv", ""),
        ("mlflow-artifacts:/../secret", "/srv", None),
        ("mlflow-artifacts:/1/%2e%2e/%2e%2e/secret", "/srv", None),
        ("s3://bucket/x/1/a", "s3://bucket/x", "1/a"),
        ("s3://bucket/xyz/1", "s3://bucket/x", None),
        ("s3://other/x/1", "s3://bucket/x", None),
        ("file:///srv/artifacts/1/a", "/srv/artifacts", "1/a"),
        ("/srv/artifacts/1/a", "/srv/artifacts", "1/a"),
        ("/srv/artifacts/../a", "/srv/artifacts", None),
        ("/home/me/mlruns/1", "/srv/artifacts", None),
        ("models:/m-1", "/srv/artifacts", None),
    ],
)
def test_where_an_address_lies(address: str, destination: str, path: str | None) -> None:
    assert path_in_store(address, destination) == path


@given(st.text())
def test_no_address_leads_out_of_the_store(text: str) -> None:
    for address in (text, f"mlflow-artifacts:/{text}", f"/srv/{text}", f"file:///srv/{text}"):
        path = path_in_store(address, "/srv")
        if path is not None:
            assert Path("/srv", path).is_relative_to("/srv")
            assert ".." not in Path(path).parts


def test_the_folder_of_an_address() -> None:
    assert folder_of("file:///a%20b/c") == Path("/a b/c")
    assert folder_of("/a b/c") == Path("/a b/c")
    assert folder_of("file://host/a") is None
    assert folder_of("s3://bucket/a") is None


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_one_at_a_time(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    uri = request.getfixturevalue("postgres_uri") if kind == "postgres" else f"sqlite:///{tmp_path}/mlflow.db"
    stores = Stores(uri, uri, str(tmp_path))
    refused = pytest.raises(ConflictError, match=r"lossy backup on .*, process .* is at work")
    with alone(stores, "backup"), refused, alone(stores, "check"):
        pass
    with alone(stores, "check"):
        pass

from __future__ import annotations

import configparser
from pathlib import Path

import pytest

from lossy_mlflow.errors import UsageError
from lossy_mlflow.service.connections import Demand, pool_for
from lossy_mlflow.service.settings import Pool, Serving, password_fault, secrets_in_files, server_settings
from lossy_mlflow.service.stores import Stores

URI = "postgresql://someone:a%40secret@h:5432/d%20d?sslmode=require"
TEAM = Stores(URI, URI, "s3://bucket/path")
LAPTOP = Stores("sqlite:////here/mlflow.db", "sqlite:////here/mlflow.db", "/here/mlartifacts")


def test_no_secret_is_an_argument_and_none_is_in_a_file() -> None:
    settings = server_settings(TEAM, Serving(auth=True, workers=3, allowed_hosts=("ml.example.org",)), {})
    assert settings.environment["PGPASSWORD"] == "a@secret"
    others = {name: value for name, value in settings.environment.items() if name != "PGPASSWORD"}
    assert "secret" not in str((others, settings.arguments, settings.users_config))
    config = configparser.ConfigParser()
    config.read_string(settings.users_config)
    assert config["mlflow"]["database_uri"] == "postgresql://someone@h:5432/d%20d?sslmode=require"
    assert config["mlflow"]["default_permission"] == "NO_PERMISSIONS"
    assert 0 < config.getint("mlflow", "auth_cache_ttl_seconds") <= 60


def test_the_names_of_a_server_and_the_pages_that_may_ask_it() -> None:
    names = ("ml.example.org", "[fd00::1]", "other:8443")
    environment = server_settings(TEAM, Serving(allowed_hosts=names), {}).environment
    assert environment["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",") == [
        *("ml.example.org", "ml.example.org:*", "[fd00::1]", "[[]fd00::1]:*", "other:8443"),
        *("localhost", "localhost:*", "127.0.0.1", "127.0.0.1:*"),
    ]
    assert environment["MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"].split(",") == [
        *("https://ml.example.org", "https://ml[.]example[.]org:[0-9]*", "https://[[]fd00::1[]]*"),
        "https://other:8443",
    ]


def test_what_a_laptop_needs() -> None:
    given = {"PATH": "/bin", "MLFLOW_TRACKING_URI": "http://elsewhere", "MLFLOW_TRACKING_PASSWORD": "x"}
    settings = server_settings(LAPTOP, Serving(), given)
    assert settings.environment == {
        "PATH": "/bin",
        "MLFLOW_BACKEND_STORE_URI": LAPTOP.database,
        "MLFLOW_ARTIFACTS_DESTINATION": LAPTOP.artifacts,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_BASIC_AUTH_FAIL_CLOSED": "true",
        "MLFLOW_CREATE_MODEL_VERSION_SOURCE_VALIDATION_REGEX": "^(mlflow-artifacts|runs|models):",
    }
    assert settings.users_config == ""
    options = {"--app-name": "lossy-open", "--host": "127.0.0.1", "--port": "5000", "--workers": "1"}
    assert settings.arguments[:8] == [word for option in options.items() for word in option]


def test_what_the_operator_has_set_stays() -> None:
    given = {
        "MLFLOW_SQLALCHEMYSTORE_POOL_SIZE": "7",
        "MLFLOW_AUTH_CONFIG_PATH": "/etc/users.ini",
        "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": "http://page",
    }
    settings = server_settings(TEAM, Serving(auth=True, allowed_hosts=("h",)), given, Pool(2, 3))
    assert given.items() <= settings.environment.items()
    assert "MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW" not in settings.environment
    assert settings.users_config == ""
    assert server_settings(TEAM, Serving(), {}, Pool(2, 3)).environment.items() >= {
        ("MLFLOW_SQLALCHEMYSTORE_POOL_SIZE", "2"),
        ("MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW", "3"),
    }


def test_what_is_set_to_nothing_isn_t_set() -> None:
    empty = {"MLFLOW_SQLALCHEMYSTORE_POOL_SIZE": "", "MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW": ""}
    asked = [Demand("postgresql://h/d", 97, 3, 2)]
    assert pool_for(asked, empty) == pool_for(asked, {})
    assert (
        server_settings(TEAM, Serving(), empty).environment
        == server_settings(TEAM, Serving(), {}).environment
    )


@pytest.mark.parametrize(
    ("password", "fault"),
    [
        ("twelve chars", ""),
        ("eleven char", "is too short"),
        ("pässwörter-sind-schön", "has characters that aren't ASCII"),
    ],
)
def test_passwords_that_a_member_can_have(password: str, fault: str) -> None:
    assert password_fault(password).startswith(fault)
    assert bool(password_fault(password)) == bool(fault)


def test_secrets_come_from_files_as_well(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("the key \n")
    name = "MLFLOW_FLASK_SERVER_SECRET_KEY"
    assert secrets_in_files({f"{name}_FILE": str(file), "OTHER_FILE": "/nowhere"}) == {name: "the key "}
    with pytest.raises(UsageError, match="can't be read: No such file"):
        secrets_in_files({f"{name}_FILE": str(tmp_path / "none")})
    with pytest.raises(UsageError, match="Both MLFLOW_FLASK_SERVER_SECRET_KEY and"):
        secrets_in_files({f"{name}_FILE": str(file), name: "x"})


@pytest.mark.parametrize(
    ("origin", "ours"),
    [
        *(
            ("https://ml.example.org", True),
            ("https://ml.example.org:8443", True),
            ("https://[fd00::1]", True),
        ),
        *(("https://[fd00::1]:8443", True), ("https://ml.example.org.evil.example", False)),
        *(
            ("https://mlxexample.org:8443", False),
            ("https://evil.example", False),
            ("https://fd00.example", False),
        ),
    ],
)
def test_pages_of_the_servers_names_and_no_others_write_and_read(origin: str, ours: bool) -> None:
    from flask import Flask
    from flask_cors import CORS
    from mlflow.server.security_utils import should_block_cors_request

    names = Serving(port=1, auth=True, allowed_hosts=("ml.example.org", "[fd00::1]"))
    environment = server_settings(TEAM, names, {}).environment
    origins = environment["MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"].split(",")
    assert should_block_cors_request(origin, "POST", origins) is not ours
    app = Flask("page")
    # As MLflow sets it up for most of its routes.
    CORS(app, resources={r"/*": {"origins": origins}}, supports_credentials=True)
    answer = app.test_client().get("/", headers={"Origin": origin})
    assert (answer.headers.get("Access-Control-Allow-Origin") == origin) is ours

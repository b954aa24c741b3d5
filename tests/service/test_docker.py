"""The files under docker/: linted, parsed by a real compose, and without a secret of their own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT
from tests.services.nginx import TEMPLATE, nginx_command, write_configuration

DOCKER = ROOT / "docker"
COMPOSE = DOCKER / "compose.yaml"
EXAMPLE = DOCKER / ".env.example"
SECRETS = {"LOSSY_DATABASE_PASSWORD", "LOSSY_ADMIN_PASSWORD", "LOSSY_SECRET_KEY"}
DATABASE_MAJOR = "15"


def settings(text: str) -> dict[str, str]:
    lines = [line.partition("=") for line in text.splitlines() if line and not line.startswith("#")]
    return {name: value for name, _, value in lines}


def compose_config(folder: Path, values: dict[str, str]) -> subprocess.CompletedProcess[str]:
    file = folder / "env"
    file.write_text("".join(f"{name}={value}\n" for name, value in values.items()))
    program = Path(sys.executable).with_name("podman-compose")
    # Nothing but the file: a variable of this machine would do for one that is missing there.
    return subprocess.run(
        [str(program), "--env-file", str(file), "--file", str(COMPOSE), "config"],
        env={"PATH": "/usr/bin:/bin", "HOME": str(folder)},
        capture_output=True,
        text=True,
    )


@pytest.fixture
def filled() -> dict[str, str]:
    """.env as somebody has filled it."""
    values = settings(EXAMPLE.read_text())
    return values | {name: f"secret-of-{name.lower()}-0123456789" for name in SECRETS}


@pytest.fixture
def service(tmp_path: Path, filled: dict[str, str]) -> dict[str, Any]:
    """The team service, as a compose program reads it."""
    done = compose_config(tmp_path, filled)
    assert done.returncode == 0, done.stderr
    parsed: dict[str, Any] = yaml.safe_load(done.stdout)
    return parsed


def test_dockerfiles_have_nothing_that_hadolint_finds() -> None:
    program = Path(sys.executable).with_name("hadolint")
    files = [str(file) for file in sorted(DOCKER.glob("*Dockerfile"))]
    assert len(files) == 2
    done = subprocess.run([str(program), *files], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_three_secrets_are_to_be_set_and_none_has_a_default(tmp_path: Path, filled: dict[str, str]) -> None:
    assert {name for name, value in settings(EXAMPLE.read_text()).items() if not value} == SECRETS
    for name in SECRETS:
        refused = compose_config(tmp_path, filled | {name: ""})
        assert refused.returncode != 0
        assert f"{name} is missing a value: set it in docker/.env" in refused.stderr
    # What is set stands where the three are asked for, and nowhere else is a value for such a name.
    given = compose_config(tmp_path, filled).stdout
    for name, value in re.findall(
        r"^\s+(\w*(?:PASSWORD|SECRET|KEY_ID|TOKEN)\w*): (.*)$", given, re.MULTILINE
    ):
        assert value in {filled[secret] for secret in SECRETS}, name


def test_every_variable_is_in_the_example_and_every_one_of_the_example_is_used() -> None:
    used = re.findall(r"(?<!\$)\$\{?(\w+)", re.sub(r"#.*", "", COMPOSE.read_text()))
    assert set(used) == settings(EXAMPLE.read_text()).keys()
    proxy = yaml.safe_load(COMPOSE.read_text())["services"]["proxy"]["environment"]
    assert set(re.findall(r"\$\{(\w+)\}", TEMPLATE.read_text())) == {
        name for name in proxy if re.match(proxy["NGINX_ENVSUBST_FILTER"], name)
    }


def test_only_tls_is_published_and_only_nginx_is_reached_from_outside(service: dict[str, Any]) -> None:
    services, networks = service["services"], service["networks"]
    assert {name: of.get("ports") for name, of in services.items() if of.get("ports")} == {
        "proxy": ["443:8443"]
    }
    outside = {name for name, of in networks.items() if not (of or {}).get("internal")}
    assert {name for name, of in services.items() if outside & set(of["networks"])} == {"proxy"}


def test_each_service_has_few_rights_and_starts_again_by_itself(service: dict[str, Any]) -> None:
    for name, of in service["services"].items():
        assert of["read_only"] is True, name
        assert of["cap_drop"] == ["ALL"], name
        assert of["security_opt"] == ["no-new-privileges:true"], name
        assert of["restart"] == "unless-stopped", name
        assert {"mem_limit", "pids_limit", "logging"} <= of.keys(), name
        # An image of others is pinned to a release; ours have their health check in their Dockerfile.
        assert re.fullmatch(r"[\w-]+:\d+(\.\d+)+(-\w+)?", of["image"]), name
        assert "build" in of or "healthcheck" in of, name
    assert service["services"]["database"]["image"].startswith(f"postgres:{DATABASE_MAJOR}.")
    waits = service["services"]["server"]["depends_on"]
    assert {name: of["condition"] for name, of in waits.items()} == dict.fromkeys(
        ("database", "store"), "service_healthy"
    )


def test_images_run_as_a_user_without_rights() -> None:
    for file in DOCKER.glob("*Dockerfile"):
        stages = re.split(r"(?m)^FROM ", file.read_text())
        run = [stage for stage in stages if re.search(r"(?m)^CMD ", stage)]
        assert run
        for stage in run:
            assert re.findall(r"(?m)^USER (.*)$", stage) == ["10001:10001"]


def test_no_secret_is_among_the_arguments_of_the_server(
    service: dict[str, Any], filled: dict[str, str]
) -> None:
    for name, of in service["services"].items():
        words = " ".join([*of.get("command", []), *of.get("healthcheck", {}).get("test", [])])
        assert not [secret for secret in SECRETS if filled[secret] in words], name


def test_nginx_takes_the_rendered_template(tmp_path: Path) -> None:
    configuration = write_configuration(tmp_path, "unix:/run/lossy/server.sock", 8443)
    done = subprocess.run(nginx_command(configuration, "-t"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "warn" not in done.stderr


def test_the_project_in_a_container_has_the_parameters_of_the_one_at_the_root() -> None:
    from mlflow.projects._project_spec import load_project

    inside, outside = load_project(str(DOCKER / "project")), load_project(str(ROOT))
    entry, same = inside.get_entry_point("main"), outside.get_entry_point("main")
    assert {name: vars(value) for name, value in entry.parameters.items()} == {
        name: vars(value) for name, value in same.parameters.items()
    }
    assert entry.command == same.command.replace("$PPID", "0")
    tag = re.search(r"-t (\S+)", (DOCKER / "train.Dockerfile").read_text())
    assert tag
    assert inside.docker_env["image"] == tag[1]
    # MLflow hands variables over as arguments, which every user of the machine can read.
    assert "environment" not in inside.docker_env

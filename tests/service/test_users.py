"""`lossy users` against a team's server, by the command line and as the server then treats the member."""

from __future__ import annotations

import io
import json
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path

import pytest

from lossy_mlflow.cli.app import app, exit_codes
from tests.conftest import Workplace
from tests.service.conftest import Team

PASSWORD, OTHER = "password-secret-one", "password-secret-two"


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


class Admin:
    """Types commands as an admin of the team's server, or as whom `env` says. In this process: MLflow is loaded once."""

    def __init__(
        self, team: Team, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.team = team
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def run(self, *words: str, typed: str = "", env: dict[str, str] | None = None) -> Done:
        self._capsys.readouterr()
        code = 0
        with self._monkeypatch.context() as patch:
            for name, value in (env or self.team.member()).items():
                patch.setenv(name, value)
            patch.setattr(sys, "stdin", io.StringIO(typed))
            try:
                with exit_codes():
                    app.main(["users", *words], prog_name="lossy", standalone_mode=False)
            except SystemExit as end:
                code = int(end.code or 0)
        printed = self._capsys.readouterr()
        for secret in (PASSWORD, OTHER, *self.team.secrets):
            assert secret not in printed.out + printed.err
        return Done(code, printed.out, printed.err)

    def do(self, *words: str, typed: str = "", env: dict[str, str] | None = None) -> str:
        done = self.run(*words, typed=typed, env=env)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def looks_at(self, experiment_id: str, name: str, password: str) -> int:
        """The status of the server's answer to who wants to see the experiment."""
        path = f"/api/2.0/mlflow/experiments/get?experiment_id={experiment_id}"
        return self.team.ask("GET", path, auth=(name, password)).status_code


@pytest.fixture
def admin(
    team_server: Team, here: Workplace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Admin:
    return Admin(team_server, monkeypatch, capsys)


@pytest.fixture
def experiment(team_server: Team) -> tuple[str, str]:
    """The admin's experiment, as name and id, with a registered model of the same name."""
    name = f"e{uuid.uuid4().hex[:8]}"
    made = team_server.ask("POST", "/api/2.0/mlflow/experiments/create", json={"name": name}).json()
    team_server.ask("POST", "/api/2.0/mlflow/registered-models/create", json={"name": name})
    return name, made["experiment_id"]


def test_a_member_from_the_first_day_to_the_last(admin: Admin, experiment: tuple[str, str]) -> None:
    name, (e_name, e_id) = f"ada-{uuid.uuid4().hex[:6]}", experiment
    assert admin.do("add", name, typed=f"{PASSWORD}\n") == f"{name} is a member now.\n"
    assert admin.looks_at(e_id, name, PASSWORD) == 403
    admin.do("grant", name, "read", "--experiment", e_name)
    assert admin.looks_at(e_id, name, PASSWORD) == 200
    create = {"auth": (name, PASSWORD), "json": {"experiment_id": e_id}}
    assert admin.team.ask("POST", "/api/2.0/mlflow/runs/create", **create).status_code == 403
    # A right takes the place of the one before, and may be given twice.
    for _ in range(2):
        told = admin.do("grant", name, "EDIT", "--experiment", e_name)
        assert told == f"{name} has the right EDIT on the experiment {e_name} now.\n"
    assert admin.team.ask("POST", "/api/2.0/mlflow/runs/create", **create).status_code == 200
    admin.do("grant", name, "MANAGE", "--model", e_name)
    listed = admin.do("list").splitlines()
    assert [line.split() for line in listed if line.startswith(name)] == [
        [name, *f"EDIT experiment {e_name}, MANAGE model {e_name}".split()]
    ]
    assert [line.split() for line in listed if line.startswith("admin")] == [["admin", "admin", "everything"]]
    admin.do("grant", name, "NONE", "--model", e_name)
    own = admin.team.member(name, PASSWORD)
    told = admin.do("passwd", name, typed=f"{OTHER}\n", env=own)
    assert "may accept the old password for up to 60 s" in told
    assert admin.looks_at(e_id, name, OTHER) == 200
    asked = admin.run("remove", name, typed="n\n")
    assert asked.returncode == 130
    assert f"Take away {name}?" in asked.stderr
    assert "may accept the old password for up to 60 s" in admin.do("remove", name, "--yes")
    assert admin.looks_at(e_id, name, "never right") == 401
    # Who comes later by that name has none of the rights.
    admin.do("add", name, typed=PASSWORD)
    listed = json.loads(admin.do("list", "--json"))
    assert [user for user in listed if user["name"] == name] == [{"name": name, "admin": False, "rights": []}]


def test_what_can_not_be_done_is_said(admin: Admin, experiment: tuple[str, str], tmp_path: Path) -> None:
    name, (e_name, _) = f"bob-{uuid.uuid4().hex[:6]}", experiment
    admin.do("add", name, "--admin", typed=PASSWORD)
    other = f"eve-{uuid.uuid4().hex[:6]}"
    admin.do("add", other, typed=PASSWORD)
    for words, typed, code, says in (
        (("add", name), PASSWORD, 4, f"There is a user {name} already"),
        (("add", "a:b"), PASSWORD, 2, "'a:b' is no name of a user"),
        (("add", "new"), "short\n", 2, "too short: 12 characters"),
        (("add", "new"), "wörter-genug-für-alle", 2, "has characters that aren't ASCII"),
        (("add", "new"), "", 2, "no password on standard input"),
        (("passwd", name[:-1]), PASSWORD, 3, f"There is no user '{name[:-1]}'; did you mean {name}"),
        (("remove", name[:-1], "--yes"), "", 3, f"did you mean {name}"),
        (("grant", name, "READ", "--experiment", e_name[:-1]), "", 3, f"did you mean {e_name}"),
        (("grant", name, "READ", "--model", e_name[:-1]), "", 3, f"did you mean {e_name}"),
        (("grant", name, "READ"), "", 2, "Name it: --experiment E    or --model M"),
    ):
        done = admin.run(*words, typed=typed)
        assert (done.returncode, says in done.stderr) == (code, True), done.stderr
    for env, says in (
        (admin.team.member(other, PASSWORD), "refuses: that is for admins"),
        (admin.team.member(other, OTHER), "doesn't let you in"),
        ({"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}, "Users are a server's"),
    ):
        done = admin.run("list", env=env)
        assert (done.returncode != 0, says in done.stderr) == (True, True), done.stderr
    # Nothing is made of what an address that isn't set means to MLflow.
    assert not (tmp_path / "mlflow.db").exists()
    # The last admin can't be taken away by itself.
    done = admin.run("remove", name, "--yes", env=admin.team.member(name, PASSWORD))
    assert "cannot delete their own account" in done.stderr


def test_who_has_manage_gives_rights_too(admin: Admin, experiment: tuple[str, str]) -> None:
    (e_name, e_id), number = experiment, uuid.uuid4().hex[:6]
    owner, guest, other = f"owner-{number}", f"guest-{number}", f"other-{number}"
    for name in (owner, guest, other):
        admin.do("add", name, typed=PASSWORD)
    admin.do("grant", owner, "MANAGE", "--experiment", e_name)
    own = admin.team.member(owner, PASSWORD)
    for permission in ("READ", "READ", "EDIT"):
        told = admin.do("grant", guest, permission, "--experiment", e_name, env=own)
        assert told == f"{guest} has the right {permission} on the experiment {e_name} now.\n"
        assert f"{permission} experiment {e_name}" in admin.do("list")
    for _ in range(2):
        admin.do("grant", guest, "NONE", "--experiment", e_name, env=own)
        assert admin.looks_at(e_id, guest, PASSWORD) == 403
    for words, env, code, says in (
        (("nobody", "READ"), own, 3, "User with username=nobody not found"),
        (("nobody", "NONE"), own, 3, "User with username=nobody not found"),
        ((guest, "READ"), admin.team.member(other, PASSWORD), 1, "refuses"),
    ):
        done = admin.run("grant", *words, "--experiment", e_name, env=env)
        assert (done.returncode, says in done.stderr) == (code, True), done.stderr


def test_a_server_without_members_says_so(mlflow_server: str, admin: Admin) -> None:
    done = admin.run("list", env={"MLFLOW_TRACKING_URI": mlflow_server})
    assert done.returncode == 2
    assert "has no users: whoever reaches it may do everything" in done.stderr

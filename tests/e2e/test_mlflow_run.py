"""`mlflow run`: values byte for byte, the run it made, a git URL, an isolated environment."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, Workplace

NASTY = """ -x "two  words" it's $(touch /tmp/owned) `id` {braces} a=b \\ \n%s * ü """


def _project(folder: Path) -> Path:
    """What git would hand over: the working tree's tracked and new files, as a repository of its own."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    for name in filter(None, files):
        if (ROOT / name).is_file():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target)
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    for words in (["init", "-q"], ["add", "-A"], [*identity, "commit", "-q", "-m", "as it is"]):
        subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True)
    return folder


def _mlflow_run(
    workplace: Workplace, project: str, *words: str, manager: str = "local"
) -> subprocess.CompletedProcess[str]:
    # `python` in the entry point is the one on PATH, as it is when the environment has been activated.
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "MLFLOW_TRACKING_URI": f"sqlite:///{workplace.folder}/mlflow.db",
    }
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "run",
        project,
        "--env-manager",
        manager,
        "-P",
        "hparam_set=vae2_digits",
    ]
    return workplace.run(*command, *words, env=environment)


def _runs(client: Any) -> list[Any]:
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    return list(client.search_runs(ids, order_by=["attributes.start_time ASC"]))


def test_mlflow_run_trains_in_the_run_it_made_and_is_idempotent(workplace: Workplace, client: Any) -> None:
    overrides = """overrides=model_train.epochs=2 learning_rate=1e-3 'group_list=["it'"'"'s", "a {list}"]'"""
    first = _mlflow_run(workplace, str(ROOT), "-P", "e_name=try2", "-P", overrides)
    assert first.returncode == 0, first.stderr
    (run,) = _runs(client)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "vae2_digits_try2"
    assert run.data.params["model_train.epochs"] == "2"
    assert run.data.params["group_list"] == '["it\'s", "a {list}"]'
    assert run.data.tags["mlflow.project.entryPoint"] == "main"

    second = _mlflow_run(workplace, str(ROOT), "-P", "e_name=try2", "-P", overrides)
    assert second.returncode == 0, second.stderr
    surplus = _runs(client)[1]
    assert surplus.info.status == "FINISHED"
    assert surplus.data.tags["same_as"] == run.info.run_id

    third = _mlflow_run(workplace, str(ROOT), "-P", "e_name=try2", "-P", overrides, "-P", "overwrite=true")
    assert third.returncode == 0, third.stderr
    assert client.get_run(run.info.run_id).info.lifecycle_stage == "deleted"

    failed = _mlflow_run(workplace, str(ROOT), "-P", "overrides=model_train.epoch=2")
    assert failed.returncode == 1
    assert "model_train.epochs" in failed.stderr
    assert _runs(client)[-1].info.status == "FAILED"


def test_values_pass_byte_for_byte(workplace: Workplace, client: Any) -> None:
    code = workplace.folder / "mine with space.py"
    code.write_text(
        "from lossy_mlflow import Hparam, register_hparams\n"
        "from lossy_mlflow.hparams.catalogue.digits import vae2_digits as parent\n\n"
        "@register_hparams\ndef remarks() -> Hparam:\n    tree = parent()\n    tree.remark = 'none'\n    return tree\n"
    )
    import shlex

    overrides = shlex.join([f"remark={NASTY}", "model_train.epochs=1"])
    e_name = "-it's $(touch owned) {x} `id` a=b"
    done = _mlflow_run(
        workplace, str(ROOT), "-P", f"user_code={code}", "-P", f"overrides={overrides}", "-P", f"e_name={e_name}",
        "-P", "hparam_set=remarks",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (run,) = _runs(client)
    from lossy_mlflow.tracking.runs import hparams_of_run

    assert hparams_of_run(client, run).remark == NASTY
    assert run.data.tags["e_name"] == e_name
    assert run.info.run_name == f"remarks_{e_name}"
    assert not Path("/tmp/owned").exists()  # noqa: S108 (it is looked for, not used)


def test_a_git_url(workplace: Workplace, client: Any, tmp_path: Path) -> None:
    project = _project(tmp_path / "project")
    done = _mlflow_run(workplace, f"file://{project}", "-P", "overrides=model_train.epochs=1")
    assert done.returncode == 0, done.stderr
    (run,) = _runs(client)
    assert run.info.status == "FINISHED"
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=project, capture_output=True, text=True, check=True
    )
    assert run.data.tags["git_commit"] == head.stdout.strip()


@pytest.mark.skipif(
    shutil.which("pyenv") is None, reason="needs pyenv, from which MLflow takes the environment's python"
)
@pytest.mark.timeout(900)
def test_an_isolated_environment_has_the_package_itself(
    workplace: Workplace, client: Any, tmp_path: Path
) -> None:
    project = _project(tmp_path / "project")
    environments = tmp_path / "environments"
    home = {"MLFLOW_ENV_ROOT": str(environments), "HOME": os.environ["HOME"]}
    workplace.environment |= home
    done = _mlflow_run(workplace, str(project), "-P", "overrides=model_train.epochs=1", manager="virtualenv")
    assert done.returncode == 0, done.stderr[-3000:]
    (run,) = _runs(client)
    assert run.info.status == "FINISHED"
    (python,) = environments.glob("*/bin/python")
    shutil.rmtree(project)
    where = workplace.run(str(python), "-c", "import lossy_mlflow; print(lossy_mlflow.__file__)")
    assert where.returncode == 0, where.stderr
    assert Path(where.stdout.strip()).is_relative_to(environments)

"""`mlflow run`: values byte for byte, the run it made, a git URL, an isolated environment."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest
import yaml

from lossy_mlflow.tracking.runs import hparams_of_run
from tests.conftest import ROOT, Workplace, mlflow_run

USER_CODE = """
from lossy_mlflow import Hparam, register_hparams
from lossy_mlflow.hparams.catalogue.digits import vae2_digits as parent

@register_hparams
def remarks() -> Hparam:
    tree = parent()
    tree.remark = "none"
    tree.model_train.epochs = 1
    return tree
"""


def runs(client: Any) -> list[Any]:
    """All runs, oldest first."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return list(client.search_runs(experiments, order_by=["attributes.start_time ASC"]))


def git(*words: str, cwd: Path = ROOT) -> str:
    return subprocess.run(["git", *words], cwd=cwd, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """What git would hand over: the working tree's tracked and new files, as a repository of its own."""
    folder = tmp_path / "project"
    for name in git("ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0"):
        if (ROOT / name).is_file():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target)
    git("init", "--quiet", cwd=folder)
    git("add", "--all", cwd=folder)
    identity = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    git(*identity, "commit", "--quiet", "--message", "as it is", cwd=folder)
    return folder


@pytest.mark.campaign
def test_values_arrive_byte_for_byte_at_a_git_url_and_the_same_again_points_at_its_run(
    workplace: Workplace, client: Any, project: Path
) -> None:
    # MLflow takes file:// for a folder and fetches nothing; git itself is told where this address leads.
    url = "https://example.invalid/lossy.git"
    workplace.environment |= {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.file://{project}.insteadOf",
        "GIT_CONFIG_VALUE_0": url,
    }
    touched = workplace.folder / "touched"
    evil = f"$(touch {touched}) `touch {touched}` ${{HOME}} {{braces}} {{0}} %s %25 * ~ !! ü \\"
    remark = f""" -x "two  words" it's {evil}\n\ta=b \\n 'null' \r\n"""
    code = workplace.folder / "-it's {my} $(code).py"
    code.write_text(USER_CODE)
    parameters = {
        "hparam_set": "remarks",
        "user_code": str(code),
        "e_name": "-it's $(id) `id` {x} a=b %25 * \\ ü",
        "overrides": shlex.join([f"remark={remark}", "learning_rate=1e-3"]),
    }
    label = f"remarks_{parameters['e_name']}"

    done = mlflow_run(workplace, url, **parameters)
    assert done.returncode == 0, done.stderr
    (run,) = runs(client)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == label
    assert run.data.tags["e_name"] == parameters["e_name"]
    assert run.data.tags["mlflow.source.name"] == url
    assert run.data.tags["git_commit"] == git("rev-parse", "HEAD", cwd=project).strip()
    assert run.data.params["overrides"] == shlex.quote(parameters["overrides"])
    tree = hparams_of_run(client, run)
    assert (tree.remark, tree.learning_rate) == (remark, 1e-3)
    assert client.get_model_version_by_alias(label, "best").run_id == run.info.run_id

    again = mlflow_run(workplace, ROOT, **parameters)
    assert again.returncode == 0, again.stderr
    surplus = runs(client)[1]
    assert surplus.info.status == "FINISHED"
    assert surplus.data.tags["same_as"] == run.info.run_id

    refused = mlflow_run(workplace, ROOT, **parameters | {"overrides": "learning_rate=2e-3"})
    assert refused.returncode == 1
    assert "learning_rate: 0.001 -> 0.002" in refused.stderr
    assert runs(client)[2].info.status == "FAILED"
    assert not touched.exists()


@pytest.fixture
def environments(workplace: Workplace, tmp_path: Path) -> Iterator[Path]:
    """Where MLflow makes its environments; with torch in one it is too large to be kept for a look."""
    folder = tmp_path / "environments"
    workplace.environment |= {
        "MLFLOW_ENV_ROOT": str(folder),
        # pyenv, and pip's settings if they lie there; pip's cache stays the test's own.
        "HOME": os.environ["HOME"],
        # Of all that is installed a fraction is imported: compiling the rest would take a minute.
        "PIP_COMPILE": "0",
    }
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def pyenv_has(python: str) -> bool:
    return (
        bool(shutil.which("pyenv"))
        and not subprocess.run(["pyenv", "prefix", python], capture_output=True).returncode
    )


def contents(package: Path) -> dict[Path, bytes]:
    files = (file for file in package.rglob("*") if file.is_file() and file.suffix != ".pyc")
    return {file.relative_to(package): file.read_bytes() for file in files}


@pytest.mark.campaign
@pytest.mark.timeout(900)
def test_an_isolated_environment_holds_the_package_itself(
    workplace: Workplace, client: Any, project: Path, environments: Path
) -> None:
    python = yaml.safe_load((project / "conda.yaml").read_text())["dependencies"][0].removeprefix("python=")
    if not pyenv_has(python):
        pytest.skip(f"needs pyenv with Python {python}, which MLflow takes: pyenv install {python}")

    epochs = "model_train.epochs=1"
    done = mlflow_run(workplace, project, "virtualenv", hparam_set="vae2_digits", overrides=epochs)
    assert done.returncode == 0, done.stderr[-3000:]
    (run,) = runs(client)
    assert run.info.status == "FINISHED"
    left = git("status", "--porcelain", "--ignored", cwd=project).splitlines()
    assert [line for line in left if not line.endswith("__pycache__/")] == []

    (folder,) = environments.iterdir()
    (packages,) = folder.glob("lib/python*/site-packages")
    assert contents(packages / "lossy_mlflow") == contents(project / "lossy_mlflow")
    pins = set((project / "constraints.txt").read_text().lower().splitlines())
    installed = {
        f"{found.name}=={found.version}".lower()
        for found in distributions(path=[str(packages)])
        if found.name not in ("lossy-mlflow", "pip", "setuptools")
    }
    assert installed - pins == set()

    # The entry point ran the project's own modules, from its folder; without it the installed ones do the same.
    shutil.rmtree(project)
    trained = workplace.run(
        str(folder / "bin" / "lossy"), "train", "vae2_digits", "--e-name=copy", f"--set={epochs}"
    )
    assert trained.returncode == 0, trained.stderr
    assert "vae2_digits_copy trained" in trained.stdout

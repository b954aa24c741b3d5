"""A decoder leaves the place where it was trained: served by MLflow's own commands, exported, verified, loaded elsewhere."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import requests
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import lossy_mlflow
from lossy_mlflow.checkpoints import resolve
from lossy_mlflow.checkpoints.download import download
from lossy_mlflow.cli.app import app
from lossy_mlflow.errors import ConflictError, NotFoundError, UsageError
from lossy_mlflow.hparams import unflatten
from lossy_mlflow.user_code import load_user_code
from tests.conftest import ROOT, Workplace, end_with_children, free_port, wait_for

NAME = "wide_vae_digits"
CODE = ROOT / "docs" / "examples" / "my_models.py"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, migrated_database: Path) -> Workplace:
    """A workplace in which the example of a model of one's own has been trained."""
    home, folder = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("work")
    shutil.copy(migrated_database, folder / "mlflow.db")
    place = Workplace(folder, home)
    place.environment |= {
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    done = place.lossy("train", NAME, "--user-code", str(CODE), "--set", "model_train.epochs=2")
    assert done.returncode == 0, done.stderr
    return place


@pytest.fixture
def there(trained: Workplace, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    """The test's own process works there, with the model's code at hand."""
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME", "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(name, trained.environment[name])
    monkeypatch.setenv("LOSSY_USER_CODE", str(CODE))
    monkeypatch.setattr("lossy_mlflow.user_code._loaded", {})
    monkeypatch.chdir(trained.folder)
    return trained


def _images(z: list[list[float]]) -> Any:
    with torch.no_grad():
        x_mean, _ = lossy_mlflow.load_decoder(f"{NAME}@best").decode(torch.tensor(z))  # type: ignore[operator]
    return x_mean.numpy()


@pytest.mark.campaign
def test_code_that_is_missing_is_found_by_the_commands_that_are_printed(
    there: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LOSSY_USER_CODE")
    with pytest.raises(NotFoundError, match="the model 'wide_vae', which isn't registered here") as caught:
        lossy_mlflow.load_decoder(NAME)
    assert "written by lossy-mlflow 0.1.0 on 20" in caught.value.what
    assert resolve(NAME).run_id in caught.value.what
    commands = caught.value.hint.removeprefix("Read the code of that run, then name it: ").split("    (")[0]
    code = f"import lossy_mlflow; print(type(lossy_mlflow.load_decoder('{NAME}')).__name__)"
    loaded = there.run("sh", "-c", f'{commands} && python -c "{code}"')
    assert loaded.stdout.endswith("Decoder\n"), loaded.stderr


@pytest.fixture
def served(there: Workplace) -> Iterator[str]:
    port = free_port()
    words = ["-m", "mlflow", "models", "serve", "-m", f"models:/{NAME}@best", "--env-manager", "local"]
    with (there.folder / "serve.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, *words, "-h", "127.0.0.1", "-p", str(port)],
            cwd=there.folder,
            env=there.environment | {"LOSSY_USER_CODE": str(CODE)},
            stdout=log,
            stderr=log,
        )
    uri = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert server.poll() is None, (there.folder / "serve.log").read_text()
        try:
            return requests.get(f"{uri}/ping", timeout=2).ok
        except requests.RequestException:
            return False

    try:
        wait_for(answers, 120, "mlflow models serve answers")
        yield uri
    finally:
        end_with_children(server)


def test_mlflow_serves_it_and_predicts_from_a_file(there: Workplace, served: str) -> None:
    z = np.random.default_rng(1).standard_normal((3, 10)).astype(np.float32).tolist()
    body = {"inputs": z}
    answer = requests.post(f"{served}/invocations", json=body, timeout=60)
    assert answer.ok, answer.text
    np.testing.assert_allclose(answer.json()["predictions"], _images(z), atol=1e-6)
    np.testing.assert_allclose(
        mlflow.pyfunc.load_model(f"models:/{NAME}@best").predict(np.array(z, np.float32)),
        _images(z),
        atol=1e-6,
    )
    # What lies beside the model as an example is one.
    example = Path(download(NAME).folder, "serving_input_example.json").read_text()
    assert np.shape(
        requests.post(f"{served}/invocations", json=json.loads(example), timeout=60).json()["predictions"]
    ) == (1, 64)
    (there.folder / "z.json").write_text(json.dumps(body))
    words = f"mlflow models predict -m models:/{NAME}@best -i z.json -o x.json -t json --env-manager local"
    done = there.run(*words.split(), env={"LOSSY_USER_CODE": str(CODE)})
    assert done.returncode == 0, done.stderr
    predicted = json.loads((there.folder / "x.json").read_text())
    np.testing.assert_allclose(predicted["predictions"], _images(z), atol=1e-6)


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from lossy_mlflow.cli import main
main(sys.argv[1:])
"""


def test_it_leaves_as_one_file(there: Workplace, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["export", f"{NAME}@best", "--format", "safetensors", "--json"]
    done = there.run(sys.executable, "-c", WITHOUT_TORCH, *words)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["file"] == f"{NAME}-1.safetensors"
    load_user_code(None)
    weights = lossy_mlflow.load_decoder(NAME).state_dict()
    with safe_open(said["file"], "pt") as file:
        metadata = file.metadata()
    exported = load_file(said["file"])
    assert metadata["source"] == f"models:/{NAME}/1"
    assert unflatten(json.loads(metadata["hparams"])).model_name == "wide_vae"

    app.main(["export", NAME, "--format", "torch", "-o", "of mine.pt"], "lossy", standalone_mode=False)
    assert capsys.readouterr().out == f"models:/{NAME}/1 is in of mine.pt\n"
    loaded = torch.load("of mine.pt", weights_only=True)
    assert loaded["hparams"] == json.loads(metadata["hparams"])
    for tensors in (exported, loaded["state_dict"]):
        assert tensors.keys() == weights.keys()
        assert all(torch.equal(tensor, weights[key]) for key, tensor in tensors.items())
    for name in (said["file"], "of mine.pt"):
        before = Path(name).read_bytes()
        with pytest.raises(ConflictError, match="exists; it stays as it is"):
            app.main(["export", NAME, "--format", "torch", "-o", name], "lossy", standalone_mode=False)
        assert Path(name).read_bytes() == before
    assert not list(there.folder.glob(".*.pt*"))


def _verify(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """The exit code of `lossy verify`, and what it prints."""
    code = 0
    try:
        app.main(["verify", *words], "lossy", standalone_mode=False)
    except SystemExit as error:
        code = int(error.code or 0)
    return code, capsys.readouterr().out


def test_verify_tells_who_is_damaged(there: Workplace, capsys: pytest.CaptureFixture[str]) -> None:
    client = mlflow.MlflowClient()
    client.create_registered_model("other")
    client.create_model_version("other", str(there.folder))
    assert _verify(capsys, f"{NAME}@best") == (0, f"version            files  why\n{NAME}/1  ok\n")
    (weights,) = there.folder.glob("mlruns/*/models/*/artifacts/data/decoder/weights.safetensors")
    content = weights.read_bytes()
    try:
        weights.write_bytes(content[:-1])
        code, out = _verify(capsys, "--all", "--json")
    finally:
        weights.write_bytes(content)
    assert code == 1
    assert [(row["name"], row["version"], row["state"]) for row in json.loads(out)] == [
        ("other", 1, "not ours"),
        (NAME, 1, "damaged"),
    ]
    assert _verify(capsys, NAME)[0] == 0
    assert _verify(capsys, "other")[0] == 0
    for words in ([], [NAME, "--all"]):
        with pytest.raises(UsageError, match="takes a REFERENCE, a NAME, or --all"):
            _verify(capsys, *words)
    with pytest.raises(NotFoundError, match=f"did you mean {NAME}"):
        _verify(capsys, NAME[:-1])

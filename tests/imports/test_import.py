"""`lossy import`, as a person uses it: what becomes of files, archives, names that are taken, and what is no checkpoint."""

from __future__ import annotations

import os
import signal
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow import MlflowClient

import lossy_mlflow
from lossy_mlflow.checkpoints.publish import Publication, Snapshot, publish
from lossy_mlflow.errors import ConflictError, LossyError, NotFoundError, UnreachableError, UsageError
from lossy_mlflow.experiments import import_archive, import_files
from lossy_mlflow.hparams import get_hparams
from lossy_mlflow.models import build_model, decoder_of
from lossy_mlflow.tracking.connection import connect
from lossy_mlflow.tracking.ownership import label_lock
from lossy_mlflow.tracking.training_state import load_training_state
from tests.conftest import Workplace, wait_for
from tests.imports.published import TheirAae, TheirDcgan, TheirMlp, TheirVae, save, save_gan, vae_checkpoint

SET = "vae2_digits"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder as the published archive has it, and what each model in it decodes by its own code."""
    folder = tmp_path_factory.mktemp("published")
    torch.manual_seed(1)
    early, best, mlp, dcgan, aae = (
        TheirVae(),
        TheirVae(),
        TheirMlp(3),
        TheirDcgan(32, 3, "bn", 3, True),
        TheirAae(),
    )
    vaes = "checkpoints/icml_vae10_rd"
    save(folder, f"{vaes}/checkpoint_epoch10.pth", vae_checkpoint(early, 10, [130.0, 120.0]), new_zip=False)
    save(folder, f"{vaes}/best.pth", vae_checkpoint(best, 12, [130.0, 120.0, 110.5]), new_zip=False)
    # Written in the same epoch as the best, which it is.
    save(folder, f"{vaes}/checkpoint_epoch12.pth", vae_checkpoint(best, 12, [110.5]))
    mnist = (
        "--dataset mnist --dataroot ./data --imageSize 28 --g_type sheldon_mlp --nz 5 --ngf 8 --netG --netD"
    )
    cifar = "--dataset cifar10 --nz 5 --ngf 4 --ng_conv 3 --spectral_g 1 --cuda"
    save_gan(folder, "mnist_may17_gp_mlp-big", "0x43a407bc", 106, mnist, mlp.state_dict())
    save_gan(folder, "cifar10_unknown", "0x0000beef", 63, cifar, dcgan.state_dict())
    save_gan(folder, "mnist_resnet", "0x00000001", 1, "--dataset mnist --g_type resnet", mlp.state_dict())
    arrays = folder / "checkpoints" / "aae"
    arrays.mkdir()
    np.savez(arrays / "aae_h2_det_reg1_auto001_annealed_epoch5000_weights_numpy.npz", **aae.arrays)
    save(folder, "checkpoints/cnn_mnist/best.pth", {"state_dict": torch.nn.Linear(2, 2).state_dict()})
    (folder / "README.txt").write_text("junk")
    (folder / "checkpoints" / "link.pth").symlink_to("/etc/passwd")
    decoders = {
        "icml_vae10_rd@best": best,
        "icml_vae10_rd/1": early,
        "icml_deep_gan5_GP": mlp,
        "cifar10_unknown_0x0000beef": dcgan,
        "icml_aae2@last": aae,
    }
    return folder, decoders


def test_the_archive_as_a_folder_and_again_as_a_zip(
    here: Workplace, client: MlflowClient, published: tuple[Path, dict[str, Any]]
) -> None:
    folder, decoders = published
    rows = {row.file.rpartition("/")[2]: row for row in import_archive(str(folder)).files}
    outcomes = {name: (row.outcome, row.name, row.version) for name, row in rows.items()}
    assert outcomes == {
        "README.txt": ("not recognised", "", None),
        "link.pth": ("not recognised", "", None),
        "best.pth": outcomes["best.pth"],
        "checkpoint_epoch10.pth": ("imported", "icml_vae10_rd", 1),
        "checkpoint_epoch12.pth": outcomes["checkpoint_epoch12.pth"],
        "LT_delta-0x11111111_base-0x43a407bc_LT_netG_epoch_106.pth": ("imported", "icml_deep_gan5_GP", 1),
        "LT_delta-0x11111111_base-0x0000beef_LT_netG_epoch_63.pth": (
            "imported",
            "cifar10_unknown_0x0000beef",
            1,
        ),
        "LT_delta-0x11111111_base-0x00000001_LT_netG_epoch_1.pth": ("not recognised", "", None),
        "aae_h2_det_reg1_auto001_annealed_epoch5000_weights_numpy.npz": ("imported", "icml_aae2", 1),
    }
    assert "--g_type resnet" in rows["LT_delta-0x11111111_base-0x00000001_LT_netG_epoch_1.pth"].note
    for reference, theirs in decoders.items():
        decoder = lossy_mlflow.load_decoder(reference)
        z = torch.randn(4, get_z(client, reference))
        x_mean = decoder.decode(z)[0]
        wanted = theirs.decode(z)
        torch.testing.assert_close(
            x_mean, wanted[0] if isinstance(wanted, tuple) else wanted, rtol=0, atol=1e-5
        )
    (run,) = client.search_runs([client.get_experiment_by_name("icml/VAEs/RD").experiment_id])
    assert (run.info.status, run.info.run_name) == ("FINISHED", "icml_vae10_rd")
    assert run.data.tags["kind"] == "import"
    assert run.data.params["model_train.z_size"] == "4"
    assert run.data.metrics == {"val_loss": 110.5}
    version = client.get_model_version_by_alias("icml_vae10_rd", "best")
    assert (version.version, version.tags["epoch"], version.tags["val_loss"]) == (2, "12", "110.5")
    assert version.tags["file_sha256"] in run.data.tags["imported.epoch_12"]
    state = load_training_state(client, run.info.run_id)
    assert state is not None
    assert torch.equal(state.tensors["model.encoder.0.weight"], decoders["icml_vae10_rd@best"].en1.weight)
    assert not [name for name in state.tensors if "decoder" in name]
    packed = here.folder / "published.zip"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            if not path.is_symlink():
                archive.write(path, Path("top") / path.relative_to(folder))
    again = [row.outcome for row in import_archive(str(packed)).files]
    assert sorted(again) == ["already there"] * 6 + ["not recognised"] * 3
    assert len(client.search_model_versions("name = 'icml_vae10_rd'")) == 2


def get_z(client: MlflowClient, reference: str) -> int:
    name = reference.partition("@")[0].partition("/")[0]
    (version, *_) = client.search_model_versions(f"name = '{name}'")
    return int(client.get_run(version.run_id).data.params["model_train.z_size"])


def weights(seed: int) -> dict[str, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return decoder_of(build_model(get_hparams(SET))).state_dict()


def nothing_was_made(client: MlflowClient) -> bool:
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    return not client.search_runs(ids) and not client.search_registered_models()


def test_files_by_the_command(workplace: Workplace, client: MlflowClient) -> None:
    for epoch in (1, 2):
        torch.save({"state_dict": weights(epoch), "global_epoch": epoch}, workplace.folder / f"{epoch}.pth")
    words = ["import", "2.pth", "1.pth", "--name", "theirs", "--hparam-set", SET]
    planned = workplace.json(*words, "--dry-run")["files"]
    assert [row["outcome"] for row in planned] == ["would be imported"] * 2
    assert nothing_was_made(client)
    done = workplace.lossy(*words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1:] == [
        "imported  theirs  1        1.pth",
        "imported  theirs  2        2.pth",
    ]
    # Nobody has measured a loss: the newest is what the name means.
    assert client.get_registered_model("theirs").aliases == {"best": 2, "last": 2}
    (workplace.folder / "empty").mkdir()
    for code, says, wrong in [
        (2, "--name, the model to be, and --hparam-set", ["1.pth", "--name", "theirs"]),
        (1, "Nothing of empty was imported", ["empty"]),
    ]:
        done = workplace.lossy("import", *wrong)
        assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
        assert says in done.stderr


def test_another_file_of_an_epoch_begins_the_name_anew_or_is_refused(
    here: Workplace, client: MlflowClient
) -> None:
    for seed in (1, 2):
        torch.save(weights(seed), f"{seed}.pth")
    import_files(["1.pth"], name="theirs", hparam_set=SET)
    with pytest.raises(
        ConflictError, match=r"2\.pth is of epoch 0 of theirs, and so is version 1"
    ) as refused:
        import_files(["2.pth"], name="theirs", hparam_set=SET)
    assert "--overwrite" in refused.value.hint
    torch.save(decoder_of(build_model(get_hparams("vae10_digits"))).state_dict(), "wide.pth")
    with pytest.raises(ConflictError, match=r"imported with other hparams.*\n.*model_train.z_size"):
        import_files(["wide.pth"], name="theirs", hparam_set="vae10_digits")
    (row,) = import_files(["2.pth"], name="theirs", hparam_set=SET, overwrite=True).files
    assert (row.outcome, row.version) == ("imported", 2)
    assert client.get_registered_model("theirs").aliases == {"best": 2, "last": 2}
    # The earlier import's run is in the bin, as a training's would be.
    (run,) = client.search_runs([client.get_experiment_by_name("vaes/digits").experiment_id])
    assert "sha256" in run.data.tags["imported.epoch_0"]
    (row,) = import_files(["2.pth"], name="theirs", hparam_set=SET, overwrite=True).files
    assert (row.outcome, row.version) == ("already there", 2)


def test_a_name_that_a_training_owns_keeps_its_best(here: Workplace, client: MlflowClient) -> None:
    run = client.create_run(
        "0", tags={"kind": "train", "label": "mine", "mlflow.user": "root"}, run_name="mine"
    )
    tree = get_hparams(SET)
    publish(connect(), run.info.run_id, Publication("mine", "", tree, {}), Snapshot(5, 1.0, weights(1)))
    client.set_terminated(run.info.run_id)
    torch.save(weights(2), "theirs.pth")
    with pytest.raises(ConflictError, match=f"mine is what the run {run.info.run_id} has trained"):
        import_files(["theirs.pth"], name="mine", hparam_set=SET)
    assert client.get_registered_model("mine").aliases == {"best": 1, "last": 1}
    (row,) = import_files(["theirs.pth"], name="mine", hparam_set=SET, overwrite=True).files
    assert row.version == 2
    assert client.get_registered_model("mine").aliases == {"best": 2, "last": 2}
    # A later training takes the name back.
    run = client.create_run("0", tags={"kind": "train", "label": "mine"}, run_name="mine")
    publish(connect(), run.info.run_id, Publication("mine", "", tree, {}), Snapshot(1, 2.0, weights(3)))
    assert client.get_registered_model("mine").aliases == {"best": 3, "last": 3}


def test_a_name_that_another_process_is_at_work_on_is_left_to_it(here: Workplace) -> None:
    torch.save(weights(1), "1.pth")
    with (
        label_lock(connect().uri, "theirs"),
        pytest.raises(ConflictError, match="theirs is being trained or imported by another process"),
    ):
        import_files(["1.pth"], name="theirs", hparam_set=SET)


def test_an_import_that_died_is_finished_by_the_next(here: Workplace, client: MlflowClient) -> None:
    for epoch in (1, 2):
        torch.save(weights(epoch), f"epoch_{epoch}.pth")
    import_files(["epoch_1.pth"], name="theirs", hparam_set=SET)
    (run,) = client.search_runs([client.get_experiment_by_name("vaes/digits").experiment_id])
    client.update_run(run.info.run_id, status="RUNNING")
    rows = import_files(["epoch_1.pth", "epoch_2.pth"], name="theirs", hparam_set=SET).files
    assert [(row.outcome, row.version) for row in rows] == [("already there", 1), ("imported", 2)]
    assert client.get_run(run.info.run_id).info.status == "FINISHED"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_an_import_that_is_stopped_in_the_middle_is_finished_by_the_same_command(
    here: Workplace, client: MlflowClient, number: int, code: int
) -> None:
    epochs = range(1, 41)
    for epoch in epochs:
        torch.save(weights(epoch), f"epoch_{epoch}.pth")
    files = [f"epoch_{epoch}.pth" for epoch in epochs]
    process = here.start("import", *files, "--name", "theirs", "--hparam-set", SET)
    wait_for(lambda: len(client.search_model_versions("name = 'theirs'")) > 2, 60, "versions")
    process.send_signal(number)
    _, told = process.communicate(timeout=30)
    assert (process.returncode, "Traceback" in told) == (code, False), told
    (run,) = client.search_runs([client.get_experiment_by_name("vaes/digits").experiment_id])
    there = len(client.search_model_versions("name = 'theirs'"))
    assert there < len(epochs)
    if number == signal.SIGINT:
        assert run.info.status == "KILLED"
    rows = import_files(files, name="theirs", hparam_set=SET).files
    assert {row.outcome for row in rows} == {"imported", "already there"}
    versions = client.search_model_versions("name = 'theirs'")
    assert sorted(int(version.tags["epoch"]) for version in versions) == list(epochs)
    assert {version.run_id for version in versions} == {run.info.run_id}
    assert client.get_run(run.info.run_id).info.status == "FINISHED"
    assert here.lossy("verify", "theirs").returncode == 0


def test_what_may_not_be_read_is_told_of(here: Workplace, client: MlflowClient) -> None:
    folder = here.folder / "archive" / "checkpoints" / "locked"
    folder.mkdir(parents=True)
    torch.save(weights(1), folder / "best.pth")
    folder.chmod(0)
    # Root reads everything until it gives that right away.
    unprivileged = (
        ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"]
        if os.geteuid() == 0
        else []
    )
    for words, what in [
        (["archive"], "archive/checkpoints/locked can't be read: Permission denied"),
        (
            ["archive/checkpoints/locked/best.pth", "--name", "theirs", "--hparam-set", SET],
            "There is no access to archive/checkpoints/locked/best.pth: Permission denied",
        ),
    ]:
        done = here.run(*unprivileged, *here.command("import", *words))
        assert (done.returncode, "Traceback" in done.stderr) == (1, False), done.stderr
        assert what in done.stderr
    folder.chmod(0o700)
    assert nothing_was_made(client)


def test_what_cannot_be_imported_leaves_nothing_behind(here: Workplace, client: MlflowClient) -> None:
    good = weights(1)
    torch.save(good, "good.pth")
    torch.save({**good, "net.0.bias": torch.zeros(9)}, "shape.pth")
    torch.save({**good, "x_logvar": torch.tensor(float("nan"))}, "nan.pth")
    torch.save(torch.nn.Linear(2, 2), "module.pth")
    Path("cut.pth").write_bytes(Path("good.pth").read_bytes()[:-100])
    Path("folder").mkdir()
    cases: list[tuple[str, type[LossyError], str]] = [
        ("shape.pth", ConflictError, r"net.0.bias: in the file \(9,\)"),
        ("nan.pth", UsageError, "NaN or infinite"),
        ("module.pth", LossyError, "asks for torch.nn.modules.linear.Linear"),
        ("cut.pth", LossyError, "can't be read"),
        ("nowhere.pth", NotFoundError, "no file 'nowhere.pth'"),
        ("folder", UsageError, "is a folder"),
    ]
    for file, kind, says in cases:
        with pytest.raises(kind, match=says):
            import_files(["good.pth", file], name="theirs", hparam_set=SET)
    for name, kind in {"a/b": UsageError, "a@b": UsageError, "vae10_digits": ConflictError}.items():
        with pytest.raises(kind):
            import_files(["good.pth"], name=name, hparam_set=SET)
    with pytest.raises(UsageError, match="is not the published archive"):
        import_archive("good.pth")
    with pytest.raises(NotFoundError, match=SET):
        import_files(["good.pth"], name="theirs", hparam_set="vae2_digit")
    assert nothing_was_made(client)


def test_a_format_of_ones_own_is_read_by_a_converter(here: Workplace, client: MlflowClient) -> None:
    torch.save({"wrapped": weights(1)}, "theirs.ckpt")
    Path("mine.py").write_text(
        "import torch\nfrom lossy_mlflow import register_converter\n\n"
        "@register_converter('.ckpt')\ndef read(path):\n"
        "    return {n: t.numpy() for n, t in torch.load(path)['wrapped'].items()}\n\n"
        "@register_converter('.bad')\ndef fails(path):\n    return path.nothing\n\n"
        "@register_converter('.list')\ndef lists(path):\n    return [1]\n"
    )
    for suffix, says in {"bad": r"mine.py:10: AttributeError", "list": "returns a list, not a dict"}.items():
        Path(f"x.{suffix}").write_text("x")
        with pytest.raises(LossyError, match=says):
            import_files([f"x.{suffix}"], name="theirs", hparam_set=SET, user_code="mine.py")
    assert nothing_was_made(client)
    (row,) = import_files(["theirs.ckpt"], name="theirs", hparam_set=SET, user_code="mine.py").files
    assert row.outcome == "imported"
    loaded = lossy_mlflow.load_decoder("theirs").state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in weights(1).items())


def test_over_http_the_same(here: Workplace, mlflow_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(weights(1), "1.pth")
    for outcome in ("imported", "already there"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"outbox+{mlflow_server}")
        (row,) = import_files(["1.pth"], name="over_http", hparam_set=SET).files
        assert (row.outcome, row.version) == (outcome, 1)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(UnreachableError, match="doesn't answer"):
        import_files(["1.pth"], name="over_http", hparam_set=SET)


def test_nothing_here_trains_a_generator(here: Workplace) -> None:
    """It is said before MNIST is fetched for it."""
    with pytest.raises(UsageError, match="'mlp_generator' can't be trained: it has no loss"):
        lossy_mlflow.train("icml_shallow_gan5_GP", overrides={"model_train.hidden_sizes": [4]})
    with pytest.raises(NotFoundError, match="No registered model") as missing:
        lossy_mlflow.load_decoder("icml_shallow_gan5_GP")
    assert "lossy import ARCHIVE" in missing.value.hint

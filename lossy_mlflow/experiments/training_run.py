"""One training as a run: what is loaded, built, looped over, and what of it is stored when."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from mlflow.tracking.context.registry import resolve_tags

from lossy_mlflow.checkpoints.publish import Snapshot, ensure_registered_model, publish
from lossy_mlflow.checkpoints.retire import retire_earlier_runs
from lossy_mlflow.data import Splits, data_folder, load_splits
from lossy_mlflow.errors import ConflictError, UsageError
from lossy_mlflow.experiments.pictures import log_pictures
from lossy_mlflow.experiments.records import describe, log_datasets, log_provenance
from lossy_mlflow.experiments.warm_start import warm_start
from lossy_mlflow.hparams import Hparam, hparams_sha256
from lossy_mlflow.models import build_model, decoder_of
from lossy_mlflow.tracking.connection import Connection
from lossy_mlflow.tracking.identity import HEARTBEAT_LIMIT_S
from lossy_mlflow.tracking.metrics import EpochMetrics
from lossy_mlflow.tracking.ownership import lock_domain
from lossy_mlflow.tracking.provenance import git_commit, log_file
from lossy_mlflow.tracking.runs import experiment_for, log_hparams, runs_of_label, set_tags
from lossy_mlflow.tracking.session import StoppedError, running
from lossy_mlflow.tracking.signals import StopRequest, stop_request
from lossy_mlflow.tracking.training_state import Progress, load_training_state, save_training_state
from lossy_mlflow.training import (
    EpochResult,
    Settings,
    Stopped,
    generator_for,
    iwae_bound,
    load_state_tensors,
    make_optimizer,
    seeded,
    state_tensors,
    train_epochs,
)

if TYPE_CHECKING:
    from lossy_mlflow.experiments.train import EpochDone

log = logging.getLogger("lossy_mlflow")

# What of a run's tags its versions carry as well.
_VERSION_TAGS = {"hparam_set", "e_name", "hparams_sha256", "dataset_digest", "git_commit", "parent_version"}


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be trained, as the user asked for it."""

    label: str
    hparam_set: str
    e_name: str
    tree: Hparam
    device: str
    data_dir: str | None
    user_code: Path | None
    progress: Callable[[EpochDone], None] | None


@dataclass(slots=True)
class _Newest:
    """What a stop at any moment would store: the state after the last whole epoch, and the best decoder so far."""

    state: dict[str, torch.Tensor]
    best: Snapshot
    epoch: int = 0
    stored_epoch: int = -1


def run_training(
    connection: Connection, request: Request, *, resumed: str | None, made_for_us: str | None
) -> str:
    """Train, and return the id of the run: `resumed`, if given, else a new one, for which `mlflow run` may have made the shell.

    Whatever can be found wrong (the device, the data, the model, the rights) is found before the run exists.
    """
    tree = request.tree
    with stop_request() as asked:
        device = choose_device(request.device)
        settings = settings_of(tree)
        splits = load_splits(
            tree.dataset.name,
            data_folder(request.data_dir),
            settings.seed,
            train=tree.dataset.train is not False,
        )
        _check_sizes(tree, splits)
        with seeded(settings.seed):
            model = build_model(tree)
        taken = None if resumed else warm_start(connection, tree, model)
        model.to(device)
        ensure_registered_model(
            connection.client, request.label, describe(request.hparam_set, request.label, tree)
        )
        tags = _tags(request, splits, device, taken.parent if taken else "")
        run_id = resumed or _make_run(connection, request, tags, made_for_us)
        with running(connection, run_id, lock_domain()), log_file("train.log") as log_path:
            training = _Training(
                connection, request, settings, splits, model, device, run_id, log_path, asked
            )
            if taken:
                log.info("%s", taken.line)
            training.run(tags)
        return run_id


def choose_device(name: str) -> torch.device:
    """auto: a GPU where there is one. Raises UsageError for a GPU that isn't there."""
    if name not in ("auto", "cpu", "cuda"):
        raise UsageError(f"There is no device {name!r}.", "--device auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "torch sees no GPU on this machine.",
            "--device cpu, or auto, which takes a GPU where there is one",
        )
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def settings_of(tree: Hparam) -> Settings:
    """The numbers that the training loop takes. Raises UsageError, which names the field that is missing or of the wrong kind."""
    numbers = {
        "model_train.batch_size": tree.model_train and tree.model_train.batch_size,
        "model_train.epochs": tree.model_train and tree.model_train.epochs,
        "random_seed": tree.random_seed,
        "checkpointing_freq": tree.checkpointing_freq,
    }
    for field, value in numbers.items():
        least = 0 if field == "random_seed" else 1
        if not isinstance(value, int) or value < least:
            raise UsageError(
                f"The hparam {field} must be a whole number of at least {least}; it is {value!r}."
            )
    if not isinstance(tree.learning_rate, float) or not tree.learning_rate > 0:
        raise UsageError(f"The hparam learning_rate must be a number above 0; it is {tree.learning_rate!r}.")
    if tree.dataset is None or not isinstance(tree.dataset.name, str):
        raise UsageError("The hparam dataset.name is missing.", "See the data sets: lossy data list")
    return Settings(
        batch_size=tree.model_train.batch_size,
        epochs=tree.model_train.epochs,
        learning_rate=tree.learning_rate,
        seed=tree.random_seed,
        n_val_batch=tree.n_val_batch,
    )


def _check_sizes(tree: Hparam, splits: Splits) -> None:
    length = splits.train.shape[1]
    if tree.dataset.input_vector_length != length:
        raise UsageError(
            f"The images of {splits.name} have {length} values; "
            f"the hparam dataset.input_vector_length is {tree.dataset.input_vector_length}."
        )


def _tags(request: Request, splits: Splits, device: torch.device, parent: str) -> dict[str, str]:
    tags = {
        "kind": "train",
        "label": request.label,
        "hparam_set": request.hparam_set,
        "e_name": request.e_name,
        "hparams_sha256": hparams_sha256(request.tree),
        "dataset_digest": splits.digest,
        "git_commit": git_commit(),
        "device": device.type if device.type == "cuda" else f"cpu ({torch.get_num_threads()} threads)",
        "parent_version": parent,
        "mlflow.note.content": describe(request.hparam_set, request.label, request.tree),
    }
    return {key: value for key, value in tags.items() if value}


def _make_run(connection: Connection, request: Request, tags: dict[str, str], made_for_us: str | None) -> str:
    client = connection.client
    tags = {**tags, "owner": lock_domain(), "heartbeat": f"{connection.now():.0f}"}
    if made_for_us:
        set_tags(client, made_for_us, tags)
        run_id = made_for_us
    else:
        experiment = experiment_for(client, "/".join(request.tree.group_list or ["lossy"]))
        run = client.create_run(experiment.experiment_id, tags=resolve_tags(tags), run_name=request.label)
        run_id = run.info.run_id
    _give_way(connection, request.label, run_id)
    return run_id


def _give_way(connection: Connection, label: str, run_id: str) -> None:
    """Two machines may have started the label in the same second: the earlier run goes on, the later one ends here."""
    client = connection.client
    mine = client.get_run(run_id).info
    for other in runs_of_label(client, label):
        tags = other.data.tags
        lives = (
            other.info.status == "RUNNING" and connection.now() - float(tags["heartbeat"]) < HEARTBEAT_LIMIT_S
        )
        earlier = (other.info.start_time, other.info.run_id) < (mine.start_time, run_id)
        if lives and earlier and tags["owner"] != lock_domain():
            client.set_tag(run_id, "same_as", other.info.run_id)
            client.set_terminated(run_id, "KILLED")
            raise ConflictError(
                f"{label} was started at the same moment on {tags['owner'].partition(':')[0]}, which goes on.",
                f"Wait for it, or train another copy: --e-name NAME    (its run is {other.info.run_id})",
            )


class _Training:
    """The loop of one process over one run."""

    def __init__(
        self,
        connection: Connection,
        request: Request,
        settings: Settings,
        splits: Splits,
        model: torch.nn.Module,
        device: torch.device,
        run_id: str,
        log_path: Path,
        asked: StopRequest,
    ) -> None:
        self._client = connection.client
        self._request = request
        self._settings = settings
        self._model = model
        self._train = splits.train.to(device)
        self._val = splits.val.to(device)
        self._splits = splits
        self._device = device
        self._run_id = run_id
        self._log_path = log_path
        self._asked = asked
        self._optimizer = make_optimizer(model, settings.learning_rate)
        self._newest = self._restore()
        self._metrics = EpochMetrics(self._client, run_id)

    def run(self, tags: dict[str, str]) -> None:
        request = self._request
        set_tags(self._client, self._run_id, tags)
        log_hparams(self._client, self._run_id, request.tree)
        log_datasets(self._client, self._run_id, self._splits)
        log_provenance(self._client, self._run_id, request.user_code)
        self._version_tags = {key: value for key, value in tags.items() if key in _VERSION_TAGS}
        log.info(
            "%s: epoch %d of %d, on %s",
            request.label,
            self._newest.epoch,
            self._settings.epochs,
            tags["device"],
        )
        try:
            self._loop()
        except Stopped:
            self._metrics.flush()
            self._store_state()
            self._log_log()
            raise StoppedError(
                self._asked.name,
                f"{request.label} was stopped by {self._asked.name} after epoch {self._newest.epoch}; its state is saved.",
                f"Go on from there: {self._same_command()}",
            ) from None
        except BaseException:
            self._metrics.flush()
            log.exception("the training ended")
            self._log_log()
            raise
        self._finish()

    def _restore(self) -> _Newest:
        stored = load_training_state(self._client, self._run_id)
        if stored is None:
            return _Newest(state_tensors(self._model, self._optimizer), Snapshot(0, float("inf"), {}))
        tensors, progress = stored
        best = {
            name.removeprefix("best."): value for name, value in tensors.items() if name.startswith("best.")
        }
        state = {name: value for name, value in tensors.items() if not name.startswith("best.")}
        load_state_tensors(self._model, self._optimizer, state)
        log.info("resumed after epoch %d", progress.epoch)
        snapshot = Snapshot(progress.best_epoch, progress.best_val_loss, best)
        return _Newest(state, snapshot, progress.epoch, progress.epoch)

    def _loop(self) -> None:
        for result in train_epochs(
            self._model,
            self._optimizer,
            self._train,
            self._val,
            self._settings,
            start_epoch=self._newest.epoch,
            should_stop=self._asked,
        ):
            self._take(result)
            self._metrics.log(result)
            if self._request.progress:
                self._report(result)
            if self._due(result.epoch):
                self._checkpoint(result.epoch, result.val_loss)

    def _take(self, result: EpochResult) -> None:
        newest = self._newest
        newest.state, newest.epoch = state_tensors(self._model, self._optimizer), result.epoch
        if result.val_loss < newest.best.val_loss:
            newest.best = Snapshot(result.epoch, result.val_loss, self._decoder_weights())

    def _decoder_weights(self) -> dict[str, torch.Tensor]:
        state = decoder_of(self._model).state_dict()
        return {name: value.detach().cpu().clone().contiguous() for name, value in state.items()}

    def _report(self, result: EpochResult) -> None:
        from lossy_mlflow.experiments.train import EpochDone

        assert self._request.progress is not None
        self._request.progress(
            EpochDone(
                self._request.label, result.epoch, self._settings.epochs, result.train_loss, result.val_loss
            )
        )

    def _due(self, epoch: int) -> bool:
        tree = self._request.tree
        return epoch >= (tree.start_checkpointing or 0) and epoch % tree.checkpointing_freq == 0

    def _checkpoint(self, epoch: int, val_loss: float) -> None:
        self._metrics.flush()
        log_pictures(self._client, self._run_id, self._request.tree, self._model, self._val, epoch)
        self._publish(Snapshot(epoch, val_loss, self._decoder_weights()))
        self._store_state()
        self._log_log()

    def _publish(self, newest: Snapshot) -> None:
        request = self._request
        for snapshot in (self._newest.best, newest):
            if snapshot.epoch:
                version = publish(
                    self._client, self._run_id, request.label, request.tree, snapshot, self._version_tags
                )
                log.info("epoch %d is version %d of %s", snapshot.epoch, version, request.label)
        retire_earlier_runs(self._client, request.label, self._run_id)

    def _store_state(self) -> None:
        newest = self._newest
        if newest.epoch == newest.stored_epoch:
            return
        tensors = newest.state | {f"best.{name}": value for name, value in newest.best.weights.items()}
        progress = Progress(newest.epoch, newest.best.epoch, newest.best.val_loss)
        save_training_state(self._client, self._run_id, tensors, progress)
        newest.stored_epoch = newest.epoch

    def _log_log(self) -> None:
        self._client.log_artifact(self._run_id, str(self._log_path), "logs")

    def _finish(self) -> None:
        epoch = self._newest.epoch
        self._metrics.flush()
        if samples := self._request.tree.n_iwae_samples:
            bound, error = iwae_bound(
                self._model, self._val, samples, generator_for(self._settings.seed, "iwae", 0, self._device)
            )
            self._metrics.log_once({"val_iwae_bound": bound, "val_iwae_bound_se": error}, epoch)
        self._checkpoint(epoch, self._metrics.last_val_loss)

    def _same_command(self) -> str:
        request = self._request
        return shlex.join(
            ["lossy", "train", request.hparam_set]
            + ([f"--e-name={request.e_name}"] if request.e_name else [])
        )

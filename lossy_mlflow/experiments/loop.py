"""The loop of one process over one run: what of a training is stored when."""

from __future__ import annotations

import contextlib
import logging
import shlex
from dataclasses import dataclass
from pathlib import Path

import torch

from lossy_mlflow.checkpoints.publish import Snapshot, publish
from lossy_mlflow.checkpoints.retire import retire_earlier_runs
from lossy_mlflow.data import Splits
from lossy_mlflow.experiments.pictures import log_pictures
from lossy_mlflow.experiments.records import log_datasets, log_provenance
from lossy_mlflow.experiments.request import EpochDone, Request
from lossy_mlflow.models import decoder_of
from lossy_mlflow.tracking.connection import Connection
from lossy_mlflow.tracking.metrics import EpochMetrics
from lossy_mlflow.tracking.runs import log_hparams, set_tags
from lossy_mlflow.tracking.session import StoppedError
from lossy_mlflow.tracking.signals import StopRequest
from lossy_mlflow.tracking.training_state import Progress, load_training_state, save_training_state
from lossy_mlflow.training import (
    EpochResult,
    Settings,
    Stopped,
    generator_for,
    iwae_bound,
    load_state_tensors,
    make_optimizer,
    state_tensors,
    train_epochs,
)

log = logging.getLogger("lossy_mlflow")

# What of a run's tags its versions carry as well.
_VERSION_TAGS = {"hparam_set", "e_name", "hparams_sha256", "dataset_digest", "git_commit", "parent_version"}


@dataclass(slots=True)
class _Newest:
    """What a stop at any moment would store: the state after the last whole epoch, and the best decoder so far."""

    state: dict[str, torch.Tensor]
    best: Snapshot
    epoch: int = 0
    stored_epoch: int = -1


class Training:
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
        stored = self._client.get_run(self._run_id).data.tags
        self._version_tags = {key: value for key, value in stored.items() if key in _VERSION_TAGS}
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
            log.exception("the training ended")
            # What ended it may be in the way of these as well; it is what must be told.
            for save in (self._metrics.flush, self._log_log):
                with contextlib.suppress(Exception):
                    save()
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

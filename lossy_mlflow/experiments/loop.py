"""The loop of one process over one run: what of a training is stored when."""

from __future__ import annotations

import contextlib
import logging
import shlex
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch

from lossy_mlflow.checkpoints.flavor import refuse_unloadable
from lossy_mlflow.checkpoints.publish import Publication, Snapshot, publish
from lossy_mlflow.data import Splits
from lossy_mlflow.errors import LossyError
from lossy_mlflow.experiments.pictures import drawn_epochs, log_pictures, samples_png
from lossy_mlflow.experiments.records import AttemptRecords, describe, log_datasets
from lossy_mlflow.experiments.request import EpochDone, Request
from lossy_mlflow.experiments.trial import remedies
from lossy_mlflow.hparams import flatten, origins
from lossy_mlflow.models import decoder_of
from lossy_mlflow.outbox.unsaved import UNSAVED_TAG
from lossy_mlflow.tracking.ending import StoppedError
from lossy_mlflow.tracking.metrics import EpochMetrics
from lossy_mlflow.tracking.runs import log_hparams
from lossy_mlflow.tracking.session import Attempt
from lossy_mlflow.tracking.signals import StopRequest
from lossy_mlflow.tracking.training_state import Progress, TrainingState, TrainingStates
from lossy_mlflow.training import (
    EpochResult,
    NonFiniteLossError,
    Settings,
    Stopped,
    generator_for,
    iwae_bound,
    load_state_tensors,
    make_optimizer,
    state_tensors,
    train_epochs,
    with_labels,
)

log = logging.getLogger("lossy_mlflow")

# What of a run's tags its versions carry as well.
_VERSION_TAGS = ("hparam_set", "e_name", "parent_version", "git_commit", "dataset_digest", "hparams_sha256")
# As much as an outbox keeps in memory of what else it can't write: the best and the newest decoder always, others while it lasts.
_WAITING_BYTES = 64_000_000


@dataclass(slots=True)
class _Newest:
    """What a stop at any moment would store: the state after the last whole epoch, and the best decoder so far."""

    state: dict[str, torch.Tensor]
    best: Snapshot
    epoch: int = 0
    stored_epoch: int = -1


class Training:
    """The loop of one process over one run. `state`: what an earlier attempt has stored, to go on from."""

    def __init__(
        self,
        attempt: Attempt,
        request: Request,
        settings: Settings,
        splits: Splits,
        model: torch.nn.Module,
        device: torch.device,
        state: TrainingState | None,
        asked: StopRequest,
    ) -> None:
        self._attempt = attempt
        self._client = attempt.connection.client
        self._run_id = attempt.run_id
        self._request = request
        self._settings = settings
        self._model = model
        self._train = with_labels(splits.train, splits.train_labels).to(device)
        self._val = with_labels(splits.val, splits.val_labels).to(device)
        self._val_images = self._val[:, : splits.val.shape[1]]
        self._splits = splits
        self._device = device
        self._asked = asked
        self._optimizer = make_optimizer(model, settings.learning_rate)
        self._newest = self._restore(state)
        self._metrics = EpochMetrics(self._client, self._run_id)
        self._states = TrainingStates(attempt.connection, self._run_id, state)
        self._published: set[int] = set()
        # What a full disk had no room for: tried again at each checkpoint.
        self._unpublished: dict[int, Snapshot] = {}

    def run(self) -> None:
        """Train to the end. Raises StoppedError where somebody asks the process to stop; its newest state is stored then."""
        with AttemptRecords(self._attempt.connection, self._run_id, self._request.user_code) as records:
            try:
                self._records = records
                self._begin()
                self._loop()
                self._finish()
            except Stopped:
                self._metrics.flush()
                self._attempt.must_be_current()
                self._publish_waiting()
                self._store_state()
                raise self._stopped() from None
            except Exception:
                log.exception("the training ended")
                # What ended it may be in the way of these as well; it is what must be told.
                with contextlib.suppress(Exception):
                    self._metrics.flush()
                raise

    def _begin(self) -> None:
        with self._keeping("hparams.json"):
            log_hparams(self._client, self._run_id, self._request.tree)
        log_datasets(self._client, self._run_id, self._splits)
        self._drawn = drawn_epochs(self._client, self._run_id)
        tags = self._client.get_run(self._run_id).data.tags
        if (outbox := self._attempt.connection.outbox) and UNSAVED_TAG in tags:
            outbox.journal(self._run_id).remember_unsaved(tags[UNSAVED_TAG])
        label, tree, epochs = self._request.label, self._request.tree, self._settings.epochs
        version_tags = {key: tags[key] for key in _VERSION_TAGS if key in tags}
        self._publication = Publication(label, describe(label, tree), tree, version_tags)
        log.info("%s: epoch %d of %d, on %s", label, self._newest.epoch, epochs, self._device)
        if "started_from" in tags:
            log.info("started from %s", tags["started_from"])
        if self._newest.epoch == 0:
            # Before any training, so that the UI's slider of steps has something at its start.
            self._draw(0)
            if "started_from" in tags:
                # What another model gave isn't asked for again: that one may have moved on by then.
                self._store_state()

    def _restore(self, state: TrainingState | None) -> _Newest:
        if state is None:
            return _Newest(state_tensors(self._model, self._optimizer), Snapshot(0, float("inf"), {}))
        tensors, progress = state.tensors, state.progress
        best = {key.removeprefix("best."): value for key, value in tensors.items() if key.startswith("best.")}
        own = {key: value for key, value in tensors.items() if not key.startswith("best.")}
        load_state_tensors(self._model, self._optimizer, own)
        snapshot = Snapshot(progress.best_epoch, progress.best_val_loss, best)
        return _Newest(own, snapshot, progress.epoch, progress.epoch)

    def _loop(self) -> None:
        epochs = train_epochs(
            self._model,
            self._optimizer,
            self._train,
            self._val,
            self._settings,
            start_epoch=self._newest.epoch,
            should_stop=self._asked,
        )
        try:
            for result in epochs:
                self._take(result)
                self._metrics.log(result)
                self._report(result)
                if self._due(result.epoch):
                    self._checkpoint(result.epoch, result.val_loss)
        except NonFiniteLossError as error:
            raise NonFiniteLossError(error.what, remedies(self._request.tree)) from None

    def _take(self, result: EpochResult) -> None:
        newest = self._newest
        newest.state, newest.epoch = state_tensors(self._model, self._optimizer), result.epoch
        if result.val_loss < newest.best.val_loss:
            newest.best = Snapshot(result.epoch, result.val_loss, self._decoder_weights())
            if result.epoch == 1:
                # Not hours later, at the first version.
                refuse_unloadable(newest.best.weights, self._request.tree)

    def _decoder_weights(self) -> dict[str, torch.Tensor]:
        state = decoder_of(self._model).state_dict()
        return {name: value.detach().cpu().clone().contiguous() for name, value in state.items()}

    def _report(self, result: EpochResult) -> None:
        label, epochs = self._request.label, self._settings.epochs
        log.info("epoch %d: train_loss %.4f, val_loss %.4f", result.epoch, result.train_loss, result.val_loss)
        if self._request.progress:
            self._request.progress(EpochDone(label, result.epoch, epochs, result.train_loss, result.val_loss))

    def _due(self, epoch: int) -> bool:
        tree = self._request.tree
        return epoch >= (tree.start_checkpointing or 0) and epoch % tree.checkpointing_freq == 0

    def _checkpoint(self, epoch: int, val_loss: float) -> None:
        self._metrics.flush()
        self._attempt.must_be_current()
        self._draw(epoch)
        self._publish(Snapshot(epoch, val_loss, self._decoder_weights()))
        self._store_state()
        self._records.store_log()

    def _draw(self, epoch: int) -> None:
        if epoch not in self._drawn:
            with self._keeping(f"pictures of epoch {epoch}"):
                log_pictures(
                    self._client, self._run_id, self._request.tree, self._model, self._val_images, epoch
                )
                self._drawn.add(epoch)

    def _publish(self, newest: Snapshot) -> None:
        for snapshot in (self._newest.best, newest):
            if snapshot.epoch and snapshot.epoch not in self._published:
                self._unpublished[snapshot.epoch] = replace(snapshot, samples=self._samples(snapshot.weights))
        self._publish_waiting()
        wanted = (self._newest.best.epoch, newest.epoch)
        for snapshot in list(self._unpublished.values()):
            size = sum(
                tensor.nbytes for item in self._unpublished.values() for tensor in item.weights.values()
            )
            if size > _WAITING_BYTES and snapshot.epoch not in wanted:
                del self._unpublished[snapshot.epoch]

    def _samples(self, weights: Mapping[str, torch.Tensor]) -> bytes:
        """The picture of the decoder with `weights`, which may be of an earlier epoch; the model is then as it was."""
        decoder, newest = decoder_of(self._model), self._decoder_weights()
        decoder.load_state_dict(weights)
        try:
            return samples_png(decoder, self._request.tree, self._device)
        finally:
            decoder.load_state_dict(newest)

    def _publish_waiting(self) -> None:
        for epoch, snapshot in sorted(self._unpublished.items()):
            with self._keeping(f"version of epoch {epoch}"):
                publish(self._attempt.connection, self._run_id, self._publication, snapshot)
                self._published.add(epoch)
                del self._unpublished[epoch]

    def _keeping(self, what: str) -> AbstractContextManager[None]:
        return self._attempt.connection.keeping(self._run_id, what)

    def _store_state(self) -> None:
        newest = self._newest
        if newest.epoch == newest.stored_epoch:
            return
        tensors = newest.state | {f"best.{name}": value for name, value in newest.best.weights.items()}
        progress = Progress(newest.epoch, newest.best.epoch, newest.best.val_loss)
        with self._keeping("training state"):
            self._states.save(tensors, progress)
            newest.stored_epoch = newest.epoch

    def _finish(self) -> None:
        epoch = self._newest.epoch
        self._checkpoint(epoch, self._metrics.last_val_loss)
        if samples := self._request.tree.n_iwae_samples:
            noise = generator_for(self._settings.seed, "iwae", 0, self._device)
            bound, error = iwae_bound(self._model, self._val_images, samples, noise)
            self._metrics.log_once({"val_iwae_bound": bound, "val_iwae_bound_se": error}, epoch)
        if self._unpublished:
            # A run that says FINISHED would not be gone on with, and nobody would have its decoder.
            raise LossyError(
                f"{self._request.label} is trained, but no disk has room for its decoder of epoch"
                f" {' and '.join(map(str, self._unpublished))}; {self._saved()}.",
                f"Free some space, then the same again: {same_command(self._request)}",
            )

    def _stopped(self) -> StoppedError:
        asked, epoch = self._asked.name, self._newest.epoch
        return StoppedError(
            asked,
            f"{self._request.label} was stopped by {asked} after epoch {epoch}; {self._saved()}.",
            f"Go on from there: {same_command(self._request)}",
        )

    def _saved(self) -> str:
        """How far the same command would find it."""
        stored = self._newest.stored_epoch
        if stored == self._newest.epoch:
            return "its state is saved"
        return (
            f"its newest state that could be saved is of epoch {stored}"
            if stored > 0
            else "no state could be saved"
        )


def same_command(request: Request) -> str:
    """The command that asks for the same again, as a shell takes it."""
    flat, who = flatten(request.tree), origins(request.tree)
    words = ["lossy", "train", request.hparam_set]
    words += [f"--e-name={request.e_name}"] if request.e_name else []
    words += [f"--set={key}={flat[key]}" for key in flat if who[key] == "override"]
    words += [f"--user-code={request.user_code}"] if request.user_code else []
    words += [f"--device={request.device}"] if request.device != "auto" else []
    words += [f"--data-dir={request.data_dir}"] if request.data_dir else []
    return shlex.join(words)

"""Starting from what another label has learned: `load_checkpoint_name`."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch

from lossy_mlflow.checkpoints.load import load_checkpoint
from lossy_mlflow.checkpoints.lookup import Checkpoint, resolve
from lossy_mlflow.checkpoints.reference import BEST_STEP
from lossy_mlflow.errors import ConflictError
from lossy_mlflow.hparams import Hparam
from lossy_mlflow.models import decoder_of
from lossy_mlflow.tracking.connection import Connection
from lossy_mlflow.tracking.training_state import LostStateError, load_training_state
from lossy_mlflow.training import load_matching

log = logging.getLogger("lossy_mlflow")


@dataclass(frozen=True, slots=True)
class WarmStart:
    """What was taken: `parent`, the version's reference, and a line for people. `has_encoder`: the rest came as well, whole."""

    parent: str
    line: str
    has_encoder: bool


def warm_start(connection: Connection, tree: Hparam, model: torch.nn.Module) -> WarmStart | None:
    """Fill `model` from the label that `tree.load_checkpoint_name` names; None where it names none.

    The decoder comes from the registered version that `tree.chkt_step` means (-2 best, -1 last, N the one of epoch N), and
    must fit. The rest, an encoder, comes from the training state of that version's run, tensor by tensor where the shapes agree;
    where that state is gone or damaged, the decoder is all there is.
    Raises NotFoundError where the name can't be resolved; ConflictError where the decoder doesn't fit.
    """
    if not tree.load_checkpoint_name:
        return None
    # The sets of the catalogue say BEST_STEP: that leaves a reference to one version, OTHER@champion, its own say.
    step = None if tree.chkt_step == BEST_STEP else tree.chkt_step
    checkpoint = resolve(tree.load_checkpoint_name, step)
    stored = load_checkpoint(checkpoint)
    decoder = decoder_of(model)
    weights = stored.state_dict()
    matched = load_matching(decoder, weights)
    missing = sorted(set(matched.kept) | weights.keys() - set(matched.taken))
    if missing:
        raise ConflictError(
            f"The decoder of {checkpoint.name}/{checkpoint.version} doesn't fit this model: {', '.join(missing[:3])}.",
            f"Compare the two: lossy hparams diff {checkpoint.hparam_set} NAME",
        )
    encoder, has_encoder = _take_encoder(connection, checkpoint, model)
    source = f"{checkpoint.name}/{checkpoint.version}"
    epoch = f" (epoch {checkpoint.epoch})" if checkpoint.epoch is not None else ""
    return WarmStart(source, f"{source}{epoch}: the decoder whole, {encoder}", has_encoder)


def _take_encoder(connection: Connection, checkpoint: Checkpoint, model: torch.nn.Module) -> tuple[str, bool]:
    """What is said of it, and whether it is there whole."""
    if decoder_of(model) is model:
        return "and there is nothing else to take", False
    inside = tuple(f"decoder.{name}" for name in decoder_of(model).state_dict())
    wanted = [name for name in model.state_dict() if name not in inside]
    try:
        state = load_training_state(connection.client, checkpoint.run_id) if checkpoint.run_id else None
    except LostStateError as error:
        return _no_encoder(checkpoint, error.what), False
    if state is None:
        return _no_encoder(checkpoint, "its run has no training state"), False
    tensors, progress = state.tensors, state.progress
    rest = {
        name.removeprefix("model."): value
        for name, value in tensors.items()
        if name.startswith("model.") and name.removeprefix("model.") in wanted
    }
    matched = load_matching(model, rest)
    line = f"{len(matched.taken)} of {len(wanted)} tensors of the encoder (as after epoch {progress.epoch} of its run)"
    return line, len(matched.taken) == len(wanted)


def _no_encoder(checkpoint: Checkpoint, why: str) -> str:
    # It decides what comes of hours of training: said before them, asked for or not.
    log.warning("%s/%d gives no encoder: %s", checkpoint.name, checkpoint.version, why)
    return f"no encoder: {why}"

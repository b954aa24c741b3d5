"""What is evaluated: which decoder, by which settings, on which images; and so, which evaluation it is."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lossy_mlflow.checkpoints.lookup import Checkpoint, resolve_at
from lossy_mlflow.checkpoints.reference import BEST_STEP, parse_reference
from lossy_mlflow.errors import NotFoundError, UsageError
from lossy_mlflow.hparams import (
    Hparam,
    apply_overrides,
    diff,
    evaluate_command,
    evaluates,
    flatten,
    get_hparams,
    set_names,
)
from lossy_mlflow.hparams.catalogue.parts import default_rd
from lossy_mlflow.hparams.tree import freeze, thaw

if TYPE_CHECKING:
    import torch
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from torch import Tensor, nn

    from lossy_mlflow.experiments.rd_settings import RdSettings
    from lossy_mlflow.rate_distortion import Distortion
    from lossy_mlflow.tracking.connection import Connection

log = logging.getLogger("lossy_mlflow")


@dataclass(frozen=True, slots=True)
class Plan:
    """An evaluation as it was asked for. `tree`: group_list, load_checkpoint_name, chkt_step, step_sizes_target and rd."""

    label: str
    hparam_set: str
    checkpoint: Checkpoint
    tree: Hparam
    quick: bool

    @property
    def reference(self) -> str:
        return f"{self.checkpoint.name}/{self.checkpoint.version}"


def plan(connection: Connection, name: str, overrides: Mapping[str, Any] | None, quick: bool) -> Plan:
    """What `name` means: a set that evaluates (it has no model of its own), else a reference to a version.

    A reference is evaluated by the `rd` of the set that it was trained from. Raises NotFoundError as `resolve` and `get_hparams`
    do, UsageError for an override that doesn't fit.
    """
    if name in set_names() and evaluates(get_hparams(name)):
        tree = _as_asked(get_hparams(name), overrides, name, quick)
        if not tree.load_checkpoint_name:
            raise UsageError(
                f"The set {name!r} names no decoder: its load_checkpoint_name is undefined.",
                "Put it where the set is defined: tree.load_checkpoint_name = LABEL",
            )
        step = None if tree.chkt_step == BEST_STEP else tree.chkt_step
        checkpoint = resolve_at(connection, parse_reference(tree.load_checkpoint_name), step)
        label, hparam_set = name, name
    else:
        checkpoint = resolve_at(connection, parse_reference(name))
        label, hparam_set = checkpoint.name, checkpoint.hparam_set
        tree = _tree_of_set(hparam_set, f"{checkpoint.name}/{checkpoint.version}")
        tree = _as_asked(tree, overrides, name, quick)
    return Plan(label, hparam_set, checkpoint, tree, quick)


def _as_asked(tree: Hparam, overrides: Mapping[str, Any] | None, name: str, quick: bool) -> Hparam:
    """What is set by hand counts after what makes it quick."""
    from lossy_mlflow.experiments.rd_settings import quick as quickened

    tree = freeze(quickened(tree)) if quick else tree
    return apply_overrides(tree, overrides, name) if overrides else tree


def command_of(client: MlflowClient, run: Run) -> str:
    """The `lossy evaluate` of which `plan` makes the evaluation of that run: it goes on with it.

    Where the set isn't known here, as one's own may be, or has other fields by now, words stand for its options.
    """
    from lossy_mlflow.experiments.rd_settings import quick as quickened
    from lossy_mlflow.tracking.runs import hparams_of_run

    tags = run.data.tags
    name, hparam_set, reference = (tags.get(key, "") for key in ("label", "hparam_set", "model_version"))
    quick = ["--quick"] if tags.get("quick") else []
    command = None
    with contextlib.suppress(NotFoundError):
        itself = get_hparams(hparam_set)
        tree = itself if evaluates(itself) else _tree_of_set(hparam_set, reference)
        changes = diff(quickened(tree) if quick else tree, hparams_of_run(client, run))
        if not any(None in change for change in changes):
            options = [word for key, _, value in changes for word in ("--set", f"{key}={value}")]
            reference = "" if evaluates(itself) else reference
            command = evaluate_command(hparam_set, *quick, *options, reference=reference)
    return command or f"{shlex.join(['lossy', 'evaluate', name, *quick])}, with the options that it had"


def _tree_of_set(hparam_set: str, reference: str) -> Hparam:
    """What evaluates a decoder of this set. One that isn't known here, or has no `rd`, is evaluated as the catalogue's are."""
    try:
        trained = get_hparams(hparam_set)
    except NotFoundError:
        trained = Hparam()
    rd = trained.rd if isinstance(trained.rd, Hparam) else default_rd()
    return freeze(
        Hparam(
            group_list=list(trained.group_list or ["lossy"]),
            load_checkpoint_name=reference,
            chkt_step=BEST_STEP,
            step_sizes_target=None,
            rd=thaw(rd),
        )
    )


@dataclass(frozen=True, slots=True)
class Subject:
    """What is measured: `images` (n_images, input_vector_length) on the device of `decoder`; `trained`: the tree of its training.

    `made`: the distortion of some images. `train_images`: what an encoder can learn from; none where none does.
    `autoencoder`: the whole model, where its encoder is to be had and is asked for. `feature_map`: the version whose features
    are compared, or ''.
    """

    settings: RdSettings
    decoder: nn.Module
    trained: Hparam
    z_size: int
    images: Tensor
    train_images: Tensor
    data_digest: str
    made: Callable[[Tensor], Distortion]
    autoencoder: nn.Module | None
    feature_map: str


def subject_of(connection: Connection, planned: Plan, device: str, data_dir: str | None) -> Subject:
    """Raises UsageError for a field that doesn't fit, and what loading the decoder and the images raises."""
    from lossy_mlflow.checkpoints.load import load_checkpoint, load_with_hparams
    from lossy_mlflow.data import data_folder, load_splits
    from lossy_mlflow.experiments.rd_settings import rd_settings
    from lossy_mlflow.models import Decoder
    from lossy_mlflow.models.device import choose_device
    from lossy_mlflow.models.fields import whole_number

    settings = rd_settings(planned.tree)
    on = choose_device(device)
    decoder, trained = load_with_hparams(planned.checkpoint, str(on))
    if not isinstance(decoder, Decoder):
        raise UsageError(
            f"{planned.reference} is no decoder but a map of features: it has no rate.",
            f"Measure a decoder by it: --set rd.target=features --set rd.feature_map={planned.checkpoint.name}",
        )
    z_size = whole_number(trained, "model_train.z_size")
    decoder = _changed(decoder, trained, settings)
    features, map_of_features = None, None
    if settings.feature_map:
        map_of_features = resolve_at(connection, parse_reference(settings.feature_map))
        features = load_checkpoint(map_of_features, str(on))
    splits = load_splits(
        trained.dataset.name,
        data_folder(data_dir),
        trained.random_seed or 0,
        train=trained.dataset.train is not False,
        progress=log.warning,
    )
    images = (splits.train if settings.data == "train" else splits.test)[: settings.n_images].to(on)
    if len(images) < settings.n_images:
        raise UsageError(
            f"rd.batch_size x rd.n_batch is {settings.n_images}; {splits.name} has {len(images)} {settings.data} images.",
            f"Take fewer: --set rd.n_batch=1 --set rd.batch_size={len(images)}",
        )
    made = _maker(decoder, z_size, settings, features)
    digest = images_digest(images)
    if map_of_features:
        # Features are the data: those of another map are others.
        digest = hashlib.sha256(f"features {map_of_features.weights_sha256} {digest}".encode()).hexdigest()
    if settings.data == "simulate":
        digest = hashlib.sha256(
            f"simulated {settings.random_seed} {settings.n_images} {digest}".encode()
        ).hexdigest()
    whole = _autoencoder(connection, planned, trained, settings, on) if settings.log_likelihood else None
    learned_from = splits.train[: None if settings.estimator == "variational" else 0].to(on)
    measured_by = f"{map_of_features.name}/{map_of_features.version}" if map_of_features else ""
    return Subject(settings, decoder, trained, z_size, images, learned_from, digest, made, whole, measured_by)


def _autoencoder(
    connection: Connection, planned: Plan, trained: Hparam, settings: RdSettings, on: torch.device
) -> nn.Module | None:
    """The model with the encoder of its training; None where that isn't to be had, or the decoder was changed since."""
    from lossy_mlflow.experiments.warm_start import warm_start
    from lossy_mlflow.models import Autoencoder, build_model

    if settings.blur_std is not None or settings.overwrite_variance is not None:
        return None
    model = build_model(trained)
    if not isinstance(model, Autoencoder):
        return None
    source = Hparam(load_checkpoint_name=planned.reference, chkt_step=BEST_STEP)
    taken = warm_start(connection, source, model)
    return model.to(on).eval() if taken and taken.has_encoder else None


def _changed(decoder: nn.Module, trained: Hparam, settings: RdSettings) -> nn.Module:
    """The decoder with the blur or the variance that the settings name."""
    if settings.blur_std is None and settings.overwrite_variance is None:
        return decoder
    from lossy_mlflow.models.blur import blurred, with_variance
    from lossy_mlflow.models.fields import image_shape

    if settings.blur_std is not None:
        decoder = blurred(decoder, image_shape(trained), settings.blur_std)
    if settings.overwrite_variance is not None:
        decoder = with_variance(decoder, settings.overwrite_variance)
    return decoder


def _maker(
    decoder: nn.Module, z_size: int, settings: RdSettings, features: nn.Module | None
) -> Callable[[Tensor], Distortion]:
    from lossy_mlflow.rate_distortion import feature_error, negative_log_likelihood, squared_error

    if features is not None:
        return lambda images: feature_error(decoder, features, images, z_size)
    make = negative_log_likelihood if settings.target == "joint" else squared_error
    return lambda images: make(decoder, images, z_size)


def identity(weights_sha256: str, data_digest: str, tree: Hparam, quick: bool) -> str:
    """What two evaluations have in common that are the same: the decoder's weights, the images, `rd`. 64 hex digits."""
    about = {
        "weights": weights_sha256,
        "data": data_digest,
        "rd": flatten(tree.rd),
        "step_sizes_target": tree.step_sizes_target,
        "quick": quick,
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def images_digest(images: Tensor) -> str:
    """Over the images' shape and values. 64 hex digits."""
    digest = hashlib.sha256(f"{list(images.shape)} {images.dtype}\n".encode())
    digest.update(images.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()

"""What a GAN's settings file says of its generator: a command line, as its training program was given it. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lossy_mlflow.checkpoints.foreign.published import UnrecognisedError

_DEFAULTS = {
    "imageSize": "32",
    "g_type": "dcgan",
    "nz": "100",
    "ngf": "128",
    "ng_conv": "4",
    "g_nm": "bn",
}
_HIDDEN_LAYERS = {"sheldon_mlp": 3, "sheldon_mlp3": 2, "sheldon_mlp2": 1}
_CHANNELS = {"mnist": 1, "cifar10": 3}


@dataclass(frozen=True, slots=True)
class GanSettings:
    """The set that is nearest to the generator, and the overrides of its fields that make its tree of it."""

    hparam_set: str
    overrides: Mapping[str, Any]


def parse_gan_settings(text: str) -> GanSettings:
    """Read the options that say which generator was trained; what is not given has the program's default.

    Raises UnrecognisedError for a generator or data that are none of the published ones, and for numbers that are none.
    """
    options = _DEFAULTS | _options(text)
    dataset, g_type = options.get("dataset", ""), options["g_type"]
    if dataset not in _CHANNELS:
        raise UnrecognisedError(
            f"its settings say --dataset {dataset or '(nothing)'}; known are mnist and cifar10"
        )
    side, z_size, width = (_number(options, key) for key in ("imageSize", "nz", "ngf"))
    dims = [_CHANNELS[dataset], side, side]
    images = {
        "dataset.name": dataset,
        "dataset.input_dims": dims,
        "dataset.input_vector_length": math.prod(dims),
        "model_train.z_size": z_size,
    }
    if g_type in _HIDDEN_LAYERS:
        n_hidden = _HIDDEN_LAYERS[g_type]
        nearest = "icml_shallow_gan10_GP" if n_hidden == 1 else "icml_deep_gan10_GP"
        return GanSettings(nearest, {**images, "model_train.hidden_sizes": [width] * n_hidden})
    if g_type != "dcgan":
        known = ", ".join([*_HIDDEN_LAYERS, "dcgan"])
        raise UnrecognisedError(f"its settings say --g_type {g_type}; known are {known}")
    # That program takes these two in capitals as well.
    norm = options["g_nm"].lower() if options["g_nm"].lower() in ("ln", "none") else options["g_nm"]
    if norm == "ln":
        raise UnrecognisedError(
            "its settings say --g_nm ln, with which that code's DCGAN can't run on images"
        )
    convolutions = {
        "model_train.n_filters": width,
        "model_train.n_convs": _number(options, "ng_conv"),
        "model_train.norm": norm,
    }
    nearest = "dcgan10_mnist" if dataset == "mnist" else "icml_CIFAR10_dcgan10_V"
    return GanSettings(nearest, {**images, **convolutions})


def _options(text: str) -> dict[str, str]:
    """--key value, --key=value; a --key before another one has no value."""
    found: dict[str, str] = {}
    key = ""
    for word in text.split():
        if word.startswith("--"):
            key, equals, value = word[2:].partition("=")
            if equals:
                found[key] = value
        elif key:
            found[key] = word
            key = ""
    return found


def _number(options: Mapping[str, str], key: str) -> int:
    text = options[key]
    if not (text.isascii() and text.isdigit() and len(text) <= 6 and int(text) > 0):
        raise UnrecognisedError(f"its settings say --{key} {text[:20]!r}, which is no size")
    return int(text)

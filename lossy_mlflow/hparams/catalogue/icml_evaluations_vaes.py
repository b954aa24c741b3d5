"""How Huang et al. 2020 evaluate their VAEs on MNIST, by the names that they gave it.

The names of their settings, with numbers of ours: see `default_rd`. Where a decoder is evaluated as its set says, the first
round has the decoder's own name: `lossy evaluate icml_vae10_rd`.
"""

from __future__ import annotations

from lossy_mlflow.hparams.catalogue.icml_evaluation_parts import (
    evaluation_of,
    features,
    register_evaluation,
    register_rerun,
    register_rounds,
    second_round,
    simulated,
    variational,
)
from lossy_mlflow.hparams.registry import part
from lossy_mlflow.hparams.tree import Hparam

_VAE10 = "icml_vae10_rd"
_VAES = {"icml_vae2_rd": 2, _VAE10: 10, "icml_vae100": 100}
# Gaps at those of our betas that are nearest to theirs: 0.36, 1 and the largest; with 100 dimensions 0.034, 0.97 and the largest.
GAPS, GAPS_Z100 = [18, 25, -1], [1, 30, -1]


@part
def blurred(name: str, blur_std: float) -> Hparam:
    """Of the decoder with its images blurred by a Gaussian kernel of 5 x 5 pixels."""
    tree = evaluation_of(name)
    tree.group_list = ["icml", "VAEs", "blur"]
    tree.rd.blur_std = blur_std
    return tree


@part
def bad_prior(name: str, weight: float) -> Hparam:
    """With a prior of which that share is ten times as wide."""
    tree = evaluation_of(name)
    tree.group_list = ["icml", "VAEs", "mixture"]
    tree.rd.mixture_weight, tree.rd.bad_std = weight, 10.0
    return tree


for _label, _z_size in _VAES.items():
    _gaps = GAPS if _z_size < 100 else GAPS_Z100
    register_rerun(_label, f"Curve of the paper's VAE {_z_size}")
    register_rounds(f"BDMC_{_label}", f"BDMC gap of the paper's VAE {_z_size}", simulated, _label, _gaps)
    if _z_size < 100:
        register_rounds(
            f"fid_{_label}", f"Curve of the paper's VAE {_z_size}, distortion of features", features, _label
        )

for _name, _label in {"vae2_rd": "icml_vae2_rd", "vae10_rd": _VAE10, "vae100_rd": "icml_vae100"}.items():
    register_evaluation(
        f"{_name}_baseline_icml", f"Variational curve of the paper's VAE {_VAES[_label]}", variational, _label
    )

register_rerun("icml_linear_vae100", "Curve of the paper's linear VAE, beside its closed form")

for _seed in range(11, 17):
    register_evaluation(
        f"icml_vae10_rerun_rs{_seed}",
        f"Curve of the paper's VAE 10 with seed {_seed}",
        second_round,
        _VAE10,
        _seed,
    )

for _name, _std in {"01": 0.1, "05": 0.5, "1": 1.0, "2": 2.0, "5": 5.0}.items():
    register_rounds(
        f"icml_vae10_blur{_name}",
        f"Curve of the paper's VAE 10, blurred by {_std:g} pixels",
        blurred,
        _VAE10,
        _std,
    )

for _percent in (10, 20, 50, 80, 90, 99):
    register_rounds(
        f"icml_vae10_mp_0{_percent}",
        f"Curve of the paper's VAE 10, with {_percent} % of a bad prior",
        bad_prior,
        _VAE10,
        _percent / 100,
    )

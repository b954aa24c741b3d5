"""Rate-distortion curves of decoders by annealed importance sampling (Huang, Makhzani, Cao and Grosse 2020).

Pure functions of tensors: a Distortion is made from a decoder and images, `tune` runs a pilot on it, `curve` measures.
"""

from __future__ import annotations

from lossy_mlflow.rate_distortion.bdmc import Gap, gap, simulate
from lossy_mlflow.rate_distortion.curves import Curve, curve
from lossy_mlflow.rate_distortion.distortion import (
    Distortion,
    Quadratic,
    feature_error,
    negative_log_likelihood,
    squared_error,
)
from lossy_mlflow.rate_distortion.linear import closed_form, closed_form_by_marginal
from lossy_mlflow.rate_distortion.mixture import mixed, mixed_exact, stretched
from lossy_mlflow.rate_distortion.tuning import Pilot, Tuning, tune

__all__ = [
    "Curve",
    "Distortion",
    "Gap",
    "Pilot",
    "Quadratic",
    "Tuning",
    "closed_form",
    "closed_form_by_marginal",
    "curve",
    "feature_error",
    "gap",
    "mixed",
    "mixed_exact",
    "negative_log_likelihood",
    "simulate",
    "squared_error",
    "stretched",
    "tune",
]

"""Models: what a decoder is, which ones there are by name, and the VAEs and generators that come with the package.

Importing this loads no torch, so that names can be listed and models registered at once; building one does.
"""

from __future__ import annotations

from lossy_mlflow.models.protocols import (
    Autoencoder,
    Decoder,
    FeatureMap,
    Trainable,
    decode,
    decoder_of,
    needs_labels,
    tensor_of,
)
from lossy_mlflow.models.registry import (
    build_model,
    build_outline,
    comes_trained,
    model_names,
    register_model,
)

__all__ = [
    "Autoencoder",
    "Decoder",
    "FeatureMap",
    "Trainable",
    "build_model",
    "build_outline",
    "comes_trained",
    "decode",
    "decoder_of",
    "model_names",
    "needs_labels",
    "register_model",
    "tensor_of",
]

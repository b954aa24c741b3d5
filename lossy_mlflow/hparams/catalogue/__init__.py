"""The sets that come with the package, named MODEL_DATASET, and icml_... as in the paper; importing this registers them."""

from lossy_mlflow.hparams.catalogue import (
    cifar10,
    classifiers,
    digits,
    fashion_mnist,
    icml_cifar10,
    icml_evaluations_imported,
    icml_evaluations_vaes,
    icml_mnist,
    mnist,
)

__all__ = [
    "cifar10",
    "classifiers",
    "digits",
    "fashion_mnist",
    "icml_cifar10",
    "icml_evaluations_imported",
    "icml_evaluations_vaes",
    "icml_mnist",
    "mnist",
]

"""The sets that come with the package, named MODEL_DATASET; importing this registers them."""

from lossy_mlflow.hparams.catalogue import cifar10, digits, fashion_mnist, mnist

__all__ = ["cifar10", "digits", "fashion_mnist", "mnist"]

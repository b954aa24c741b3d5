"""Classifiers: not to be compressed by, but to measure with. Their features are a distortion, `rd.feature_map`."""

from __future__ import annotations

from lossy_mlflow.hparams.catalogue.parts import images
from lossy_mlflow.hparams.registry import part, register_hparams
from lossy_mlflow.hparams.tree import Hparam


@part
def classifier() -> Hparam:
    """A small convolutional network, trained as VAEs are: by Adam, until the whole validation split no longer gets better."""
    return Hparam(
        group_list=["classifiers"],
        model_name="cnn_classifier",
        dataset=None,
        random_seed=6,
        learning_rate=1e-3,
        load_checkpoint_name=None,
        chkt_step=-2,
        n_val_batch=None,
        checkpointing_freq=10,
        start_checkpointing=10,
        model_train=Hparam(
            batch_size=100, epochs=10, channels=[20, 50], kernel_size=5, padding=0, n_classes=10
        ),
    )


@register_hparams
def cnn_mnist() -> Hparam:
    """Convolutional classifier of MNIST, whose features the paper measures distortion by"""
    tree = classifier()
    tree.dataset = images("mnist", 1, 28, 28)
    return tree


@register_hparams
def cnn_digits() -> Hparam:
    """Convolutional classifier of the 8 x 8 digits, whose features can measure distortion"""
    tree = classifier()
    tree.dataset = images("digits", 1, 8, 8)
    # 8 pixels are too few for two kernels of 5.
    tree.model_train.kernel_size, tree.model_train.padding = 3, 1
    tree.model_train.batch_size = 50
    tree.model_train.epochs = tree.checkpointing_freq = tree.start_checkpointing = 20
    return tree

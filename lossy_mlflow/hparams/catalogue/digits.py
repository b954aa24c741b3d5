"""VAEs on scikit-learn's 8 x 8 digits: trained in seconds on a laptop, so with settings of their own."""

from __future__ import annotations

from lossy_mlflow.hparams.catalogue.parts import dcgan_vae, deep_vae, images, linear_vae, z100_rd
from lossy_mlflow.hparams.registry import part, register_hparams
from lossy_mlflow.hparams.tree import Hparam

# Their 17 grey levels are 1/16 apart. At a larger beta the noise that it stands for, of variance 1/(2 beta), is below the
# rounding to these: to describe an image still better is no compression.
_MAX_BETA = 1000.0


@part
def on_digits(tree: Hparam) -> Hparam:
    """The tree of a model, for the digits: 1200 training images want fewer steps, and larger ones."""
    tree.group_list = ["vaes", "digits"]
    tree.dataset = images("digits", 1, 8, 8)
    tree.learning_rate = 1e-3
    tree.model_train.batch_size = 50
    tree.model_train.epochs = 80  # with more, the deep VAEs learn 1200 images by heart
    tree.checkpointing_freq = tree.start_checkpointing = 20
    tree.rd.max_beta = _MAX_BETA
    return tree


@part
def small_deep_vae() -> Hparam:
    """Layers wide enough for 64 pixels."""
    tree = deep_vae()
    tree.model_train.hidden_sizes = [256, 256, 256]
    return tree


@register_hparams
def linear_vae10_digits() -> Hparam:
    """Linear VAE with 10 latent dimensions on the 8 x 8 digits"""
    tree = on_digits(linear_vae())
    tree.model_train.z_size = 10
    # It can't overfit, and is trained until it is as good as probabilistic PCA.
    tree.learning_rate = 2e-3
    tree.model_train.epochs = 300
    return tree


@register_hparams
def vae2_digits() -> Hparam:
    """Deep VAE with 2 latent dimensions on the 8 x 8 digits"""
    tree = on_digits(small_deep_vae())
    tree.model_train.z_size = 2
    return tree


@register_hparams
def vae10_digits() -> Hparam:
    """Deep VAE with 10 latent dimensions on the 8 x 8 digits"""
    tree = on_digits(small_deep_vae())
    tree.model_train.z_size = 10
    return tree


@register_hparams
def vae100_digits() -> Hparam:
    """Deep VAE with 100 latent dimensions on the 8 x 8 digits"""
    tree = on_digits(small_deep_vae())
    tree.model_train.z_size = 100
    tree.rd = z100_rd()
    tree.rd.max_beta = _MAX_BETA
    return tree


@register_hparams
def dcvae10_digits() -> Hparam:
    """Convolutional (DCGAN-based) VAE with 10 latent dimensions on the 8 x 8 digits"""
    tree = on_digits(dcgan_vae())
    tree.model_train.z_size = 10
    tree.model_train.n_filters = 32
    return tree

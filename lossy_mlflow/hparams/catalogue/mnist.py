"""VAEs on MNIST, with the settings of Huang et al. 2020."""

from __future__ import annotations

from lossy_mlflow.hparams.catalogue.parts import dcgan_vae, deep_vae, images, linear_vae, z100_rd
from lossy_mlflow.hparams.registry import part, register_hparams
from lossy_mlflow.hparams.tree import Hparam


@part
def on_mnist(tree: Hparam) -> Hparam:
    """The tree of a model, for MNIST."""
    tree.group_list = ["vaes", "mnist"]
    tree.dataset = images("mnist", 1, 28, 28)
    return tree


@register_hparams
def linear_vae100_mnist() -> Hparam:
    """Linear VAE with 100 latent dimensions on MNIST"""
    tree = on_mnist(linear_vae())
    tree.model_train.z_size = 100
    tree.rd = z100_rd()
    return tree


@register_hparams
def vae2_mnist() -> Hparam:
    """Deep VAE with 2 latent dimensions on MNIST"""
    tree = on_mnist(deep_vae())
    tree.model_train.z_size = 2
    return tree


@register_hparams
def vae10_mnist() -> Hparam:
    """Deep VAE with 10 latent dimensions on MNIST"""
    tree = on_mnist(deep_vae())
    tree.model_train.z_size = 10
    return tree


@register_hparams
def vae100_mnist() -> Hparam:
    """Deep VAE with 100 latent dimensions on MNIST"""
    tree = on_mnist(deep_vae())
    tree.model_train.z_size = 100
    tree.rd = z100_rd()
    return tree


@register_hparams
def dcvae10_mnist() -> Hparam:
    """Convolutional (DCGAN-based) VAE with 10 latent dimensions on MNIST"""
    tree = on_mnist(dcgan_vae())
    tree.model_train.z_size = 10
    return tree


@register_hparams
def dcvae100_mnist() -> Hparam:
    """Convolutional (DCGAN-based) VAE with 100 latent dimensions on MNIST"""
    tree = on_mnist(dcgan_vae())
    tree.model_train.z_size = 100
    tree.rd = z100_rd()
    return tree

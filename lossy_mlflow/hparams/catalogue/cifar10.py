"""VAEs on CIFAR10: 32 x 32 pixels in three colours."""

from __future__ import annotations

from lossy_mlflow.hparams.catalogue.parts import cifar10_rd, dcgan_vae, deep_vae, images
from lossy_mlflow.hparams.registry import part, register_hparams
from lossy_mlflow.hparams.tree import Hparam


@part
def on_cifar10(tree: Hparam) -> Hparam:
    """The tree of a model, for CIFAR10."""
    tree.group_list = ["vaes", "cifar10"]
    tree.dataset = images("cifar10", 3, 32, 32)
    tree.rd = cifar10_rd()
    return tree


@register_hparams
def vae100_cifar10() -> Hparam:
    """Deep VAE with 100 latent dimensions on CIFAR10"""
    tree = on_cifar10(deep_vae())
    tree.model_train.z_size = 100
    return tree


@register_hparams
def dcvae10_cifar10() -> Hparam:
    """Convolutional (DCGAN-based) VAE with 10 latent dimensions on CIFAR10"""
    tree = on_cifar10(dcgan_vae())
    tree.model_train.z_size = 10
    return tree


@register_hparams
def dcvae100_cifar10() -> Hparam:
    """Convolutional (DCGAN-based) VAE with 100 latent dimensions on CIFAR10"""
    tree = on_cifar10(dcgan_vae())
    tree.model_train.z_size = 100
    return tree

"""The VAEs of MNIST, on Fashion-MNIST: the same but for the images."""

from __future__ import annotations

from lossy_mlflow.hparams.catalogue import mnist
from lossy_mlflow.hparams.catalogue.parts import images
from lossy_mlflow.hparams.registry import part, register_hparams
from lossy_mlflow.hparams.tree import Hparam


@part
def on_fashion_mnist(tree: Hparam) -> Hparam:
    """The tree of an MNIST set, for Fashion-MNIST."""
    tree.group_list = ["vaes", "fashion_mnist"]
    tree.dataset = images("fashion_mnist", 1, 28, 28)
    return tree


@register_hparams
def linear_vae100_fashion_mnist() -> Hparam:
    """Linear VAE with 100 latent dimensions on Fashion-MNIST"""
    return on_fashion_mnist(mnist.linear_vae100_mnist())


@register_hparams
def vae2_fashion_mnist() -> Hparam:
    """Deep VAE with 2 latent dimensions on Fashion-MNIST"""
    return on_fashion_mnist(mnist.vae2_mnist())


@register_hparams
def vae10_fashion_mnist() -> Hparam:
    """Deep VAE with 10 latent dimensions on Fashion-MNIST"""
    return on_fashion_mnist(mnist.vae10_mnist())


@register_hparams
def vae100_fashion_mnist() -> Hparam:
    """Deep VAE with 100 latent dimensions on Fashion-MNIST"""
    return on_fashion_mnist(mnist.vae100_mnist())


@register_hparams
def dcvae10_fashion_mnist() -> Hparam:
    """Convolutional (DCGAN-based) VAE with 10 latent dimensions on Fashion-MNIST"""
    return on_fashion_mnist(mnist.dcvae10_mnist())


@register_hparams
def dcvae100_fashion_mnist() -> Hparam:
    """Convolutional (DCGAN-based) VAE with 100 latent dimensions on Fashion-MNIST"""
    return on_fashion_mnist(mnist.dcvae100_mnist())

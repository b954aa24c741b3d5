"""The DCGANs that Huang et al. 2020 evaluate on CIFAR10, by the names that they gave them; `lossy import` brings them in.

What a set says of their sizes gives way to what their settings say.
"""

from __future__ import annotations

from lossy_mlflow.hparams.catalogue.cifar10 import on_cifar10
from lossy_mlflow.hparams.catalogue.parts import dcgan
from lossy_mlflow.hparams.registry import part, register_hparams
from lossy_mlflow.hparams.tree import Hparam


@part
def cifar10_dcgan(z_size: int) -> Hparam:
    """A DCGAN's generator of 32 x 32 pixels in three colours."""
    tree = on_cifar10(dcgan())
    tree.group_list = ["icml", "GANs", "CIFAR10"]
    tree.model_train.z_size = z_size
    return tree


@register_hparams
def icml_CIFAR10_dcgan5_BRE() -> Hparam:
    """DCGAN with 5 latent dimensions on CIFAR10, trained with a binarized-representation entropy"""
    return cifar10_dcgan(5)


@register_hparams
def icml_CIFAR10_dcgan10_BRE() -> Hparam:
    """DCGAN with 10 latent dimensions on CIFAR10, trained with a binarized-representation entropy"""
    return cifar10_dcgan(10)


@register_hparams
def icml_CIFAR10_dcgan100_BRE() -> Hparam:
    """DCGAN with 100 latent dimensions on CIFAR10, trained with a binarized-representation entropy"""
    return cifar10_dcgan(100)


@register_hparams
def icml_CIFAR10_dcgan5_SN() -> Hparam:
    """DCGAN with 5 latent dimensions on CIFAR10, trained with spectral normalization"""
    return cifar10_dcgan(5)


@register_hparams
def icml_CIFAR10_dcgan10_SN() -> Hparam:
    """DCGAN with 10 latent dimensions on CIFAR10, trained with spectral normalization"""
    return cifar10_dcgan(10)


@register_hparams
def icml_CIFAR10_dcgan100_SN() -> Hparam:
    """DCGAN with 100 latent dimensions on CIFAR10, trained with spectral normalization"""
    return cifar10_dcgan(100)


@register_hparams
def icml_CIFAR10_dcgan5_GP() -> Hparam:
    """DCGAN with 5 latent dimensions on CIFAR10, trained with a gradient penalty"""
    return cifar10_dcgan(5)


@register_hparams
def icml_CIFAR10_dcgan10_GP() -> Hparam:
    """DCGAN with 10 latent dimensions on CIFAR10, trained with a gradient penalty"""
    return cifar10_dcgan(10)


@register_hparams
def icml_CIFAR10_dcgan100_GP() -> Hparam:
    """DCGAN with 100 latent dimensions on CIFAR10, trained with a gradient penalty"""
    return cifar10_dcgan(100)


@register_hparams
def icml_CIFAR10_dcgan5_V() -> Hparam:
    """DCGAN with 5 latent dimensions on CIFAR10, trained without a penalty"""
    return cifar10_dcgan(5)


@register_hparams
def icml_CIFAR10_dcgan10_V() -> Hparam:
    """DCGAN with 10 latent dimensions on CIFAR10, trained without a penalty"""
    return cifar10_dcgan(10)


@register_hparams
def icml_CIFAR10_dcgan100_V() -> Hparam:
    """DCGAN with 100 latent dimensions on CIFAR10, trained without a penalty"""
    return cifar10_dcgan(100)

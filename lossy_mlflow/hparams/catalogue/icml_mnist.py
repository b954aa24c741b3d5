"""What Huang et al. 2020 evaluate on MNIST, by the names that they gave it: VAEs, adversarial autoencoders, GANs.

The GANs and autoencoders were trained by other code: `lossy import` brings them in. What a set says of their sizes gives way
to what their files say.
"""

from __future__ import annotations

from lossy_mlflow.hparams.catalogue import mnist
from lossy_mlflow.hparams.catalogue.mnist import on_mnist
from lossy_mlflow.hparams.catalogue.parts import aae, dcgan, mlp_gan, z100_rd
from lossy_mlflow.hparams.registry import part, register_hparams
from lossy_mlflow.hparams.tree import Hparam


@part
def icml_vae(tree: Hparam) -> Hparam:
    """The tree of a VAE, in the paper's group."""
    tree.group_list = ["icml", "VAEs", "RD"]
    return tree


@register_hparams
def icml_vae2_rd() -> Hparam:
    """The paper's deep VAE with 2 latent dimensions on MNIST"""
    return icml_vae(mnist.vae2_mnist())


@register_hparams
def icml_vae10_rd() -> Hparam:
    """The paper's deep VAE with 10 latent dimensions on MNIST"""
    return icml_vae(mnist.vae10_mnist())


@register_hparams
def icml_vae100() -> Hparam:
    """The paper's deep VAE with 100 latent dimensions on MNIST"""
    return icml_vae(mnist.vae100_mnist())


@register_hparams
def icml_linear_vae100() -> Hparam:
    """The paper's linear VAE with 100 latent dimensions on MNIST, of variance 1"""
    tree = icml_vae(mnist.linear_vae100_mnist())
    tree.model_train.x_var, tree.model_train.x_var_learned = 1.0, False
    # The joint distortion has a closed form to be held against.
    tree.rd.target = "joint"
    tree.rd.max_beta, tree.rd.n_betas, tree.rd.gap_beta_indexes = 200.0, 50, [15, 30, -1]
    return tree


@part
def icml_decoder(tree: Hparam, group: str, z_size: int) -> Hparam:
    """The tree of a decoder that others have trained on MNIST."""
    tree = on_mnist(tree)
    tree.group_list = ["icml", *group.split("/")]
    tree.model_train.z_size = z_size
    if z_size >= 100:
        tree.rd = z100_rd()
    return tree


@part
def deep_gan(z_size: int) -> Hparam:
    """A generator of three hidden layers."""
    return icml_decoder(mlp_gan(3), "GANs/MNIST_deep", z_size)


@part
def shallow_gan(z_size: int) -> Hparam:
    """A generator of one hidden layer."""
    return icml_decoder(mlp_gan(1), "GANs/MNIST_shallow", z_size)


@register_hparams
def icml_aae2() -> Hparam:
    """Adversarial autoencoder's decoder with 2 latent dimensions on MNIST"""
    return icml_decoder(aae(), "AAEs", 2)


@register_hparams
def icml_aae10() -> Hparam:
    """Adversarial autoencoder's decoder with 10 latent dimensions on MNIST"""
    return icml_decoder(aae(), "AAEs", 10)


@register_hparams
def icml_aae100() -> Hparam:
    """Adversarial autoencoder's decoder with 100 latent dimensions on MNIST"""
    return icml_decoder(aae(), "AAEs", 100)


@register_hparams
def icml_deep_gan2_GP() -> Hparam:
    """Deep GAN with 2 latent dimensions on MNIST, trained with a gradient penalty"""
    return deep_gan(2)


@register_hparams
def icml_deep_gan5_GP() -> Hparam:
    """Deep GAN with 5 latent dimensions on MNIST, trained with a gradient penalty"""
    return deep_gan(5)


@register_hparams
def icml_deep_gan10_GP() -> Hparam:
    """Deep GAN with 10 latent dimensions on MNIST, trained with a gradient penalty"""
    return deep_gan(10)


@register_hparams
def icml_deep_gan100_GP() -> Hparam:
    """Deep GAN with 100 latent dimensions on MNIST, trained with a gradient penalty"""
    return deep_gan(100)


@register_hparams
def icml_deep_gan2_v_rerun() -> Hparam:
    """Deep GAN with 2 latent dimensions on MNIST, without a penalty"""
    return deep_gan(2)


@register_hparams
def icml_deep_gan5_v_rerun() -> Hparam:
    """Deep GAN with 5 latent dimensions on MNIST, without a penalty"""
    return deep_gan(5)


@register_hparams
def icml_deep_gan10_v_rerun() -> Hparam:
    """Deep GAN with 10 latent dimensions on MNIST, without a penalty"""
    return deep_gan(10)


@register_hparams
def icml_shallow_gan2_GP() -> Hparam:
    """Shallow GAN with 2 latent dimensions on MNIST, trained with a gradient penalty"""
    return shallow_gan(2)


@register_hparams
def icml_shallow_gan5_GP() -> Hparam:
    """Shallow GAN with 5 latent dimensions on MNIST, trained with a gradient penalty"""
    return shallow_gan(5)


@register_hparams
def icml_shallow_gan10_GP() -> Hparam:
    """Shallow GAN with 10 latent dimensions on MNIST, trained with a gradient penalty"""
    return shallow_gan(10)


@register_hparams
def icml_shallow_gan100_GP() -> Hparam:
    """Shallow GAN with 100 latent dimensions on MNIST, trained with a gradient penalty"""
    return shallow_gan(100)


@register_hparams
def icml_shallow_gan2_v_rerun() -> Hparam:
    """Shallow GAN with 2 latent dimensions on MNIST, without a penalty"""
    return shallow_gan(2)


@register_hparams
def icml_shallow_gan5_V_rerun() -> Hparam:
    """Shallow GAN with 5 latent dimensions on MNIST, without a penalty"""
    return shallow_gan(5)


@register_hparams
def icml_shallow_gan10_V_rerun() -> Hparam:
    """Shallow GAN with 10 latent dimensions on MNIST, without a penalty"""
    return shallow_gan(10)


@register_hparams
def dcgan10_mnist() -> Hparam:
    """DCGAN generator with 10 latent dimensions on MNIST"""
    tree = icml_decoder(dcgan(), "GANs/MNIST_dcgan", 10)
    tree.group_list = ["gans", "mnist"]
    return tree

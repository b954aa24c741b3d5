"""What the sets share: how the paper trains and evaluates, and the three kinds of VAE."""

from __future__ import annotations

import math

from lossy_mlflow.hparams.registry import part
from lossy_mlflow.hparams.tree import Hparam


@part
def default_experiment() -> Hparam:
    """A VAE trained as in Huang et al. 2020: Adam at 1e-4 for 1000 epochs of batches of 100.

    Every field that the models share, in reading order; what is None and has no meaning as such, the set
    fills in.
    """
    return Hparam(
        group_list=["vaes"],
        model_name=None,
        dataset=None,
        random_seed=6,
        learning_rate=1e-4,
        load_checkpoint_name=None,
        chkt_step=-2,
        n_val_batch=None,
        checkpointing_freq=50,
        start_checkpointing=50,
        n_iwae_samples=0,
        step_sizes_target=None,
        model_train=Hparam(z_size=None, batch_size=100, epochs=1000, x_var=0.03, x_var_learned=True),
        rd=default_rd(),
    )


@part
def default_rd() -> Hparam:
    """What evaluates a decoder with up to 10 latent dimensions: the paper's images and largest beta.

    Chains, steps and leapfrogs are fewer than the paper's 40, 60,000 and 20: with tuned masses they leave smaller gaps.
    """
    return Hparam(
        target="mse",
        estimator="ais",
        data="test",
        batch_size=50,
        n_batch=1,
        n_chains=16,
        anneal_steps=1000,
        n_betas=100,
        min_beta=0.03,
        max_beta=36_000.0,
        leapfrog_steps=2,
        target_acceptance=0.8,
        pilot_seed=6,
        random_seed=7,
        gap_beta_indexes=[30, 60, -1],
        gap_images=16,
        mixture_weight=None,
        bad_std=None,
        blur_std=None,
        overwrite_variance=None,
        feature_map=None,
        encoder_epochs=50,
        log_likelihood=False,
    )


@part
def z100_rd() -> Hparam:
    """The same for z of 100 dimensions: betas end earlier, and more steps, of more leapfrogs, lead there."""
    rd = default_rd()
    rd.max_beta = 3333.0
    rd.anneal_steps = 1500
    rd.leapfrog_steps = 4
    return rd


@part
def cifar10_rd() -> Hparam:
    """The same for CIFAR10, whatever its z."""
    rd = default_rd()
    rd.max_beta = 3333.0
    return rd


@part
def linear_vae() -> Hparam:
    """Linear encoder and decoder: its optimum is probabilistic PCA."""
    tree = default_experiment()
    tree.model_name = "linear_vae"
    return tree


@part
def deep_vae() -> Hparam:
    """Encoder and decoder of three tanh layers; the decoder's mean passes a sigmoid."""
    tree = default_experiment()
    tree.model_name = "deep_vae"
    tree.model_train.hidden_sizes = [1024, 1024, 1024]
    return tree


@part
def dcgan_vae() -> Hparam:
    """Convolutional: the decoder is DCGAN's generator, the encoder its mirror image."""
    tree = default_experiment()
    tree.model_name = "dcgan_vae"
    tree.model_train.n_filters = 64
    return tree


@part
def mlp_gan(n_hidden: int) -> Hparam:
    """A GAN's generator of that many tanh layers; nothing here trains it."""
    tree = default_experiment()
    tree.model_name = "mlp_generator"
    tree.model_train.hidden_sizes = [1024] * n_hidden
    tree.model_train.x_var_learned = False
    return tree


@part
def dcgan() -> Hparam:
    """A GAN's generator of three convolutions; nothing here trains it."""
    tree = default_experiment()
    tree.model_name = "dcgan_generator"
    tree.model_train.n_filters = 64
    tree.model_train.n_convs = 3
    tree.model_train.norm = "bn"
    tree.model_train.x_var_learned = False
    return tree


@part
def aae() -> Hparam:
    """An adversarial autoencoder's decoder of three ReLU layers; nothing here trains it."""
    tree = mlp_gan(3)
    tree.model_name = "aae_decoder"
    return tree


def images(name: str, channels: int, height: int, width: int) -> Hparam:
    """The `dataset` sub-tree; `train=False` would train on the official test images instead."""
    dims = [channels, height, width]
    return Hparam(name=name, train=True, input_dims=dims, input_vector_length=math.prod(dims))

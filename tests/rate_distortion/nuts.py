"""E[d] under f_beta of a small decoder, by blackjax's No-U-Turn sampler: a program that shares nothing with ours but numbers.

`python nuts.py < question.json > answer.json`. A process of its own, since float64 and threads are settings of all of jax.
"""

from __future__ import annotations

import functools
import json
import os
import sys

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["NPROC"] = "1"  # so many threads compute
# Most of its time is the compiler's: all optimisations take three times as long, and save a second.
os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=1 --xla_llvm_disable_expensive_passes=true"

import blackjax
import jax
import jax.numpy as jnp
import numpy as np

jax.config.update("jax_enable_x64", True)


def distortion(decoder, z):
    """||x - f(z)||^2, f(z) = w2 tanh(w1 z + b1) + b2."""
    hidden = jnp.tanh(decoder["w1"] @ z + decoder["b1"])
    return jnp.sum((decoder["x"] - decoder["w2"] @ hidden - decoder["b2"]) ** 2)


def chain(d, z_size, beta, key, n_warm_up, n_draws):
    """(d at each draw, whether it diverged) of a chain that begins at a draw of the prior and tunes itself."""

    def log_density(z):
        return -0.5 * jnp.sum(z**2) - beta * d(z)

    key_of_z, key_of_warm_up, key_of_draws = jax.random.split(key, 3)
    warm_up = blackjax.window_adaptation(
        blackjax.nuts, log_density, is_mass_matrix_diagonal=False, adaptation_info_fn=lambda *_: None
    )
    z = jax.random.normal(key_of_z, (z_size,))
    (state, tuned), _ = warm_up.run(key_of_warm_up, z, n_warm_up)
    step = blackjax.nuts(log_density, **tuned).step

    def move(state, key):
        state, info = step(key, state)
        return state, (d(state.position), info.is_divergent)

    return jax.lax.scan(move, state, jax.random.split(key_of_draws, n_draws))[1]


@functools.partial(jax.jit, static_argnames=("n_chains", "n_warm_up", "n_draws"))
def answer(decoder, betas, z, seed, *, n_chains, n_warm_up, n_draws):
    """By beta: the mean of d, its standard error, effective draws, R-hat. How many draws diverged; d and its gradient at z."""
    d = functools.partial(distortion, decoder)
    keys = jax.random.split(jax.random.key(seed), len(betas) * n_chains)
    of_each = jax.vmap(lambda beta, key: chain(d, z.shape[1], beta, key, n_warm_up, n_draws))
    drawn, diverged = of_each(jnp.repeat(betas, n_chains), keys)
    by_chain = drawn.reshape(len(betas), n_chains, n_draws).transpose(1, 2, 0)
    ess = blackjax.ess(by_chain)
    d_at_z, gradient_at_z = jax.vmap(jax.value_and_grad(d))(z)
    return {
        "distortion": by_chain.mean((0, 1)),
        "distortion_se": by_chain.std((0, 1)) / jnp.sqrt(ess),
        "ess": ess,
        "r_hat": blackjax.rhat(by_chain),
        "n_diverged": diverged.sum(),
        "d_at_z": d_at_z,
        "gradient_at_z": gradient_at_z,
    }


if __name__ == "__main__":
    question = json.load(sys.stdin)
    arrays = jax.tree.map(np.array, question.pop("arrays"), is_leaf=lambda value: isinstance(value, list))
    found = answer(**arrays, **question)
    json.dump({name: value.tolist() for name, value in found.items()}, sys.stdout)

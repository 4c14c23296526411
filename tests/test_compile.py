"""The compiler options: used where they may be, left out where JAX refuses them."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest

import metakit as mk

PULL = mk.MetaLearner(None, None, lambda w, task, key=None: 0.5 * (w - task) ** 2)
SGD = optax.sgd(0.1)


def train(position):
    state = mk.train.init(position, SGD, key=jax.random.key(0))
    return mk.train.run_steps(PULL, SGD, state, jax.random.normal, num_steps=2, meta_batch=2)[0].learner


def test_a_compiled_loop_works_under_every_transformation():
    """Catches options given to a nested jit, which JAX refuses: a user's jit around the training loop."""
    alone = train(jnp.zeros(()))
    # No argument of the loop is a tracer here, only its surroundings are traced.
    closed_over = jax.jit(lambda: train(jnp.zeros(())))()
    together = jax.vmap(train)(jnp.zeros(3))
    assert jnp.allclose(closed_over, alone)
    assert jnp.allclose(together, alone)
    assert jnp.isfinite(jax.grad(lambda p: jnp.sum(eqx.filter_jit(train)(p)))(jnp.zeros(())))


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the options are for CPUs")
def test_the_options_are_known_here():
    """Catches a renamed XLA flag: training would go on at half the speed and nobody would notice."""
    assert mk.compiler_options()


@pytest.mark.optimised
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the options are for CPUs")
def test_the_options_replace_the_convolution_that_uses_one_core():
    """Catches options that no longer do what they are for, and a default that no longer needs them.

    The compiled text is asked, not a clock: beside other work one core is all that anything gets."""
    x, w = jnp.ones((120, 14, 14, 64), jnp.float32), jnp.ones((3, 3, 64, 64), jnp.float32)

    def convolve(x, w):
        return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def compiled_text(options):
        return jax.jit(convolve, compiler_options=options).lower(x, w).compile().as_text()

    assert "__ynn_fusion" in compiled_text(None)
    assert "__ynn_fusion" not in compiled_text(mk.compiler_options())

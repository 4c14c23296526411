"""Max-pooling against XLA's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import metakit as mk


def reduce_window(x, size):
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 1, size, size), (1, 1, size, size), "VALID")


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("shape", [(6, 6), (7, 5), (5, 8), (3, 3)])
def test_equals_reduce_window(shape, size):
    """A remainder that is kept, or dropped at the wrong edge; a first or second derivative sent to another pixel."""
    x = jax.random.normal(jax.random.key(0), (2, 3, *shape))

    def results(pool):
        first = jax.grad(lambda x: jnp.sum(jnp.sin(pool(x, size))))
        second = jax.grad(lambda x: jnp.sum(jnp.cos(first(x))))
        return pool(x, size), first(x), second(x)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), results(mk.nn.max_pool2d), results(reduce_window)
    )


def test_ties_share_one_unit_of_gradient():
    """Equal pixels, the background of a binary image, counted once each: a gradient four times too large."""
    gradient = jax.grad(lambda x: jnp.sum(mk.nn.max_pool2d(x)))(jnp.ones((1, 1, 4, 4)))
    np.testing.assert_allclose(reduce_sum(gradient), jnp.ones((1, 1, 2, 2)))


def reduce_sum(x):
    return lax.reduce_window(x, jnp.zeros((), x.dtype), lax.add, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")


@pytest.mark.parametrize(("shape", "size"), [((1, 4), 2), ((4, 4), 5), ((4, 4), 0)])
def test_refused(shape, size):
    """An empty image without a word."""
    with pytest.raises(ValueError, match=rf"size must lie in 1\.\.{min(shape)} .* got {size}"):
        mk.nn.max_pool2d(jnp.ones((1, 1, *shape)), size)

"""The one-dimensional convolution layer."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import metakit as mk

KEY = jax.random.key(0)


@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize("padding", ["SAME", "VALID", 1, ((0, 2),)])
def test_equals_lax(padding, stride):
    """A stride or a padding that lands on the axis of height one, or a kernel read backwards."""
    layer = mk.nn.Conv1d(2, 3, 4, stride=stride, padding=padding, key=KEY)
    layer = eqx.tree_at(lambda m: m.bias, layer, jnp.arange(3.0))
    x = jax.random.normal(KEY, (2, 2, 9))
    ends = ((padding, padding),) if isinstance(padding, int) else padding

    def expected(x, w):
        y = lax.conv_general_dilated(x, w, (stride,), ends, dimension_numbers=("NCH", "HIO", "NCH"))
        return y + jnp.arange(3.0)[None, :, None]

    np.testing.assert_allclose(layer(x), expected(x, layer.weight), atol=1e-12)
    gradient = jax.grad(lambda m: jnp.sum(jnp.sin(m(x))))(layer).weight
    np.testing.assert_allclose(gradient, jax.grad(lambda w: jnp.sum(jnp.sin(expected(x, w))))(layer.weight), atol=1e-12)


@pytest.mark.parametrize(
    ("options", "shape", "message"),
    [
        ({}, (4, 2), r"a batch of sequences \[n, 2, length\], got \[4, 2\]"),
        ({}, (4, 3, 9), r"\[n, 2, length\], got \[4, 3, 9\]"),
        ({"padding": "VALID"}, (4, 2, 3), r"an input of \[3\] is smaller than the kernel \[4\]"),
        ({"padding": "SAFE"}, None, "padding='SAFE' is not known"),
        ({"padding": ((1, 1), (1, 1))}, None, "for each of 1 axes"),
        ({"padding": -1}, None, "at least 0"),
        ({"stride": 0}, None, "at least 1"),
    ],
)
def test_bad_input(options, shape, message):
    """A plausible result, or an error from deep inside XLA."""
    with pytest.raises(ValueError, match=message):
        mk.nn.Conv1d(2, 3, 4, key=KEY, **options)(jnp.ones(shape))

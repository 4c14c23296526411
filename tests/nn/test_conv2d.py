"""The convolution layer: published padding rules, bias, and what it refuses."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import metakit as mk

KEY = jax.random.key(0)


def images(*shape):
    return jax.random.normal(KEY, shape)


@pytest.mark.parametrize("size", [(7, 7), (8, 6)])
@pytest.mark.parametrize("stride", [1, 2, (2, 3)])
@pytest.mark.parametrize("padding", ["SAME", "VALID", 1, ((0, 2), (1, 0)), [[0, 2], [1, 0]]])
def test_equals_lax(padding, stride, size):
    """SAME's odd remainder on the wrong side, height and width swapped, or a bias on the wrong axis."""
    layer = mk.nn.Conv2d(2, 3, (3, 2), stride=stride, padding=padding, key=KEY)
    layer = eqx.tree_at(lambda m: m.bias, layer, jnp.arange(3.0))
    x = images(2, 2, *size)
    strides = (stride, stride) if isinstance(stride, int) else stride
    sides = ((padding, padding),) * 2 if isinstance(padding, int) else padding
    expected = lax.conv_general_dilated(x, layer.weight, strides, sides, dimension_numbers=("NCHW", "HWIO", "NCHW"))
    np.testing.assert_allclose(layer(x), expected + jnp.arange(3.0)[None, :, None, None], atol=1e-12)


def test_equals_equinox():
    """Correlation against convolution: a kernel read backwards."""
    theirs = eqx.nn.Conv2d(2, 3, 3, padding=1, key=KEY)
    ours = mk.nn.Conv2d(2, 3, 3, padding=1, use_bias=False, key=KEY)
    ours = eqx.tree_at(lambda m: m.weight, ours, jnp.transpose(theirs.weight, (2, 3, 1, 0)))
    x = images(4, 2, 5, 5)
    assert theirs.bias is not None
    np.testing.assert_allclose(ours(x) + theirs.bias[None], jax.vmap(theirs)(x), atol=1e-12)


def test_gradient_is_the_central_difference():
    """Any mistake shared by the layer and by lax."""
    layer = mk.nn.Conv2d(1, 2, 3, stride=2, key=KEY)
    x, direction = images(2, 1, 5, 5), jax.random.normal(jax.random.key(1), layer.weight.shape)

    @jax.jit
    def loss(step):
        moved = eqx.tree_at(lambda m: m.weight, layer, layer.weight + step * direction)
        return jnp.sum(jnp.tanh(moved(x)))

    def central(h):
        return (loss(jnp.asarray(h)) - loss(jnp.asarray(-h))) / (2 * h)

    # Fourth order: the plain difference is off by 7e-8 at h = 1e-5 and by a hundred times more at 1e-4.
    difference = (4 * central(5e-4) - central(1e-3)) / 3
    np.testing.assert_allclose(jax.grad(loss)(jnp.zeros(())), difference, rtol=1e-8)


def test_initial_weights():
    """A fan counted without the kernel's area: weights three times too large."""
    weight = np.asarray(mk.nn.Conv2d(64, 64, 3, key=KEY).weight)
    limit = np.sqrt(6 / (64 * 9 + 64 * 9))  # Glorot and Bengio 2010, equation 16
    assert 0.99 * limit < np.abs(weight).max() <= limit
    np.testing.assert_allclose(weight.std(), limit / np.sqrt(3), rtol=0.02)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 5, 5), r"\[n, 2, height, width\], got \[2, 5, 5\].*x\[None\]"),
        ((3, 1, 5, 5), "takes 2 channels, got 1"),
        ((3, 2, 2, 5), r"an input of \[2, 5\] is smaller than the kernel \[3, 3\]"),
    ],
)
def test_refused_images(shape, message):
    """A shape that broadcasts, or that fails inside XLA without a name."""
    with pytest.raises(ValueError, match=message):
        mk.nn.Conv2d(2, 3, 3, padding="VALID", key=KEY)(images(*shape))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"padding": "same"}, "padding='same' is not known.*SAME"),
        ({"padding": -1}, "padding must be at least 0"),
        ({"padding": ((0, 0), (0, -2))}, "padding must be at least 0"),
        ({"stride": 0}, "stride must be a whole number of at least 1, or 2 of them, got 0"),
        ({"stride": (1, 2, 1)}, r"stride must be .* 2 of them, got \(1, 2, 1\)"),
        ({"kernel_size": 2.0}, "kernel_size must be a whole number"),
        ({"padding": (0, 0)}, r"one \(before, after\) for each of 2 axes, got \(0, 0\)"),
        ({"padding": None}, r"'SAME', 'VALID', a number .* got None"),
    ],
)
def test_refused_options(options, message):
    """An option that only fails at the first call."""
    with pytest.raises(ValueError, match=message):
        mk.nn.Conv2d(1, 1, **({"kernel_size": 3} | options), key=KEY)


class _Net(eqx.Module):
    """A convolution and a linear head."""

    conv: Any
    head: mk.nn.Linear

    def __call__(self, x):
        return self.head(jax.nn.relu(self.conv(x)).reshape(len(x), -1))


@pytest.mark.parametrize("chunk", [None, 1])
def test_a_network_of_equinoxs_convolutions_meta_learns_the_same(chunk):
    """A user's own module that only works until its weights are mapped over tasks."""
    theirs, head = eqx.nn.Conv2d(1, 2, 3, padding=1, key=KEY), mk.nn.Linear(32, 2, key=KEY)
    ours = mk.nn.Conv2d(1, 2, 3, padding=1, key=KEY)
    ours = eqx.tree_at(lambda c: (c.weight, c.bias), ours, (theirs.weight.transpose(2, 3, 1, 0), theirs.bias[:, 0, 0]))
    x, y = jax.random.normal(KEY, (3, 4, 1, 4, 4)), jnp.tile(jnp.asarray([0, 1, 0, 1]), (3, 1))
    tasks = eqx.filter_vmap(lambda x, y: mk.Episode(mk.Examples(x, y, 2), mk.Examples(x[::-1], y[::-1], 2)))(x, y)

    def gradient(conv):
        learner = mk.maml.MAML(_Net(conv, head), inner=mk.inner.SGD(0.1), num_steps=1)
        return eqx.filter_jit(mk.sharding.meta_gradient)(mk.maml, learner, tasks, chunk=chunk).gradient.model

    a, b = gradient(mk.nn.batched(theirs)), gradient(ours)
    (weight,) = [leaf for leaf in jax.tree.leaves(a.conv) if leaf.ndim == 4]
    np.testing.assert_allclose(weight.transpose(2, 3, 1, 0), b.conv.weight, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(a.head.weight, b.head.weight, rtol=1e-9, atol=1e-12)

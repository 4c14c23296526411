"""The published networks: parameter counts, shapes, initial weights."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import metakit as mk

KEY = jax.random.key(0)


def shaped(make):
    """Counts and shapes without any arithmetic."""
    return eqx.filter_eval_shape(make)


def size(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree) if hasattr(leaf, "size"))


COUNTS = {
    "Conv-4-64, grey": (lambda: mk.nn.conv4_64(1, 28, key=KEY), 111_936),
    "Conv-4-64, colour": (lambda: mk.nn.conv4_64(3, 84, key=KEY), 113_088),
    "MAML Omniglot, no head": (lambda: mk.nn.conv4_maml_omniglot(None, key=KEY), 111_424 + 256),
    "MAML Omniglot": (lambda: mk.nn.conv4_maml_omniglot(5, key=KEY), 111_424 + 256 + 325),
    "MAML mini-ImageNet": (lambda: mk.nn.conv4_32(5, norm=mk.nn.maml_norm, key=KEY), 32_773),
    "Meta-Learner LSTM": (lambda: mk.nn.conv4_32(5, key=KEY), 32_901),
    "sinusoid": (lambda: mk.nn.MLP(1, 1, 40, 2, key=KEY), 40 + 40 + 1600 + 40 + 40 + 1),
}


@pytest.mark.parametrize(("make", "parameters"), COUNTS.values(), ids=COUNTS)
def test_golden_counts(make, parameters):
    """A bias, a scale or a feature too many: not the published network."""
    assert size(shaped(make)) == parameters


def test_counts_of_the_convolutions_alone():
    """The same counts from the published tables without norms and heads."""
    convolutions = lambda make: size([block.conv for block in shaped(make).blocks])
    assert convolutions(lambda: mk.nn.conv4_maml_omniglot(5, key=KEY)) == 111_424
    assert convolutions(lambda: mk.nn.conv4_32(5, key=KEY)) == 28_640
    assert size(shaped(lambda: mk.nn.conv4_maml_omniglot(5, key=KEY)).head) == 325


FEATURES = {
    "28, pooled": (lambda: mk.nn.conv4_64(1, 28, key=KEY), (1, 28, 28), 64),
    "84, pooled": (lambda: mk.nn.conv4_64(3, 84, key=KEY), (3, 84, 84), 1600),
    "84, 32 filters": (lambda: mk.nn.conv4_32(None, key=KEY), (3, 84, 84), 800),
    "28, strided, mean": (lambda: mk.nn.conv4_maml_omniglot(None, key=KEY), (1, 28, 28), 64),
    "28, strided, flat": (lambda: mk.nn.Conv4(1, 28, stride=2, key=KEY), (1, 28, 28), 256),
}


@pytest.mark.parametrize(("make", "image", "features"), FEATURES.values(), ids=FEATURES)
def test_features(make, image, features):
    """Halving that rounds the wrong way: 28, 14, 7, 3, 1 with pooling, 28, 14, 7, 4, 2 with strides."""
    out = eqx.filter_eval_shape(lambda: make()(jnp.ones((2, *image))))
    assert out.shape == (2, features)


def reference(net, x, *, stride, spatial_mean, eps):
    """The network written out with lax, channels first."""
    for block in net.blocks:
        x = lax.conv_general_dilated(
            x, block.conv.weight, (stride, stride), "SAME", dimension_numbers=("NCHW", "HWIO", "NCHW")
        )
        x = x + block.conv.bias[None, :, None, None]
        mean, variance = x.mean((0, 2, 3), keepdims=True), x.var((0, 2, 3), keepdims=True)
        x = (x - mean) / jnp.sqrt(variance + eps)
        if block.norm.scale is not None:
            x = x * block.norm.scale[None, :, None, None]
        x = jax.nn.relu(x + block.norm.bias[None, :, None, None])
        if stride == 1:
            x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")
    # Flat features have channels varying fastest.
    x = x.mean((2, 3)) if spatial_mean else jnp.moveaxis(x, 1, -1).reshape(x.shape[0], -1)
    return x @ net.head.weight + net.head.bias[None]


VARIANTS = {
    "maml": (
        lambda key: mk.nn.conv4_maml_omniglot(5, key=key),
        {"stride": 2, "spatial_mean": True, "eps": 1e-3},
        (1, 28, 28),
    ),
    "pooled": (
        lambda key: mk.nn.Conv4(2, 19, out_size=3, width=3, key=key),
        {"stride": 1, "spatial_mean": False, "eps": 1e-5},
        (2, 19, 19),
    ),
    "ravi": (
        lambda key: mk.nn.conv4_32(5, in_channels=1, image_size=16, key=key),
        {"stride": 1, "spatial_mean": False, "eps": 1e-3},
        (1, 16, 16),
    ),
}


@pytest.mark.parametrize(("make", "options", "image"), VARIANTS.values(), ids=VARIANTS)
def test_equals_the_network_written_out(make, options, image):
    """Blocks in another order, a wrong epsilon, or a layout mixed up on the way."""
    net = jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(leaf.size), leaf.shape), make(KEY))
    x = jax.random.normal(jax.random.key(1), (3, *image))

    def loss(f):
        return eqx.filter_jit(eqx.filter_value_and_grad(lambda net: jnp.sum(jnp.sin(f(net)))))(net)

    ours, theirs = loss(lambda net: net(x)), loss(lambda net: reference(net, x, **options))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-8), ours, theirs)


def test_initial_weights():
    """Published starts: Xavier convolutions, zero biases, a unit-normal head in MAML's Omniglot net only."""
    maml, mini = mk.nn.conv4_maml_omniglot(20, key=KEY), mk.nn.conv4_32(20, key=KEY)
    for net in (maml, mini):
        assert not any(jnp.any(layer.bias) for block in net.blocks for layer in (block.conv, block.norm))
        assert not jnp.any(net.head.bias)
    assert [block.norm.eps for block in maml.blocks + mini.blocks] == [1e-3] * 8
    assert maml.blocks[0].norm.scale is None
    # 64 x 20 draws: a standard deviation is known to 1 / sqrt(2 n) = 2 %.
    np.testing.assert_allclose(jnp.std(maml.head.weight), 1.0, rtol=0.08)
    np.testing.assert_allclose(jnp.std(mini.head.weight), np.sqrt(2 / (800 + 20)), rtol=0.08)
    hidden = maml.blocks[1].conv.weight
    np.testing.assert_allclose(jnp.std(hidden), np.sqrt(2 / (2 * 9 * 64)), rtol=0.02)
    blocks = [block.conv.weight for block in maml.blocks[1:]]
    assert not jnp.any(blocks[0] == blocks[1])  # one key used twice


@pytest.mark.parametrize("shape", [(2, 3, 28, 28), (2, 28, 28), (2, 1, 28, 27), (2, 784), (2, 28, 28, 1)])
def test_refused_images(shape):
    """Images of another network's shape, which would run and mean nothing."""
    given = ", ".join(map(str, shape[1:]))
    with pytest.raises(ValueError, match=rf"takes images of \[1, 28, 28\] .* got\s+\[{given}\]"):
        mk.nn.conv4_64(key=KEY)(jnp.ones(shape))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"image_size": 15}, "too small for four halvings"), ({"image_size": 28, "stride": 3}, "stride must be 1")],
)
def test_refused_options(options, message):
    """A network with an empty feature map."""
    with pytest.raises(ValueError, match=message):
        mk.nn.Conv4(1, key=KEY, **options)

"""Linear layers, perceptrons and modules lifted to a batch."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metakit as mk

KEY = jax.random.key(0)


def test_perceptron_written_out():
    """An activation after the last layer, or none between two."""
    net = mk.nn.MLP(3, 2, 4, 2, jnp.tanh, key=KEY)
    net = jax.tree.map(lambda leaf: leaf + 0.1, net)
    x = jax.random.normal(KEY, (5, 3))
    a, b = net.hidden
    h = jnp.tanh(jnp.tanh(x @ a.weight + a.bias[None]) @ b.weight + b.bias[None])
    np.testing.assert_allclose(net(x), h @ net.head.weight + net.head.bias[None], atol=1e-12)
    assert mk.nn.MLP(3, 2, 4, 0, key=KEY).hidden == ()


def test_initial_weights():
    """The published start of the sinusoid network, and the default: standard deviations of the wrong layer."""
    published = mk.nn.MLP(40, 1, 400, 1, weight_init=mk.nn.small_truncated_normal, key=KEY)
    he = mk.nn.MLP(40, 1, 400, 1, key=KEY)
    # A normal truncated at two standard deviations keeps 0.8796 of its standard deviation.
    np.testing.assert_allclose(jnp.std(published.hidden[0].weight), 0.008796, rtol=0.03)
    assert jnp.abs(published.hidden[0].weight).max() <= 0.02
    np.testing.assert_allclose(jnp.std(he.hidden[0].weight), np.sqrt(2 / 40), rtol=0.03)
    for net in (published, he):
        assert not any(jnp.any(layer.bias) for layer in (*net.hidden, net.head))


def test_a_norm_stands_before_each_activation_and_not_after_the_head():
    """Catches a norm after the activation, one for all layers, one that is made and not called, and a normed head."""
    net = mk.nn.MLP(3, 2, 4, 2, jnp.tanh, norm=mk.nn.BatchStatNorm, key=KEY)
    x = jax.random.normal(jax.random.key(1), (5, 3))
    net = eqx.tree_at(lambda n: [norm.bias for norm in n.norms], net, [jnp.full(4, 0.3), jnp.full(4, -0.2)])
    expected = np.asarray(x)
    for layer, shift in zip(net.hidden, (0.3, -0.2), strict=True):
        rows = expected @ np.asarray(layer.weight)
        expected = np.tanh((rows - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-5) + shift)
    np.testing.assert_allclose(net(x), expected @ np.asarray(net.head.weight), rtol=1e-9)


@pytest.mark.parametrize("shape", [(4, 2), (3,), (4, 3, 1), (4, 1, 3)])
def test_refused_features(shape):
    """Another number of features, or images that were never flattened."""
    with pytest.raises(ValueError, match=r"takes x of \[n, 3\], got"):
        mk.nn.MLP(3, 2, 4, 1, key=KEY)(jnp.ones(shape))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mk.nn.Linear(0, 2, key=KEY), "at least 1, got 0 and 2"),
        (lambda: mk.nn.MLP(1, 1, 4, -1, key=KEY), "depth .* at least 0, got -1"),
    ],
)
def test_refused_sizes(make, message):
    """A network without units."""
    with pytest.raises(ValueError, match=message):
        make()


def test_batched_is_a_loop():
    """Leaves mapped as if they had a batch axis, or lost on the way."""
    module = eqx.nn.MLP(3, 2, 4, 1, key=KEY)
    lifted = mk.nn.batched(module)
    x = jax.random.normal(KEY, (5, 3))
    np.testing.assert_allclose(lifted(x), jnp.stack([module(row) for row in x]), atol=1e-12)
    leaves = [jax.tree.leaves(eqx.filter(m, eqx.is_array)) for m in (lifted, module)]
    assert all(a is b for a, b in zip(*leaves, strict=True))
    gradient = eqx.filter_grad(lambda m: jnp.sum(m(x)))(lifted)
    np.testing.assert_allclose(gradient.module.layers[-1].bias, [5.0, 5.0])


def test_batched_refuses_what_cannot_be_called():
    """An error only at the first batch."""
    with pytest.raises(TypeError, match="called with one example, got int"):
        mk.nn.batched(3)

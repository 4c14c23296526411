"""Linear layers, perceptrons and modules lifted to a batch."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
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


class Foreign(eqx.Module):
    """A model for one example as others write it: a function, a flag and a dropout among its leaves."""

    layers: list
    activation: Any
    residual: bool

    def __init__(self, key):
        first, last = jax.random.split(key)
        self.layers = [
            eqx.nn.Linear(3, 3, key=first),
            eqx.nn.Dropout(0.5, inference=True),
            eqx.nn.MLP(3, 2, 4, 1, key=last),
        ]
        self.activation, self.residual = jax.nn.tanh, True

    def __call__(self, x):
        hidden = self.layers[1](self.activation(self.layers[0](x)))
        return self.layers[2](hidden + x if self.residual else hidden)


TRANSFORMS = {
    "grad": jax.grad,
    "value_and_grad": jax.value_and_grad,
    "jit": jax.jit,
    "vmap": lambda loss: jax.vmap(loss, in_axes=(None, 0)),
    "pmap": lambda loss: jax.pmap(loss, in_axes=(None, 0)),
    "jacfwd": jax.jacfwd,
    "checkpoint": lambda loss: jax.grad(jax.checkpoint(loss)),
}


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("make", [Foreign, lambda key: eqx.nn.MLP(3, 2, 4, 1, key=key)], ids=["Foreign", "MLP"])
def test_batched_makes_a_foreign_model_one_of_arrays(make, name):
    """Catches a function, a flag or a rate of a foreign model that is still a leaf, or that JAX traces."""
    model = make(KEY)
    learner = mk.maml.MAML(mk.nn.batched(model), inner=mk.inner.SGD(0.1), num_steps=1, loss=mk.losses.squared_error)
    keys = jax.random.split(KEY, 4)
    x, y = (jax.random.normal(key, (2, 5, size)) for key, size in zip(keys[:2], (3, 2), strict=True))
    both = mk.Episode(mk.Examples(x, y), mk.Examples(x + 1, y))
    one = jax.tree.map(lambda leaf: leaf[0], both)
    function = TRANSFORMS[name](mk.maml.meta_loss)
    function = function if name == "pmap" else jax.jit(function)  # eager it is slow
    actual = function(learner, both if name in ("vmap", "pmap") else one)

    def by_hand(learner, task):  # without the lifted form
        weights, rest = eqx.partition(model, eqx.is_array)
        arrays = jax.tree.unflatten(jax.tree.structure(weights), jax.tree.leaves(learner.model))

        def loss(arrays, examples):
            network = eqx.combine(arrays, rest)
            outputs = jnp.stack([network(row) for row in examples.x])
            return mk.losses.squared_error(outputs, examples.y, reduction="mean")

        slope = jax.grad(loss)(arrays, task.support)
        adapted = jax.tree.map(lambda weight, by: weight - learner.inner.rate.value * by, arrays, slope)
        return loss(adapted, task.query)

    value, gradient = jax.jit(jax.value_and_grad(by_hand))(learner, one)
    losses = jnp.stack([value, jax.jit(by_hand)(learner, jax.tree.map(lambda leaf: leaf[1], both))])
    expected = {"jit": value, "vmap": losses, "pmap": losses, "value_and_grad": (value, gradient)}.get(name, gradient)
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_batched_keeps_the_paths_of_arrays():
    """Catches paths that checkpoints of earlier versions do not have."""
    paths = lambda tree: [jax.tree_util.keystr(p) for p, leaf in jax.tree.leaves_with_path(tree) if eqx.is_array(leaf)]
    assert paths(mk.nn.batched(Foreign(KEY))) == [f".module{path}" for path in paths(Foreign(KEY))]


def test_batched_hides_no_number_that_training_should_refuse():
    """Catches a Python float that would be trained by nobody and refused by nobody once it is no leaf."""

    class Scaled(eqx.Module):
        scale: float = 2.0

        def __call__(self, x):
            return self.scale * x

    learner = {"model": mk.nn.batched(Scaled()), "bias": jnp.zeros(1)}
    with pytest.raises(TypeError, match=r"module.scale is 2.0, a number that JAX takes no gradient of"):
        mk.train.init(learner, optax.adam(1e-3), key=KEY)


LAYER = eqx.nn.MLP(3, 2, 4, 1, key=KEY)
EXAMPLES = mk.Examples(jnp.eye(4, 3), jnp.array([0, 1, 0, 1]), way=2)


@pytest.mark.parametrize(
    "use",
    [
        lambda: mk.maml.MAML(LAYER, inner=mk.inner.SGD(0.1), num_steps=1),
        lambda: mk.prototypical.meta_loss(mk.prototypical.Prototypical(LAYER), mk.Episode(EXAMPLES, EXAMPLES)),
    ],
    ids=["maml", "prototypical"],
)
def test_a_layer_for_one_example_says_how_to_lift_it(use):
    """Catches an error of shapes deep inside a matrix product, or a batch taken for one example."""
    with pytest.raises(TypeError, match=r"takes one example \(eqx.nn.MLP does\).*mk\.nn\.batched"):
        use()

"""The Relation Network's two networks: counts, shapes, the pairs that are compared, initial weights."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import metakit as mk

KEY = jax.random.key(0)


def size(make):
    return sum(leaf.size for leaf in jax.tree.leaves(eqx.filter_eval_shape(make)) if hasattr(leaf, "size"))


COUNTS = {
    "embedding, grey": (lambda: mk.nn.RelationEmbedding(key=KEY), 111_936),
    "embedding, colour": (lambda: mk.nn.RelationEmbedding(3, 84, key=KEY), 113_088),
    "module, Omniglot": (lambda: mk.nn.RelationModule(64, 5, key=KEY), 111_505),
    "module, mini-ImageNet": (lambda: mk.nn.RelationModule(64, 19, padding="VALID", key=KEY), 115_601),
}


@pytest.mark.parametrize(("make", "parameters"), COUNTS.values(), ids=COUNTS)
def test_golden_counts(make, parameters):
    """A block or a bias too many; 64 features at the first fully connected layer on Omniglot, 576 on mini-ImageNet."""
    assert size(make) == parameters


@pytest.mark.parametrize(("channels", "image", "side"), [(1, 28, 5), (3, 84, 19)])
def test_maps_keep_space(channels, image, side):
    """Four poolings instead of two, or padding where the published network has none."""
    net = eqx.filter_eval_shape(lambda: mk.nn.RelationEmbedding(channels, image, key=KEY))
    out = eqx.filter_eval_shape(lambda net: net(jnp.ones((2, channels, image, image))), net)
    assert (out.shape, net.map_size) == ((2, 64, side, side), side)


def convolve(x, layer, padding):
    y = lax.conv_general_dilated(x, layer.weight, (1, 1), padding, dimension_numbers=("NCHW", "HWIO", "NCHW"))
    return y + layer.bias[None, :, None, None]


def normalise(x):
    mean, variance = x.mean((0, 2, 3), keepdims=True), x.var((0, 2, 3), keepdims=True)
    return (x - mean) / jnp.sqrt(variance + 1e-5)


def pool(x):
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")


def moved(net):
    """Away from the initial weights, where biases are equal and scales one."""
    return jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(leaf.size), leaf.shape), net)


def affine(norm, x):
    return x * norm.scale[None, :, None, None] + norm.bias[None, :, None, None]


def test_the_embedding_written_out():
    """Catches pooling in the last two blocks, padding in the wrong ones, or a lost ReLU."""
    net, x = moved(mk.nn.RelationEmbedding(2, 12, width=3, key=KEY)), jax.random.normal(KEY, (3, 2, 12, 12))
    expected = x
    for i, block in enumerate(net.blocks):
        expected = convolve(expected, block.conv, "VALID" if i < 2 else "SAME")
        expected = jax.nn.relu(affine(block.norm, normalise(expected)))
        expected = pool(expected) if i < 2 else expected
    np.testing.assert_allclose(eqx.filter_jit(net)(x), expected, atol=1e-10)


def written_out(net, classes, queries, padding):
    """Every pair concatenated in depth, the class first, and sent through the blocks."""
    way, query = len(classes), len(queries)
    pairs = [jnp.concatenate([classes[n], queries[j]]) for j in range(query) for n in range(way)]
    x = jnp.stack(pairs)
    for block in (net.first, net.second):
        x = pool(jax.nn.relu(affine(block.norm, normalise(convolve(x, block.conv, padding)))))
    # Flat features have channels varying fastest.
    x = jnp.moveaxis(x, 1, -1).reshape(way * query, -1)
    hidden = jax.nn.relu(x @ net.hidden.weight + net.hidden.bias[None])
    return (hidden @ net.score.weight + net.score.bias[None]).reshape(query, way)


@pytest.mark.parametrize(("padding", "side"), [("SAME", 5), ("VALID", 11)])
def test_the_module_compares_concatenated_maps(padding, side):
    """Catches a first convolution, split in two, that swaps its halves or counts the bias twice."""
    net = moved(mk.nn.RelationModule(2, side, width=3, padding=padding, key=KEY))
    classes = jax.random.normal(jax.random.key(1), (3, 2, side, side))
    queries = jax.random.normal(jax.random.key(2), (4, 2, side, side))

    def loss(f):
        return eqx.filter_jit(eqx.filter_value_and_grad(lambda inputs: jnp.sum(jnp.sin(f(*inputs)))))(
            (net, classes, queries)
        )

    ours = loss(lambda net, classes, queries: net(classes, queries))
    theirs = loss(lambda net, classes, queries: written_out(net, classes, queries, padding))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9), ours, theirs)


def test_initial_weights():
    """Published starts: convolutions with variance 2 / fan-out, fully connected layers of 0.01 with biases of one."""
    net, module = mk.nn.RelationEmbedding(key=KEY), mk.nn.RelationModule(64, 5, key=jax.random.key(1))
    for block in (net.blocks[0], net.blocks[3], module.first):
        assert not jnp.any(block.conv.bias)
        # A standard deviation of n draws is known to 1 / sqrt(2 n); 576 draws in the first block.
        np.testing.assert_allclose(jnp.std(block.conv.weight), np.sqrt(2 / (9 * 64)), rtol=0.12)
    np.testing.assert_allclose(jnp.std(module.hidden.weight), 0.01, rtol=0.15)
    for layer in (module.hidden, module.score):
        assert (layer.bias == 1).all()
    weights = [net.blocks[i].conv.weight for i in (1, 2, 3)] + [module.second.conv.weight]
    assert all(jnp.any(a != b) for i, a in enumerate(weights) for b in weights[:i])  # one key used twice


@pytest.mark.parametrize("shape", [(2, 3, 28, 28), (2, 28, 28), (2, 1, 28, 27), (2, 28, 28, 1)])
def test_refused_images(shape):
    """Images of another network's shape, which would run and mean nothing."""
    with pytest.raises(ValueError, match=r"RelationEmbedding takes images of \[1, 28, 28\]"):
        mk.nn.RelationEmbedding(width=2, key=KEY)(jnp.ones(shape))


@pytest.mark.parametrize(("name", "at"), [("classes", 0), ("queries", 1)])
def test_refused_maps(name, at):
    """Maps of another size, whose first convolutions would broadcast or fail without saying which is wrong."""
    maps = [jnp.ones((3, 2, 5, 5)), jnp.ones((4, 2, 5, 5))]
    for shape in [(3, 2, 4, 4), (3, 4, 5, 5), (3, 50)]:
        maps[at] = jnp.ones(shape)
        with pytest.raises(ValueError, match=rf"takes {name} with maps of \[2, 5, 5\]"):
            mk.nn.RelationModule(2, 5, width=2, key=KEY)(*maps)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mk.nn.RelationEmbedding(1, 9, key=KEY), r"image_size=9 is too small.*at least 10"),
        (lambda: mk.nn.RelationEmbedding(1, 3, padding="SAME", key=KEY), r"image_size=3 is too small.*at least 4"),
        (lambda: mk.nn.RelationModule(2, 3, key=KEY), r"map_size=3 is too small.*at least 4"),
        (lambda: mk.nn.RelationModule(2, 9, padding="VALID", key=KEY), r"map_size=9 is too small.*at least 10"),
        (lambda: mk.nn.RelationModule(2, 5, padding="same", key=KEY), r"padding='same' is not known"),
        (lambda: mk.nn.RelationModule(2, 5, hidden=0, key=KEY), r"at least 1"),
    ],
)
def test_refused_options(make, message):
    """A network with an empty map, or a misspelt padding."""
    with pytest.raises(ValueError, match=message):
        make()

"""LSTMs: against Equinox's, and what full context embeddings ask of them."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metakit as mk

KEY = jax.random.key(0)


def draw(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def zeroed(module):
    return jax.tree.map(jnp.zeros_like, module)


def as_equinox(cell):
    theirs = eqx.nn.LSTMCell(cell.input_weight.shape[0], cell.size, key=KEY)
    ours = (cell.input_weight.T, cell.recurrent_weight.T, cell.bias)
    return eqx.tree_at(lambda c: (c.weight_ih, c.weight_hh, c.bias), theirs, ours)


def test_cell_equals_equinox():
    """Gates in another order than the documented i, f, g, o."""
    cell = mk.nn.LSTMCell(3, 2, key=KEY)
    x, h, c = draw(4, 3), draw(4, 2, seed=1), draw(4, 2, seed=2)
    expected = jax.vmap(as_equinox(cell))(x, (h, c))
    for ours, theirs in zip(cell(x, h, c), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_shapes_of_the_weights():
    """Full context embeddings feed back 2d features: a recurrent weight [2d, 4d], transposed [4d, 2d]."""
    cell = mk.nn.AttLSTM(3, key=KEY).cell
    assert cell.recurrent_weight.T.shape == (12, 6)
    assert cell.input_weight.shape == (3, 12)
    np.testing.assert_array_equal(cell.bias, [0] * 3 + [1] * 3 + [0] * 6)


def test_bidirectional_is_two_loops():
    """The backward outputs left in reversed order, or a state carried from one direction to the other."""
    x = draw(4, 3)
    net = mk.nn.BiLSTM(3, 2, key=KEY)

    def loop(cell, rows):
        state, outputs = (jnp.zeros(2), jnp.zeros(2)), []
        for row in rows:
            state = as_equinox(cell)(row, state)
            outputs.append(state[0])
        return outputs

    forward, backward = net(x)
    np.testing.assert_allclose(forward, jnp.stack(loop(net.forward, x)), atol=1e-12)
    np.testing.assert_allclose(backward, jnp.stack(loop(net.backward, x[::-1])[::-1]), atol=1e-12)


def test_attention_written_out():
    """Equations 3 to 6 of Vinyals et al.: a skip left out, or an attention read one step late."""
    d, x, memory = 2, draw(3, 2), draw(5, 2, seed=1)
    net = mk.nn.AttLSTM(d, num_steps=3, key=KEY)
    cell = net.cell
    h = read = c = np.zeros((3, d))
    for _ in range(3):
        output, c = cell(x, jnp.concatenate([jnp.asarray(h), jnp.asarray(read)], axis=1), jnp.asarray(c))
        h = np.asarray(output + x)
        scores = np.exp(h @ np.asarray(memory).T)
        read = scores / scores.sum(1, keepdims=True) @ np.asarray(memory)
    np.testing.assert_allclose(net(x, memory), h, atol=1e-12)


def test_zero_weights_change_nothing():
    """With zeroed LSTMs full context embeddings must be the plain ones: h = 0 + x, and both directions 0."""
    x, memory = draw(3, 2), draw(5, 2, seed=1)
    np.testing.assert_array_equal(zeroed(mk.nn.AttLSTM(2, key=KEY))(x, memory), x)
    for direction in zeroed(mk.nn.BiLSTM(2, 2, key=KEY))(x):
        np.testing.assert_array_equal(direction, jnp.zeros((3, 2)))


def test_what_attention_may_depend_on():
    """A set read as a sequence, a query seeing another query, or a memory that is not read at all."""
    x, memory = draw(3, 2), draw(5, 2, seed=1)
    net = mk.nn.AttLSTM(2, num_steps=3, key=KEY)
    np.testing.assert_allclose(net(x, memory[::-1]), net(x, memory), atol=1e-12)
    np.testing.assert_allclose(net(x[1:2], memory), net(x, memory)[1:2], atol=1e-12)
    assert not np.allclose(net(x, 2 * memory), net(x, memory))
    once = mk.nn.AttLSTM(2, num_steps=1, key=KEY)  # it has read nothing yet, as documented
    np.testing.assert_array_equal(once(x, 2 * memory), once(x, memory))


@pytest.mark.parametrize("which", ["cell", "both directions", "attention"])
def test_gradient_is_the_central_difference(which):
    """A loop whose derivative forgets a carried state."""
    x, memory = draw(3, 2), draw(4, 2, seed=1)
    net, call = {
        "cell": (mk.nn.LSTMCell(2, 2, key=KEY), lambda net: net(x, memory[:3], x)[0]),
        "both directions": (mk.nn.BiLSTM(2, 2, key=KEY), lambda net: jnp.concatenate(net(x))),
        "attention": (mk.nn.AttLSTM(2, key=KEY), lambda net: net(x, memory)),
    }[which]
    direction = jax.tree.map(lambda leaf: draw(*leaf.shape, seed=leaf.size), net)

    @jax.jit
    def loss(step):
        return jnp.sum(jnp.sin(call(jax.tree.map(lambda p, v: p + step * v, net, direction))))

    def central(h):
        return (loss(jnp.asarray(h)) - loss(jnp.asarray(-h))) / (2 * h)

    difference = (4 * central(5e-4) - central(1e-3)) / 3
    np.testing.assert_allclose(jax.grad(loss)(jnp.zeros(())), difference, rtol=1e-7)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mk.nn.LSTMCell(3, 2, key=KEY)(draw(4, 2), draw(4, 2), draw(4, 2)), "x must have 3 features"),
        (lambda: mk.nn.LSTMCell(3, 2, key=KEY)(draw(4, 3), draw(4, 3), draw(4, 2)), "h and c must have 2 and 2"),
        (lambda: mk.nn.BiLSTM(3, 2, key=KEY)(draw(4, 2)), "x must have 3 features"),
        (lambda: mk.nn.LSTMCell(3, 0, key=KEY), "must be at least 1, got 3, 0 and 0"),
        (lambda: mk.nn.AttLSTM(3, num_steps=0, key=KEY), "processing steps, at least 1, got 0"),
    ],
)
def test_refused(make, message):
    """A size that broadcasts against another."""
    with pytest.raises(ValueError, match=message):
        make()

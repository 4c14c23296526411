"""The GRU: against Equinox's, and its two forms against each other."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metakit as mk

KEY = jax.random.key(0)


def draw(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def with_biases(cell):
    biases = (draw(*cell.bias.shape, seed=3), draw(*cell.candidate_bias.shape, seed=4))
    return eqx.tree_at(lambda c: (c.bias, c.candidate_bias), cell, biases)


def test_cell_equals_equinox():
    """Gates in another order, the reset gate before the product, or the update gate the other way round."""
    cell = with_biases(mk.nn.GRUCell(3, 2, key=KEY))
    theirs = eqx.nn.GRUCell(3, 2, key=KEY)
    ours = (cell.input_weight.T, cell.recurrent_weight.T, cell.bias, cell.candidate_bias)
    theirs = eqx.tree_at(lambda c: (c.weight_ih, c.weight_hh, c.bias, c.bias_n), theirs, ours)
    x, h = draw(4, 3), draw(4, 2, seed=1)
    np.testing.assert_allclose(cell(x, h), jax.vmap(theirs)(x, h), atol=1e-12)


def test_read_equals_steps_and_starts_from_zero():
    """A sequence that starts from another state than a step does, or a memory that is not the last output."""
    gru = mk.nn.GRU(3, 2, key=KEY)
    gru = eqx.tree_at(lambda g: g.cell, gru, with_biases(gru.cell))
    x = draw(5, 3)
    state, outputs = gru.start(), []
    np.testing.assert_array_equal(state, jnp.zeros(2))
    for token in x:
        state, output = gru.step(state, token)
        outputs.append(output)
    last, read = gru.read(x)
    np.testing.assert_allclose(read, jnp.stack(outputs), atol=1e-12)
    np.testing.assert_allclose(last, state, atol=1e-12)
    np.testing.assert_array_equal(gru(x), read)
    assert isinstance(gru, mk.nn.SequenceModel)
    assert not isinstance(gru.cell, mk.nn.SequenceModel)


def test_gradient_is_the_central_difference():
    """A loop whose derivative forgets a carried state."""
    gru, x = mk.nn.GRU(2, 2, key=KEY), draw(4, 2)
    direction = jax.tree.map(lambda leaf: draw(*leaf.shape, seed=leaf.size), gru)

    @jax.jit
    def loss(step):
        moved = jax.tree.map(lambda p, v: p + step * v, gru, direction)
        return jnp.sum(jnp.sin(moved(x)))

    def central(h):
        return (loss(jnp.asarray(h)) - loss(jnp.asarray(-h))) / (2 * h)

    difference = (4 * central(5e-4) - central(1e-3)) / 3
    np.testing.assert_allclose(jax.grad(loss)(jnp.zeros(())), difference, rtol=1e-7)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mk.nn.GRUCell(3, 2, key=KEY)(draw(4, 2), draw(4, 2)), "x must have 3 features"),
        (lambda: mk.nn.GRUCell(3, 2, key=KEY)(draw(4, 3), draw(4, 3)), "h must have 2 features"),
        (lambda: mk.nn.GRU(3, 0, key=KEY), "must be at least 1, got 3 and 0"),
    ],
)
def test_refused(make, message):
    """A size that broadcasts against another."""
    with pytest.raises(ValueError, match=message):
        make()

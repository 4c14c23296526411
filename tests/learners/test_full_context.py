"""Full context embeddings: the recursions of g and f, and what depends on the order of the support."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _metric import flat, random_episode

import metakit as mk
from metakit.learners.matching import FullContext, Matching, adapt, predict


@eqx.filter_jit
def outputs(learner, support, x):
    return predict(adapt(learner, support), x)


@pytest.mark.parametrize("num_steps", [1, 3])
@pytest.mark.parametrize("similarity", ["cosine", "squared_euclidean"])
def test_full_context_with_zero_weights_is_the_plain_network(num_steps, similarity, key):
    """T10. Catches a missing skip connection, in g or in any processing step of f."""
    episode = random_episode(key)
    context = jax.tree.map(jnp.zeros_like, FullContext(4, num_steps=num_steps, key=key))
    plain, full = (
        outputs(Matching(flat, similarity=similarity, context=c), episode.support, episode.query.x)
        for c in (None, context)
    )
    np.testing.assert_allclose(plain, full, atol=1e-12)


def test_full_context_equals_the_written_out_recursion(key):
    """Catches swapped gates, [r, h] for [h, r], reading before the skip, cosine for dot, a lost cell."""
    d, steps = 3, 3
    context = FullContext(d, num_steps=steps, key=key)
    support, queries = np.asarray(jax.random.normal(key, (5, d))), np.asarray(jax.random.normal(key, (2, d)))

    def sigmoid(v):
        return 1 / (1 + np.exp(-v))

    def lstm(cell, x, h, c):
        gates = x @ np.asarray(cell.input_weight) + h @ np.asarray(cell.recurrent_weight) + np.asarray(cell.bias)
        i, f, g, o = gates[:d], gates[d : 2 * d], gates[2 * d : 3 * d], gates[3 * d :]
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        return sigmoid(o) * np.tanh(c), c

    g = support.copy()
    for cell, order in ((context.support.forward, range(5)), (context.support.backward, reversed(range(5)))):
        h = c = np.zeros(d)
        for i in order:
            h, c = lstm(cell, support[i], h, c)
            g[i] += h
    f = []
    for x in queries:
        h, r, c = np.zeros(d), np.zeros(d), np.zeros(d)
        for _ in range(steps):
            out, c = lstm(context.query.cell, x, np.concatenate([h, r]), c)
            h = out + x
            a = np.exp(g @ h) / np.exp(g @ h).sum()
            r = a @ g
        f.append(h)
    got_g, got_f = context(jnp.asarray(support), jnp.asarray(queries))
    np.testing.assert_allclose(got_g, g, atol=1e-12)
    np.testing.assert_allclose(got_f, np.stack(f), atol=1e-12)


@pytest.mark.parametrize(
    ("x", "h", "message"),
    [
        (jnp.ones((4, 2)), jnp.ones((4, 6)), "x must have 3"),
        (jnp.ones((4, 3)), jnp.ones((4, 3)), "h and c must have 6"),
    ],
)
def test_lstm_sizes_that_disagree_are_refused(x, h, message, key):
    """Catches an error from a matrix product that does not say which input is wrong."""
    cell = mk.nn.LSTMCell(3, 3, recurrent_size=6, key=key)
    with pytest.raises(ValueError, match=message):
        cell(x, h, jnp.ones((4, 3)))


def test_hidden_to_hidden_weight_takes_the_output_and_what_was_read(key):
    """Catches h + r in place of [h, r]: the recurrent weight is 2d by 4d."""
    assert FullContext(3, key=key).query.cell.recurrent_weight.shape == (6, 12)


def test_order_of_the_support(key):
    """Catches an f that depends on the order of what it reads, and a g that does not see its neighbours."""
    context = FullContext(4, num_steps=3, key=key)
    episode = random_episode(key)
    order = jax.random.permutation(jax.random.fold_in(key, 1), 6)
    f = [context.query(episode.query.x, m) for m in (episode.support.x, episode.support.x[order])]
    np.testing.assert_allclose(f[0], f[1], atol=1e-12)
    g = [sum(context.support(x)) for x in (episode.support.x, episode.support.x[order])]
    assert np.abs(g[0][order] - g[1]).max() > 1e-3
    shuffled = mk.Examples(episode.support.x[order], episode.support.y[order], way=3)
    plain = [outputs(Matching(flat), s, episode.query.x) for s in (episode.support, shuffled)]
    np.testing.assert_allclose(plain[0], plain[1], atol=1e-12)


@pytest.mark.parametrize(("size", "num_steps"), [(0, 1), (3, 0)])
def test_context_without_features_or_steps_is_refused(size, num_steps, key):
    """Catches zero processing steps, which would answer with zeros."""
    with pytest.raises(ValueError, match="at least 1"):
        FullContext(size, num_steps=num_steps, key=key)

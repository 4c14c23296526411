"""Frozen statistics: the inductive batch-norm policy."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metakit as mk

KEY = jax.random.key(0)


class Net(eqx.Module):
    """Two layers, two norms, in an order that is not the order of the fields."""

    last: mk.nn.Linear
    second: mk.nn.BatchStatNorm
    first: mk.nn.BatchStatNorm

    def __init__(self):
        self.last, self.first, self.second = mk.nn.Linear(3, 2, key=KEY), mk.nn.BatchStatNorm(3), mk.nn.BatchStatNorm(2)

    def __call__(self, x):
        return self.second(self.last(jax.nn.relu(self.first(x))))


def draw(n, seed=0):
    return 3 * jax.random.normal(jax.random.key(seed), (n, 3)) + 1


SUPPORT, QUERY = draw(5), draw(4, seed=1)


def test_reproduces_the_batch_itself():
    """Statistics recorded in one order and put back in another, or before the layers above were normalised."""
    net = Net()
    np.testing.assert_allclose(mk.nn.freeze_statistics(net, SUPPORT)(SUPPORT), net(SUPPORT), atol=1e-12)


def test_a_query_depends_on_no_other():
    """The inductive property itself; the unfrozen network, which is transductive, does not have it."""
    frozen = mk.nn.freeze_statistics(Net(), SUPPORT)
    np.testing.assert_allclose(frozen(QUERY)[:1], frozen(QUERY[:1]), atol=1e-12)
    others = frozen(QUERY.at[1:].set(100.0))
    np.testing.assert_allclose(frozen(QUERY)[0], others[0], atol=1e-12)
    assert not np.allclose(Net()(QUERY)[0], Net()(QUERY.at[1:].set(100.0))[0])


@pytest.mark.slow
def test_conv4_too():
    """A network that normalises in its own layout, past the recorded call."""
    net = mk.nn.Conv4(1, 16, width=2, key=KEY)
    support, query = (jax.random.normal(jax.random.key(i), (3, 1, 16, 16)) for i in (1, 2))
    frozen = mk.nn.freeze_statistics(net, support)
    np.testing.assert_allclose(frozen(support), net(support), atol=1e-12)
    np.testing.assert_allclose(frozen(query)[1:2], frozen(query[1:2]), atol=1e-12)


def test_freezing_again_takes_the_new_batch():
    """A model frozen on training images keeping those statistics when it is frozen on a support set."""
    once = mk.nn.freeze_statistics(Net(), QUERY)
    again, fresh = mk.nn.freeze_statistics(once, SUPPORT), mk.nn.freeze_statistics(Net(), SUPPORT)
    assert eqx.tree_equal(again, fresh)


def test_pure_under_transformations():
    """A tracer of one transformation leaking into the next, or the model changed in place."""
    net = Net()
    leaves = jax.tree.leaves(net)

    def loss(net, support):
        return jnp.sum(jnp.sin(mk.nn.freeze_statistics(net, support)(QUERY)))

    eager = eqx.filter_grad(loss)(net, SUPPORT)
    compiled = eqx.filter_jit(eqx.filter_grad(loss))(net, SUPPORT)
    assert eqx.tree_equal(eager, compiled, rtol=1e-10, atol=1e-12)
    tasks = jnp.stack([SUPPORT, 2 * SUPPORT])
    mapped = eqx.filter_vmap(loss, in_axes=(None, 0))(net, tasks)
    np.testing.assert_allclose(mapped, [loss(net, t) for t in tasks], rtol=1e-10)
    assert jax.tree.leaves(net) == leaves


def test_gradient_flows_into_the_statistics():
    """Statistics silently held constant: the gradient with respect to the support set would be missing."""

    def loss(support):
        return jnp.sum(jnp.sin(mk.nn.freeze_statistics(Net(), support)(QUERY)))

    direction, h = draw(5, seed=3), 1e-5
    difference = (loss(SUPPORT + h * direction) - loss(SUPPORT - h * direction)) / (2 * h)
    np.testing.assert_allclose(jnp.vdot(jax.grad(loss)(SUPPORT), direction), difference, rtol=1e-7)


def test_no_norm_at_all():
    """A policy that changes nothing, accepted in silence."""
    with pytest.raises(ValueError, match="found no BatchStatNorm"):
        mk.nn.freeze_statistics(mk.nn.Linear(3, 2, key=KEY), SUPPORT)


class Around(eqx.Module):
    """A norm called in some roundabout way."""

    norm: mk.nn.BatchStatNorm
    call: object = eqx.field(static=True)

    def __call__(self, x):
        return self.call(self.norm, x)


CALLS = {
    "never": (lambda norm, x: x, r"never called its BatchStatNorm number \[0\]"),
    "twice": (lambda norm, x: norm(norm(x)), "more than once"),
    "jit": (lambda norm, x: jax.jit(lambda x: norm(x))(x), "of its own"),
    "filter_jit": (lambda norm, x: eqx.filter_jit(lambda n, x: n(x))(norm, x), "of its own"),
    "checkpoint": (lambda norm, x: jax.checkpoint(lambda x: norm(x))(x), "of its own"),
    "scan": (lambda norm, x: jax.lax.scan(lambda c, _: (norm(c), None), x, None, length=2)[0], "of its own"),
}


@pytest.mark.parametrize(("call", "message"), CALLS.values(), ids=CALLS)
def test_what_cannot_be_recorded(call, message):
    """Statistics of another call, or a leaked tracer's error far from its cause."""
    with pytest.raises(ValueError, match=message):
        mk.nn.freeze_statistics(Around(mk.nn.BatchStatNorm(3), call), SUPPORT)

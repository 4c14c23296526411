"""A second-order meta-learner of a dozen lines, so that these tests depend on no learner of the library."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp

import metakit as mk


def inner_loss(weights, examples):
    return jnp.mean((jnp.tanh(examples.x @ weights) - examples.y) ** 2)


def meta_loss(learner, task, key=None):
    """One inner step; with a key, noise on the query inputs, so that a wrong key changes the number."""
    weights = learner["weights"]
    weights = weights - learner["rate"].value * jax.grad(inner_loss)(weights, task.support)
    query = task.query
    if key is not None:
        noise = jax.random.normal(key, query.x.shape, query.x.dtype)
        query = mk.Examples(query.x + 0.1 * noise, query.y)
    return inner_loss(weights, query) * learner["scale"]


def adapt(learner, support, key=None):
    return learner["weights"] - learner["rate"].value * jax.grad(inner_loss)(learner["weights"], support)


ALGORITHM = mk.MetaLearner(adapt, lambda adapted, x, key=None: jnp.tanh(x @ adapted), meta_loss)


def make_learner():
    """Has what a real learner has: weights, a fixed rate, a number, integers and a function."""
    weights = jax.random.normal(jax.random.key(0), (3, 2))
    return {
        "weights": weights,
        "rate": mk.fixed(0.5),
        "scale": jnp.full((), 2.0),
        "count": jnp.arange(3),
        "function": jnp.tanh,
    }


@functools.cache
def make_tasks(count):
    @eqx.filter_jit
    @eqx.filter_vmap
    def make(key):
        def examples(key):
            x_key, y_key = jax.random.split(key)
            return mk.Examples(jax.random.normal(x_key, (4, 3)), jax.random.normal(y_key, (4, 2)))

        return mk.Episode(*map(examples, jax.random.split(key)))

    return make(mk.random.task_keys(jax.random.key(1), 0, count))


def make_keys(count):
    return mk.random.task_keys(jax.random.key(2), 0, count)


_gradient = eqx.filter_jit(eqx.filter_value_and_grad(meta_loss))


def by_hand(learner, tasks, keys=None):
    """Mean loss and gradient from a Python loop over tasks: what every other way must equal."""
    count = len(tasks.support.x)

    def one(i):
        return jax.tree.map(lambda leaf: leaf[i], tasks)

    results = [_gradient(learner, one(i), None if keys is None else keys[i]) for i in range(count)]
    losses = jnp.stack([loss for loss, _ in results])
    gradient = jax.tree.map(lambda *leaves: sum(leaves) / count, *[gradient for _, gradient in results])
    return jnp.mean(losses), gradient, losses

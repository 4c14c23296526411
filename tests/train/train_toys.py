"""Small learners with closed-form gradients."""

import equinox as eqx
import jax
import jax.numpy as jnp

import metakit as mk


class Point(eqx.Module):
    """A point that is pulled towards each task, with a fixed and a learned number beside it."""

    position: jax.Array
    strength: mk.Hyperparameter
    offset: mk.Hyperparameter
    label: str = eqx.field(static=True, default="point")


def point(size=2, dtype=jnp.float64):
    return Point(
        jnp.arange(size, dtype=dtype),
        mk.fixed(jnp.asarray(2.0, dtype)),
        mk.learned(jnp.zeros(size, dtype)),
    )


def point_loss(learner, task, key=None):
    """0.5 s |p + o - t|^2: the gradient with respect to p and to o is s (p + o - t)."""
    return 0.5 * learner.strength.value * jnp.sum((learner.position + learner.offset.value - task) ** 2)


POINT = mk.MetaLearner(adapt=None, predict=None, meta_loss=point_loss)


def draw_point(key):
    return jax.random.normal(key, (2,), jnp.float64)


class Regressor(eqx.Module):
    """One step of gradient descent on a linear model: a small MAML of our own."""

    weight: jax.Array
    rate: mk.Hyperparameter


def regressor():
    return Regressor(jnp.full((3,), 0.5), mk.fixed(0.1))


def _fit_loss(weight, examples):
    return jnp.mean((examples.x @ weight - examples.y) ** 2)


def _adapt(learner, support, key=None):
    return learner.weight - learner.rate.value * jax.grad(_fit_loss)(learner.weight, support)


def _predict(adapted, x, key=None):
    return x @ adapted


def _meta_loss(learner, task, key=None):
    return _fit_loss(_adapt(learner, task.support), task.query)


REGRESSION = mk.MetaLearner(_adapt, _predict, _meta_loss)


def draw_line(key):
    """A task whose weights spread around (1, 2, 3)."""
    weight_key, x_key = jax.random.split(key)
    weight = jnp.arange(1.0, 4.0) + 0.1 * jax.random.normal(weight_key, (3,))
    x = jax.random.normal(x_key, (8, 3))
    examples = [mk.Examples(part, part @ weight) for part in (x[:4], x[4:])]
    return mk.Episode(*examples)


def leaves_equal(a, b):
    """Whether two trees hold the same bits; keys by their data."""

    def raw(leaf):
        is_key = eqx.is_array(leaf) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.random.key_data(leaf) if is_key else leaf

    return eqx.tree_equal(jax.tree.map(raw, a), jax.tree.map(raw, b))
